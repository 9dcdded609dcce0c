//! What sessions hold, on its way between a stage and whoever keeps it.
//!
//! A stage gives its state away in parts, and takes it so; between two parts it computes. Whoever keeps it asks for them by way of the
//! driver, which lets nothing through for a session that has ended: its cache may be another's by then.

use std::collections::HashMap;

use potluck_core::{CacheId, StageCommand, StageError, StageReply, StageSpec};
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
    /// What the stage says to `Export` or `Import`; none where the session has ended, or the stage has.
    pub async fn ask(&mut self, command: StageCommand) -> Option<StageReply> {
        self.words.send((self.number, Word::Ask(command))).ok()?;
        self.replies.recv().await
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
    under_way: HashMap<Place, (u64, mpsc::UnboundedSender<StageReply>)>,
    number: u64,
    words: mpsc::UnboundedSender<(u64, Word)>,
    said: mpsc::UnboundedReceiver<(u64, Word)>,
}

impl States {
    /// `jobs`: whoever keeps states; none: nobody does.
    pub(crate) fn new(jobs: Option<StateJobs>) -> Self {
        let (words, said) = mpsc::unbounded_channel();
        Self { jobs, under_way: HashMap::new(), number: 0, words, said }
    }

    /// A command that is for a stage: back, unless it is for whoever keeps states.
    pub(crate) fn command(&mut self, stage: usize, spec: StageSpec, command: StageCommand) -> Option<StageCommand> {
        match command {
            StageCommand::Save { cache, .. } | StageCommand::Restore { cache, .. } => {
                let Some(jobs) = &self.jobs else { return Some(command) };
                self.number += 1;
                let (reply, replies) = mpsc::unbounded_channel();
                let job = StateJob { command, spec, number: self.number, words: self.words.clone(), replies };
                self.under_way.insert((stage, cache), (self.number, reply));
                // Where nobody takes it, it fails by being dropped.
                let _ = jobs.send(job);
                None
            }
            StageCommand::Close { cache } | StageCommand::Open { cache, .. } | StageCommand::Fork { to: cache, .. } => {
                self.under_way.remove(&(stage, cache));
                Some(command)
            }
            command => Some(command),
        }
    }

    /// What a stage said: back, unless it is for a job.
    pub(crate) fn reply(&mut self, stage: usize, reply: StageReply) -> Option<StageReply> {
        match reply {
            StageReply::Exported { cache, .. } | StageReply::Imported { cache, .. } => {
                if let Some((_, job)) = self.under_way.get(&(stage, cache)) {
                    let _ = job.send(reply);
                }
                None
            }
            StageReply::Lost { .. } => {
                self.under_way.retain(|(at, _), _| *at != stage);
                Some(reply)
            }
            reply => Some(reply),
        }
    }

    /// What a job says next, and of which stage. Safe to cancel: nothing is lost.
    pub(crate) async fn next(&mut self) -> (usize, Word) {
        loop {
            // The sender is here: it never closes.
            let Some((number, word)) = self.said.recv().await else { return std::future::pending().await };
            let Some(place) = self.place_of(number) else { continue };
            if let Word::Done(_) = word {
                self.under_way.remove(&place);
            }
            return (place.0, word);
        }
    }

    fn place_of(&self, number: u64) -> Option<Place> {
        self.under_way.iter().find(|(_, (job, _))| *job == number).map(|(place, _)| *place)
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::{LayerRange, ModelId, PeerId, SessionId, SessionKey, StateKey};

    use super::*;

    const CACHE: CacheId = CacheId(3);

    fn spec() -> StageSpec {
        let layers = LayerRange::new(0, 2).unwrap();
        StageSpec { model: ModelId::from_bytes([1; 32]), layers, head: true, tail: false }
    }

    fn save() -> StageCommand {
        let session = SessionKey { client: PeerId::from_bytes([2; 32]), id: SessionId::from_bytes([3; 16]) };
        StageCommand::Save { cache: CACHE, session, key: StateKey([4; 32]), seconds: 9 }
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
