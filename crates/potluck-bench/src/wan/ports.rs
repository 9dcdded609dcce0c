//! One own stage for several sessions: each has a port, and steps that wait share a batch.

use std::collections::VecDeque;

use potluck_core::{CacheId, StageCommand, StageReply, Step};
use potluck_net::{OwnPort, StagePort};
use tokio::sync::mpsc::{self, Sender};

/// Replies that may wait for a session.
const REPLIES_MAX: usize = 64;

/// What waits for the stage, and what runs in it. Session `n` has the cache `n` there.
struct Hub {
    ports: Vec<Sender<StageReply>>,
    waiting: VecDeque<(usize, u64, Vec<Step>)>,
    /// Whose steps run: session, its own number of the batch, how many.
    running: Option<Vec<(usize, u64, usize)>>,
    batches: u64,
}

/// A port for each of `sessions` sessions, at this place of their routes.
pub(crate) fn share(stage: StagePort, hop: usize, sessions: u16) -> Vec<OwnPort> {
    let StagePort { commands, mut replies } = stage;
    let (said, mut heard) = mpsc::unbounded_channel();
    let (mut own, mut ports) = (Vec::new(), Vec::new());
    for session in 0..usize::from(sessions) {
        let (to_hub, mut from_session) = mpsc::channel(REPLIES_MAX);
        let (to_session, from_hub) = mpsc::channel(REPLIES_MAX);
        ports.push(to_session);
        own.push(OwnPort { hop, commands: to_hub, replies: from_hub });
        let said = said.clone();
        tokio::spawn(async move {
            while let Some(command) = from_session.recv().await {
                if said.send((session, command)).is_err() {
                    return;
                }
            }
        });
    }
    drop(said);
    // The stage's queue is short and it may be busy: what waits for it must not keep its replies from being read.
    let (to_stage, mut queued) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(command) = queued.recv().await {
            if commands.send(command).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        let mut hub = Hub { ports, waiting: VecDeque::new(), running: None, batches: 0 };
        loop {
            let command = tokio::select! {
                said = heard.recv() => match said {
                    Some((session, command)) => hub.hear(session, command),
                    None => return,
                },
                reply = replies.recv() => match reply {
                    Some(reply) => hub.answer(reply),
                    None => return,
                },
            };
            for command in command.into_iter().chain(hub.next_batch()) {
                let _ = to_stage.send(command);
            }
        }
    });
    own
}

impl Hub {
    /// What of it goes to the stage at once.
    fn hear(&mut self, session: usize, command: StageCommand) -> Option<StageCommand> {
        let cache = CacheId(session as u16);
        match command {
            StageCommand::Forward { batch, mut steps } => {
                steps.iter_mut().for_each(|step| step.cache = cache);
                self.waiting.push_back((session, batch, steps));
                None
            }
            StageCommand::Open { positions, .. } => Some(StageCommand::Open { cache, positions }),
            StageCommand::Close { .. } => Some(StageCommand::Close { cache }),
            StageCommand::Row { row, .. } => Some(StageCommand::Row { cache, row }),
            // No session of a measurement shares a prefix with another, nor is one put aside.
            StageCommand::Fork { .. }
            | StageCommand::Save { .. }
            | StageCommand::Restore { .. }
            | StageCommand::Export { .. }
            | StageCommand::Import { .. } => None,
        }
    }

    fn answer(&mut self, reply: StageReply) -> Option<StageCommand> {
        let session = match &reply {
            StageReply::Opened { cache, .. } | StageReply::Row { cache, .. } => Some(usize::from(cache.0)),
            _ => None,
        };
        // A session's own cache is always its first.
        match reply {
            StageReply::Opened { result, .. } => self.tell(session?, StageReply::Opened { cache: CacheId(0), result }),
            StageReply::Row { row, result, .. } => {
                self.tell(session?, StageReply::Row { cache: CacheId(0), row, result });
            }
            StageReply::Forwarded { results, compute_us, .. } => {
                let mut results = results.into_iter();
                for (session, batch, count) in self.running.take()? {
                    let results = results.by_ref().take(count).collect();
                    self.tell(session, StageReply::Forwarded { batch, results, compute_us });
                }
            }
            StageReply::Lost { reason } => {
                for session in 0..self.ports.len() {
                    self.tell(session, StageReply::Lost { reason: reason.clone() });
                }
            }
            // Nobody here has asked for the others.
            _ => {}
        }
        None
    }

    fn tell(&self, session: usize, reply: StageReply) {
        if let Some(port) = self.ports.get(session) {
            // Who is gone needs no answer.
            let _ = port.try_send(reply);
        }
    }

    /// One step of each session that waits, as one command, where none runs.
    fn next_batch(&mut self) -> Option<StageCommand> {
        if self.running.is_some() || self.waiting.is_empty() {
            return None;
        }
        let (mut steps, mut shares, mut later) = (Vec::new(), Vec::<(usize, u64, usize)>::new(), VecDeque::new());
        for (session, batch, mut its) in self.waiting.drain(..) {
            if shares.iter().any(|(other, ..)| *other == session) {
                later.push_back((session, batch, its));
            } else {
                shares.push((session, batch, its.len()));
                steps.append(&mut its);
            }
        }
        self.waiting = later;
        self.batches += 1;
        self.running = Some(shares);
        Some(StageCommand::Forward { batch: self.batches, steps })
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::{Hidden, Input, Output, Rows, Tree};

    use super::*;

    fn forward(batch: u64) -> StageCommand {
        let input = Input::Tokens(vec![batch as u32]);
        StageCommand::Forward {
            batch,
            steps: vec![Step { cache: CacheId(0), start: 0, input, rows: Rows::Last, top: 1, tree: Tree::chain() }],
        }
    }

    #[test]
    fn steps_that_wait_share_a_batch_and_each_session_gets_its_own() {
        let (first, mut replies) = mpsc::channel(4);
        let (second, mut others) = mpsc::channel(4);
        let mut hub = Hub { ports: vec![first, second], waiting: VecDeque::new(), running: None, batches: 0 };
        for (session, batch) in [(0, 7), (1, 5), (0, 8)] {
            assert!(hub.hear(session, forward(batch)).is_none());
        }
        let Some(StageCommand::Forward { steps, .. }) = hub.next_batch() else { panic!("no batch") };
        assert_eq!(steps.iter().map(|step| step.cache.0).collect::<Vec<_>>(), [0, 1], "a session's next step waits");
        assert!(hub.next_batch().is_none(), "one batch at a time");
        let output = |value| Ok(Output::Hidden(Hidden(vec![value])));
        hub.answer(StageReply::Forwarded { batch: 1, results: vec![output(0.5), output(1.5)], compute_us: 9 });
        let got = |reply| match reply {
            StageReply::Forwarded { batch, results, .. } => (batch, results),
            other => panic!("{other:?}"),
        };
        assert_eq!(got(replies.try_recv().unwrap()), (7, vec![output(0.5)]));
        assert_eq!(got(others.try_recv().unwrap()), (5, vec![output(1.5)]));
        assert!(matches!(hub.next_batch(), Some(StageCommand::Forward { batch: 2, .. })));
    }
}
