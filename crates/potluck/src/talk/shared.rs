//! One engine for all sessions of a gateway: each has a port of its own, and steps that wait share a batch.
//!
//! A route's own ends would otherwise be an engine, and a copy of the weights, for each session.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use potluck_chain::STEPS_IN_FLIGHT_MAX;
use potluck_core::{CacheId, StageCommand, StageError, StageReply, StageShape, Step};
use potluck_engine::Load;
use potluck_net::OwnPort;
use tokio::{
    sync::mpsc::{self, Receiver, Sender, UnboundedReceiver, UnboundedSender},
    task::JoinHandle,
};

use crate::{
    engines::{EnginePipe, RunningEngine},
    failure::Failure,
};

/// Replies that may wait for a session: to all its steps in flight, to its opening, to a row, and that the engine is lost. One that has
/// more of them than it can have asked for is let go.
const REPLIES_MAX: usize = STEPS_IN_FLIGHT_MAX + 8;

/// An engine that sessions of this command share. It ends when this and every port are gone.
#[derive(Debug)]
pub(super) struct SharedEngine {
    said: UnboundedSender<Said>,
    task: JoinHandle<()>,
}

/// What a session says to its port.
enum Said {
    Here { port: u64, beside: Option<u64>, replies: Sender<StageReply> },
    Command { port: u64, command: StageCommand },
    Gone { port: u64 },
}

/// A session's port.
struct Port {
    replies: Sender<StageReply>,
    /// What it calls its cache, and which it is in the engine.
    cache: Option<(CacheId, CacheId)>,
    /// The port whose session it may share a prefix with.
    beside: Option<u64>,
}

/// Whose steps one forward command holds: port, its own number of the batch, how many.
type Shares = Vec<(u64, u64, usize)>;

#[derive(Default)]
struct Hub {
    ports: BTreeMap<u64, Port>,
    waiting: VecDeque<(u64, u64, Vec<Step>)>,
    running: Option<(u64, Shares)>,
    batches: u64,
    taken: BTreeSet<u16>,
    /// The cache that was given last: one that was given back waits its turn, so that no late reply reaches another.
    last: u16,
    to_engine: Vec<StageCommand>,
}

impl SharedEngine {
    /// Starts the engine.
    pub(super) async fn start(load: Load) -> Result<Self, Failure> {
        Ok(Self::start_with(load).await?.0)
    }

    /// The same, and what its stage is like.
    pub(super) async fn start_with(load: Load) -> Result<(Self, StageShape), Failure> {
        let (engine, EnginePipe { commands, replies }) = RunningEngine::start(load).await?;
        let shape = engine.shape.clone();
        let (said, heard) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            serve(heard, commands, replies).await;
            engine.stop().await;
        });
        Ok((Self { said, task }, shape))
    }

    /// A port for a session, at this place of its route. `number` is one that no other session of the engine has; `beside` is the
    /// session whose cache is meant where this one's is to be a fork.
    pub(super) fn port(&self, hop: usize, number: u64, beside: Option<u64>) -> OwnPort {
        let (commands, mut from_session) = mpsc::channel(REPLIES_MAX);
        let (to_session, replies) = mpsc::channel(REPLIES_MAX);
        let said = self.said.clone();
        let _ = said.send(Said::Here { port: number, beside, replies: to_session });
        tokio::spawn(async move {
            while let Some(command) = from_session.recv().await {
                let _ = said.send(Said::Command { port: number, command });
            }
            let _ = said.send(Said::Gone { port: number });
        });
        OwnPort { hop, commands, replies }
    }

    /// Whether the engine has ended.
    pub(super) fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits until the engine is gone. Its sessions are closed already.
    pub(super) async fn stop(self) {
        let Self { said, task } = self;
        drop(said);
        let _ = task.await;
    }
}

async fn serve(mut heard: UnboundedReceiver<Said>, commands: Sender<StageCommand>, mut replies: Receiver<StageReply>) {
    // The engine's queue is short and it may be busy: what waits for it must not keep its replies from being read.
    let (to_engine, mut waiting) = mpsc::unbounded_channel();
    let feeder = tokio::spawn(async move {
        while let Some(command) = waiting.recv().await {
            if commands.send(command).await.is_err() {
                return;
            }
        }
    });
    let mut hub = Hub::default();
    loop {
        tokio::select! {
            said = heard.recv() => match said {
                Some(said) => hub.hear(said),
                None => break,
            },
            reply = replies.recv() => match reply {
                Some(reply) => hub.answer(reply),
                None => break,
            },
        }
        hub.next_batch();
        hub.to_engine.drain(..).for_each(|command| drop(to_engine.send(command)));
    }
    drop(to_engine);
    let _ = feeder.await;
    // The engine's task ends once nobody listens.
    drop(replies);
}

impl Hub {
    fn hear(&mut self, said: Said) {
        match said {
            Said::Here { port, beside, replies } => {
                self.ports.insert(port, Port { replies, cache: None, beside });
            }
            Said::Command { port, command } => self.command(port, command),
            Said::Gone { port } => {
                self.close(port);
                self.ports.remove(&port);
                self.waiting.retain(|(of, ..)| *of != port);
            }
        }
    }

    fn command(&mut self, number: u64, command: StageCommand) {
        let Some(port) = self.ports.get_mut(&number) else { return };
        match command {
            StageCommand::Open { cache, positions } => {
                if let Some(id) = self.allot(number, cache) {
                    self.to_engine.push(StageCommand::Open { cache: id, positions });
                }
            }
            StageCommand::Close { .. } => self.close(number),
            StageCommand::Fork { to, positions, .. } => {
                let beside = port.beside;
                let from = beside.and_then(|other| self.ports.get(&other)?.cache);
                match from {
                    Some((_, from)) => {
                        if let Some(to) = self.allot(number, to) {
                            self.to_engine.push(StageCommand::Fork { from, to, positions });
                        }
                    }
                    None => {
                        self.reply(number, StageReply::Opened { cache: to, result: Err(StageError::UnknownCache(to)) })
                    }
                }
            }
            StageCommand::Row { cache, row } => match port.cache {
                Some((_, id)) => self.to_engine.push(StageCommand::Row { cache: id, row }),
                None => {
                    let result = Err(StageError::UnknownCache(cache));
                    self.reply(number, StageReply::Row { cache, row, result });
                }
            },
            // Sessions of a gateway are not put aside.
            StageCommand::Save { cache, .. } => {
                self.reply(number, StageReply::Saved { cache, result: Err(StageError::UnknownCache(cache)) });
            }
            StageCommand::Restore { cache, .. } => {
                self.reply(number, StageReply::Restored { cache, result: Err(StageError::UnknownCache(cache)) });
            }
            StageCommand::Export { cache, .. } => {
                self.reply(number, StageReply::Exported { cache, result: Err(StageError::UnknownCache(cache)) });
            }
            StageCommand::Import { cache, .. } => {
                self.reply(number, StageReply::Imported { cache, result: Err(StageError::UnknownCache(cache)) });
            }
            StageCommand::Forward { batch, mut steps } => match port.cache {
                Some((_, id)) => {
                    steps.iter_mut().for_each(|step| step.cache = id);
                    self.waiting.push_back((number, batch, steps));
                }
                None => {
                    let results = steps.iter().map(|step| Err(StageError::UnknownCache(step.cache))).collect();
                    self.reply(number, StageReply::Forwarded { batch, results, compute_us: 0 });
                }
            },
        }
    }

    /// A cache of the engine's for a port, in the place of the one that it had.
    fn allot(&mut self, number: u64, name: CacheId) -> Option<CacheId> {
        self.close(number);
        let after = self.last;
        let id = (1..=u16::MAX).map(|n| after.wrapping_add(n)).find(|id| !self.taken.contains(id))?;
        self.taken.insert(id);
        self.last = id;
        self.ports.get_mut(&number)?.cache = Some((name, CacheId(id)));
        Some(CacheId(id))
    }

    /// Whoever does not take it has more waiting than it can have asked for, or is gone: its end of the port closes.
    fn reply(&mut self, number: u64, reply: StageReply) {
        let taken = self.ports.get(&number).is_none_or(|port| port.replies.try_send(reply).is_ok());
        if !taken {
            self.hear(Said::Gone { port: number });
        }
    }

    fn close(&mut self, number: u64) {
        let cache = self.ports.get_mut(&number).and_then(|port| port.cache.take());
        if let Some((_, id)) = cache {
            self.taken.remove(&id.0);
            self.to_engine.push(StageCommand::Close { cache: id });
        }
    }

    /// What waits, one step of each session at most, as one command: the engine runs it together where it can.
    fn next_batch(&mut self) {
        if self.running.is_some() || self.waiting.is_empty() {
            return;
        }
        let (mut steps, mut shares, mut later) = (Vec::new(), Shares::new(), VecDeque::new());
        for (port, batch, mut its) in self.waiting.drain(..) {
            if shares.iter().any(|(other, ..)| *other == port) {
                later.push_back((port, batch, its));
            } else {
                shares.push((port, batch, its.len()));
                steps.append(&mut its);
            }
        }
        self.waiting = later;
        self.batches += 1;
        self.running = Some((self.batches, shares));
        self.to_engine.push(StageCommand::Forward { batch: self.batches, steps });
    }

    fn answer(&mut self, reply: StageReply) {
        match reply {
            StageReply::Opened { cache, result } => self.tell(cache, |cache| StageReply::Opened { cache, result }),
            StageReply::Row { cache, row, result } => self.tell(cache, |cache| StageReply::Row { cache, row, result }),
            StageReply::Forwarded { batch, results, compute_us } => {
                let Some((_, shares)) = self.running.take_if(|(running, _)| *running == batch) else { return };
                let mut results = results.into_iter();
                for (port, batch, count) in shares {
                    let results = results.by_ref().take(count).collect();
                    self.reply(port, StageReply::Forwarded { batch, results, compute_us });
                }
            }
            StageReply::Lost { reason } => {
                (self.running, self.waiting) = (None, VecDeque::new());
                self.taken.clear();
                self.ports.values_mut().for_each(|port| port.cache = None);
                for number in self.ports.keys().copied().collect::<Vec<_>>() {
                    self.reply(number, StageReply::Lost { reason: reason.clone() });
                }
            }
            // Nobody here has asked for them.
            StageReply::Saved { .. } | StageReply::Restored { .. } => {}
            StageReply::Exported { .. } | StageReply::Imported { .. } | StageReply::Ready(_) => {}
        }
    }

    fn tell(&mut self, id: CacheId, reply: impl FnOnce(CacheId) -> StageReply) {
        let holder = self.ports.iter().find_map(|(number, port)| match port.cache {
            Some((name, cache)) if cache == id => Some((*number, name)),
            _ => None,
        });
        if let Some((number, name)) = holder {
            self.reply(number, reply(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::{Hidden, Input, Output, Rows, Tree};

    use super::*;

    fn hub(sessions: u64) -> (Hub, Vec<Receiver<StageReply>>) {
        let mut hub = Hub::default();
        let replies = (0..sessions).map(|port| {
            let (replies, heard) = mpsc::channel(REPLIES_MAX);
            hub.hear(Said::Here { port, beside: None, replies });
            hub.hear(Said::Command { port, command: StageCommand::Open { cache: CacheId(0), positions: 8 } });
            heard
        });
        let replies = replies.collect();
        (hub, replies)
    }

    fn forward(hub: &mut Hub, port: u64, batch: u64) {
        let input = Input::Tokens(vec![batch as u32]);
        let step = Step { cache: CacheId(0), start: 0, input, rows: Rows::Last, top: 0, tree: Tree::chain() };
        hub.hear(Said::Command { port, command: StageCommand::Forward { batch, steps: vec![step] } });
    }

    fn output(value: f32) -> Result<Output, StageError> {
        Ok(Output::Hidden(Hidden(vec![value])))
    }

    #[test]
    fn sessions_that_wait_share_a_batch_and_each_gets_its_own() {
        let (mut hub, mut replies) = hub(3);
        assert_eq!(hub.to_engine.len(), 3, "a cache for each");
        hub.to_engine.clear();
        forward(&mut hub, 0, 7);
        hub.next_batch();
        [(1, 1), (2, 5), (1, 2)].into_iter().for_each(|(port, batch)| forward(&mut hub, port, batch));
        hub.next_batch();
        assert_eq!(hub.to_engine.len(), 1, "one batch at a time");
        hub.answer(StageReply::Forwarded { batch: 1, results: vec![output(0.5)], compute_us: 1 });
        hub.next_batch();
        let StageCommand::Forward { batch: 2, steps } = &hub.to_engine[1] else { panic!("{:?}", hub.to_engine) };
        let caches: Vec<u16> = steps.iter().map(|step| step.cache.0).collect();
        assert_eq!(caches, [2, 3], "a session's second step waits for its first");
        hub.hear(Said::Gone { port: 2 });
        hub.answer(StageReply::Forwarded { batch: 2, results: vec![output(1.0), output(2.0)], compute_us: 1 });
        let got = |replies: &mut Receiver<StageReply>| match replies.try_recv() {
            Ok(StageReply::Forwarded { batch, results, .. }) => Some((batch, results)),
            _ => None,
        };
        assert_eq!(got(&mut replies[0]), Some((7, vec![output(0.5)])));
        assert_eq!(got(&mut replies[1]), Some((1, vec![output(1.0)])));
        assert_eq!(got(&mut replies[2]), None, "it is gone");
        assert!(hub.to_engine.contains(&StageCommand::Close { cache: CacheId(3) }));
    }

    #[test]
    fn a_session_begins_with_anothers_cache_and_only_with_one_that_is_there() {
        let (mut hub, _replies) = hub(2);
        let fork = |positions| StageCommand::Fork { from: CacheId(0), to: CacheId(0), positions };
        for (port, beside) in [(7, Some(1)), (8, Some(5)), (9, None)] {
            let (replies, mut heard) = mpsc::channel(REPLIES_MAX);
            hub.hear(Said::Here { port, beside, replies });
            hub.to_engine.clear();
            hub.hear(Said::Command { port, command: fork(6) });
            if port == 7 {
                let forked = StageCommand::Fork { from: CacheId(2), to: CacheId(3), positions: 6 };
                assert_eq!(hub.to_engine, [forked], "the cache that the other has in the engine");
                hub.answer(StageReply::Opened { cache: CacheId(3), result: Ok(()) });
                assert!(matches!(heard.try_recv(), Ok(StageReply::Opened { cache: CacheId(0), result: Ok(()) })));
            } else {
                assert!(hub.to_engine.is_empty());
                assert!(matches!(heard.try_recv(), Ok(StageReply::Opened { result: Err(_), .. })));
            }
        }
    }

    #[test]
    fn caches_are_given_in_turn_and_a_lost_engine_is_everybodys() {
        let (mut hub, mut replies) = hub(2);
        hub.hear(Said::Gone { port: 0 });
        let (again, mut heard) = mpsc::channel(REPLIES_MAX);
        hub.hear(Said::Here { port: 9, beside: None, replies: again });
        hub.hear(Said::Command { port: 9, command: StageCommand::Open { cache: CacheId(4), positions: 8 } });
        assert_eq!(
            hub.to_engine.last(),
            Some(&StageCommand::Open { cache: CacheId(3), positions: 8 }),
            "not the one that was just closed"
        );
        hub.answer(StageReply::Opened { cache: CacheId(1), result: Ok(()) });
        assert!(heard.try_recv().is_err(), "a late reply is nobody's");
        hub.answer(StageReply::Opened { cache: CacheId(3), result: Ok(()) });
        assert!(matches!(heard.try_recv(), Ok(StageReply::Opened { cache: CacheId(4), result: Ok(()) })));
        hub.answer(StageReply::Lost { reason: "gone".into() });
        assert!(matches!(heard.try_recv(), Ok(StageReply::Lost { .. })));
        assert!(matches!(replies[1].try_recv(), Ok(StageReply::Lost { .. })));
        forward(&mut hub, 9, 1);
        hub.next_batch();
        let Ok(StageReply::Forwarded { results, .. }) = heard.try_recv() else { panic!("no answer") };
        assert_eq!(results, [Err(StageError::UnknownCache(CacheId(0)))]);
    }
}
