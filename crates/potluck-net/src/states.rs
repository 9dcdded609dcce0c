//! What sessions hold, on its way between a stage and whoever keeps it.
//!
//! A stage gives its state away in parts, and takes it so; between two parts it computes. Whoever keeps it asks for them by way of the
//! driver, which lets nothing through for a session that has ended: its cache may be another's by then.

use std::collections::{HashMap, VecDeque};

use potluck_core::{CacheId, STATE_FORGOTTEN, StageCommand, StageError, StageReply, StageSpec};
use tokio::sync::mpsc;

/// Where [`StateJob`]s go.
pub type StateJobs = mpsc::UnboundedSender<StateJob>;

/// What a stage holds of a session is to be kept, or was, and is to come back. Dropped before it is [done](Self::done), it has failed.
#[derive(Debug)]
pub struct StateJob {
    /// `Save` or `Restore`.
    pub command: StageCommand,
    /// The stage.
    pub spec: StageSpec,
    number: u64,
    words: mpsc::UnboundedSender<(u64, Word)>,
    replies: mpsc::UnboundedReceiver<StageReply>,
}

/// What a job says to its driver.
#[derive(Debug)]
pub(crate) enum Word {
    /// For the stage.
    Ask(StageCommand),
    /// For the machine.
    Done(StageReply),
}

impl StateJob {
    /// What the stage says to `Export` or `Import`; none where the session has ended or gone on, or the stage has ended.
    pub async fn ask(&mut self, command: StageCommand) -> Option<StageReply> {
        self.words.send((self.number, Word::Ask(command))).ok()?;
        self.replies.recv().await
    }

    /// True where nobody waits for it any more.
    pub fn is_over(&self) -> bool {
        self.replies.is_closed()
    }

    /// The stage need not keep what it has taken down.
    pub fn forget(&self) {
        if let StageCommand::Save { cache, .. } = self.command {
            let command = StageCommand::Export { cache, offset: STATE_FORGOTTEN };
            let _ = self.words.send((self.number, Word::Ask(command)));
        }
    }

    /// What came of it.
    pub fn done(self, reply: StageReply) {
        let _ = self.words.send((self.number, Word::Done(reply)));
    }
}

impl Drop for StateJob {
    fn drop(&mut self) {
        // Of one that is done already, nobody knows any more.
        if let Some(failed) = failed(&self.command) {
            let _ = self.words.send((self.number, Word::Done(failed)));
        }
    }
}

fn failed(command: &StageCommand) -> Option<StageReply> {
    let error = || StageError::Engine("nobody kept it".into());
    match *command {
        StageCommand::Save { cache, .. } => Some(StageReply::Saved { cache, result: Err(error()) }),
        StageCommand::Restore { cache, .. } => Some(StageReply::Restored { cache, result: Err(error()) }),
        _ => None,
    }
}

/// A stage of a driver's, by whatever number it has there, and a cache in it.
type Place = (usize, CacheId);

/// The jobs of one driver that are under way.
#[derive(Debug)]
pub(crate) struct States {
    jobs: Option<StateJobs>,
    under_way: HashMap<Place, UnderWay>,
    /// Answers that stages owe, to whatever job.
    owed: HashMap<Place, u32>,
    number: u64,
    words: mpsc::UnboundedSender<(u64, Word)>,
    said: mpsc::UnboundedReceiver<(u64, Word)>,
    /// Of jobs that were called off.
    failed: VecDeque<(usize, Word)>,
}

/// A job that is under way.
#[derive(Debug)]
struct UnderWay {
    number: u64,
    /// What is said of it where it is called off.
    failed: StageReply,
    reply: mpsc::UnboundedSender<StageReply>,
    /// Answers of the stage that come before its own: to a job that was there before.
    others: u32,
    /// What the cache holds is taken down: what becomes of the cache does not matter any more.
    is_taken: bool,
}

impl States {
    /// `jobs`: whoever keeps states; none: nobody does.
    pub(crate) fn new(jobs: Option<StateJobs>) -> Self {
        let (words, said) = mpsc::unbounded_channel();
        let (under_way, owed, failed) = Default::default();
        Self { jobs, under_way, owed, number: 0, words, said, failed }
    }

    /// A command that is for a stage: back, unless it is for whoever keeps states.
    pub(crate) fn command(&mut self, stage: usize, spec: StageSpec, command: StageCommand) -> Option<StageCommand> {
        match &command {
            StageCommand::Save { cache, .. } | StageCommand::Restore { cache, .. } => {
                let Some((jobs, failed)) = self.jobs.as_ref().zip(failed(&command)) else { return Some(command) };
                let place = (stage, *cache);
                self.number += 1;
                let (number, words) = (self.number, self.words.clone());
                let (reply, replies) = mpsc::unbounded_channel();
                let others = self.owed.get(&place).copied().unwrap_or_default();
                let job = StateJob { command, spec, number, words, replies };
                self.under_way.insert(place, UnderWay { number, failed, reply, others, is_taken: false });
                // Where nobody takes it, it fails by being dropped.
                let _ = jobs.send(job);
                return None;
            }
            StageCommand::Close { cache } | StageCommand::Open { cache, .. } | StageCommand::Fork { to: cache, .. } => {
                self.under_way.remove(&(stage, *cache));
            }
            // What a step has written is not what was to be kept, and nothing may write over it.
            StageCommand::Forward { steps, .. } => steps.iter().for_each(|step| self.call_off((stage, step.cache))),
            StageCommand::Row { .. } | StageCommand::Export { .. } | StageCommand::Import { .. } => {}
        }
        Some(command)
    }

    fn call_off(&mut self, place: Place) {
        if let Some(job) = self.under_way.remove(&place) {
            match job.is_taken {
                true => drop(self.under_way.insert(place, job)),
                false => self.failed.push_back((place.0, Word::Done(job.failed))),
            }
        }
    }

    /// What a stage said: back, unless it is for a job.
    pub(crate) fn reply(&mut self, stage: usize, reply: StageReply) -> Option<StageReply> {
        match reply {
            StageReply::Exported { cache, .. } | StageReply::Imported { cache, .. } => {
                let place = (stage, cache);
                if let Some(owed) = self.owed.get_mut(&place) {
                    *owed -= 1;
                    if *owed == 0 {
                        self.owed.remove(&place);
                    }
                }
                match self.under_way.get_mut(&place) {
                    Some(UnderWay { others, .. }) if *others > 0 => *others -= 1,
                    Some(UnderWay { reply: job, .. }) => drop(job.send(reply)),
                    None => {}
                }
                None
            }
            StageReply::Lost { .. } => {
                self.under_way.retain(|(at, _), _| *at != stage);
                self.owed.retain(|(at, _), _| *at != stage);
                Some(reply)
            }
            reply => Some(reply),
        }
    }

    /// What a job says next, and of which stage. Safe to cancel: nothing is lost.
    pub(crate) async fn next(&mut self) -> (usize, Word) {
        loop {
            if let Some(failed) = self.failed.pop_front() {
                return failed;
            }
            // The sender is here: it never closes.
            let Some((number, word)) = self.said.recv().await else { return std::future::pending().await };
            let Some(place) = self.place_of(number) else { continue };
            match &word {
                Word::Ask(command) => {
                    self.asks(place, matches!(command, StageCommand::Export { offset: 0, .. }));
                }
                Word::Done(_) => drop(self.under_way.remove(&place)),
            }
            return (place.0, word);
        }
    }

    fn asks(&mut self, place: Place, takes: bool) {
        *self.owed.entry(place).or_default() += 1;
        if let Some(job) = self.under_way.get_mut(&place) {
            job.is_taken |= takes;
        }
    }

    fn place_of(&self, number: u64) -> Option<Place> {
        self.under_way.iter().find(|(_, job)| job.number == number).map(|(place, _)| *place)
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::{
        Input, LayerRange, ModelId, PeerId, Rows, SessionId, SessionKey, StateKey, StatePart, Step, Tree,
    };

    use super::*;

    const CACHE: CacheId = CacheId(3);

    fn spec() -> StageSpec {
        let layers = LayerRange::new(0, 2).unwrap();
        StageSpec { model: ModelId::from_bytes([1; 32]), layers, head: true, tail: false }
    }

    fn save() -> StageCommand {
        let session = SessionKey { client: PeerId::from_bytes([2; 32]), id: SessionId::from_bytes([3; 16]) };
        StageCommand::Save { cache: CACHE, session, positions: 2, bytes: 8, key: StateKey([4; 32]), seconds: 9 }
    }

    #[tokio::test]
    async fn nothing_is_asked_for_a_session_that_has_ended() {
        let (jobs, mut taken) = mpsc::unbounded_channel();
        let mut states = States::new(Some(jobs));
        assert_eq!(states.command(0, spec(), save()), None);
        let mut job = taken.recv().await.unwrap();
        let asks = tokio::spawn(async move {
            let first = job.ask(StageCommand::Export { cache: CACHE, offset: 0 }).await;
            let second = job.ask(StageCommand::Export { cache: CACHE, offset: 9 }).await;
            (first, second)
        });
        assert!(matches!(states.next().await, (0, Word::Ask(StageCommand::Export { offset: 0, .. }))));
        let gone = || Err(StageError::UnknownCache(CACHE));
        assert_eq!(states.reply(1, StageReply::Exported { cache: CACHE, result: gone() }), None, "another stage's");
        // The cache is another session's before the job asks again.
        let exported = StageReply::Exported { cache: CACHE, result: gone() };
        assert_eq!(states.reply(0, exported.clone()), None);
        let close = StageCommand::Close { cache: CACHE };
        assert_eq!(states.command(0, spec(), close.clone()), Some(close));
        assert_eq!(states.command(0, spec(), save()), None);
        let second = taken.recv().await.unwrap();
        assert_eq!(asks.await.unwrap(), (Some(exported), None));
        drop(second);
        // Neither the question nor the failure of the first is heard.
        let (stage, word) = states.next().await;
        assert!(stage == 0 && matches!(word, Word::Done(StageReply::Saved { result: Err(_), .. })), "{word:?}");
    }

    #[tokio::test]
    async fn a_session_that_goes_on_calls_off_what_is_not_taken_down_yet() {
        let (jobs, mut taken) = mpsc::unbounded_channel();
        let mut states = States::new(Some(jobs));
        let (input, rows, top, tree) = (Input::Tokens(vec![1]), Rows::Last, 1, Tree::chain());
        let step = Step { cache: CACHE, start: 0, input, rows, top, tree };
        let forward = || StageCommand::Forward { batch: 1, steps: vec![step.clone()] };
        let exported = |total| {
            let part = StatePart { positions: 2, total, offset: 0, bytes: vec![1] };
            StageReply::Exported { cache: CACHE, result: Ok(part) }
        };
        let restore = || match save() {
            StageCommand::Save { cache, session, key, .. } => StageCommand::Restore { cache, session, key },
            other => other,
        };
        for command in [save(), restore()] {
            states.command(0, spec(), command.clone());
            let job = taken.recv().await.unwrap();
            assert!(!job.is_over());
            assert_eq!(states.command(0, spec(), forward()), Some(forward()));
            assert!(job.is_over());
            let (_, word) = states.next().await;
            assert!(matches!(word, Word::Done(StageReply::Saved { .. } | StageReply::Restored { .. })), "{word:?}");
        }
        // What is taken down already is of the moment before.
        states.command(0, spec(), save());
        let mut job = taken.recv().await.unwrap();
        let asks = tokio::spawn(async move { (job.ask(StageCommand::Export { cache: CACHE, offset: 0 }).await, job) });
        assert!(matches!(states.next().await, (0, Word::Ask(_))));
        states.command(0, spec(), forward());
        // It is given up, and another asks before the stage has answered: the first answer is not the second's.
        states.command(0, spec(), save());
        let mut second = taken.recv().await.unwrap();
        assert_eq!(asks.await.unwrap().0, None);
        let asks = tokio::spawn(async move { second.ask(StageCommand::Export { cache: CACHE, offset: 0 }).await });
        assert!(matches!(states.next().await, (0, Word::Ask(_))));
        states.reply(0, exported(1));
        states.reply(0, exported(2));
        assert_eq!(asks.await.unwrap(), Some(exported(2)));
    }

    #[tokio::test]
    async fn without_a_keeper_the_stage_itself_is_asked() {
        let mut states = States::new(None);
        assert_eq!(states.command(0, spec(), save()), Some(save()));
        let (jobs, taken) = mpsc::unbounded_channel();
        drop(taken);
        let mut states = States::new(Some(jobs));
        assert_eq!(states.command(0, spec(), save()), None);
        assert!(matches!(states.next().await, (0, Word::Done(StageReply::Saved { result: Err(_), .. }))));
    }
}
