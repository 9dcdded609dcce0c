//! One engine on this machine as a chain: `--local`.

use std::{collections::VecDeque, time::Duration};

use potluck_chain::{Answer, Deadlines, SessionError, Submission};
use potluck_core::{Account, CacheId, Hidden, Input, LayerRange, Output, StageCommand, StageError, StageReply, Step};
use potluck_engine::EngineProcess;
use tokio::sync::mpsc;

use crate::{Chain, ChainShape, StageAccount};

/// Commands, and replies, that may wait for the other side.
const QUEUE: usize = 64;

/// One engine child that holds the whole model and takes token ids.
#[derive(Debug)]
pub struct LocalChain {
    commands: mpsc::Sender<StageCommand>,
    replies: mpsc::Receiver<StageReply>,
    shape: ChainShape,
    layers: LayerRange,
    deadlines: Deadlines,
    sequence: u32,
    pending: VecDeque<(u32, u32, u16)>,
    account: Account,
}

const CACHE: CacheId = CacheId(0);

impl LocalChain {
    /// Opens a session of at most `positions` positions in an engine that has loaded. Needs a tokio runtime: a task
    /// carries the messages until the chain is closed or dropped, which ends the engine.
    ///
    /// # Errors
    /// `Own` where the engine refuses, `Deadline` where it does not answer in time.
    pub async fn open(engine: EngineProcess, positions: u32, deadlines: Deadlines) -> Result<Self, SessionError> {
        let (commands, to_engine) = mpsc::channel(QUEUE);
        let (from_engine, replies) = mpsc::channel(QUEUE);
        let shape = engine.shape().clone();
        // An engine that ends for good closes the channel: the next wait says so.
        tokio::spawn(async move {
            if let Err(error) = engine.run(to_engine, from_engine).await {
                tracing::warn!(%error, "the local engine ended");
            }
        });
        Self::over((commands, replies), (shape.spec.layers, shape.vocabulary), positions, deadlines).await
    }

    /// The same, over a way to an engine that others use, too, with all layers of its model and so many tokens in its vocabulary.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn over(
        (commands, replies): (mpsc::Sender<StageCommand>, mpsc::Receiver<StageReply>),
        (layers, vocabulary): (LayerRange, u32),
        positions: u32,
        deadlines: Deadlines,
    ) -> Result<Self, SessionError> {
        let shape = ChainShape { vocabulary, positions };
        let (pending, account) = (VecDeque::new(), Account::default());
        let mut chain = Self { commands, replies, shape, layers, deadlines, sequence: 0, pending, account };
        chain.send(StageCommand::Open { cache: CACHE, positions }).await?;
        loop {
            match chain.receive("the engine was opening a cache", "open_timeout", deadlines.open).await? {
                StageReply::Opened { result, .. } => return result.map(|()| chain).map_err(|e| own(layers, e)),
                StageReply::Ready(_) => {}
                other => return Err(chain.unexpected(&other)),
            }
        }
    }

    async fn send(&mut self, command: StageCommand) -> Result<(), SessionError> {
        self.commands.send(command).await.map_err(|_| self.lost())
    }

    async fn receive(
        &mut self,
        waiting: &str,
        setting: &'static str,
        limit: Duration,
    ) -> Result<StageReply, SessionError> {
        match tokio::time::timeout(limit, self.replies.recv()).await {
            Ok(Some(StageReply::Lost { reason })) => Err(own(self.layers, StageError::Lost(reason))),
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(self.lost()),
            Err(_) => Err(SessionError::Deadline { waiting: waiting.to_owned(), seconds: limit.as_secs(), setting }),
        }
    }

    fn lost(&self) -> SessionError {
        own(self.layers, StageError::Lost("it does not start again".into()))
    }

    fn unexpected(&self, reply: &StageReply) -> SessionError {
        let kind = match reply {
            StageReply::Opened { .. } => "opened",
            StageReply::Forwarded { .. } => "forwarded",
            StageReply::Row { .. } => "row",
            StageReply::Saved { .. } | StageReply::Restored { .. } => "saved",
            StageReply::Exported { .. } | StageReply::Imported { .. } => "exported",
            StageReply::Lost { .. } | StageReply::Ready(_) => "state",
        };
        own(self.layers, StageError::Engine(format!("a {kind} reply was not due")))
    }
}

fn own(layers: LayerRange, error: StageError) -> SessionError {
    SessionError::Own { layers: layers.to_string(), error }
}

impl Chain for LocalChain {
    fn shape(&self) -> ChainShape {
        self.shape
    }

    fn takes_drafts(&self) -> bool {
        true
    }

    async fn submit(&mut self, submission: Submission) -> Result<u32, SessionError> {
        let Submission { start, tokens, rows, top, tree, fence: _ } = submission;
        let count = tokens.len() as u16;
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let steps = vec![Step { cache: CACHE, start, input: Input::Tokens(tokens), rows, top, tree }];
        self.send(StageCommand::Forward { batch: sequence.into(), steps }).await?;
        self.pending.push_back((sequence, start, count));
        Ok(sequence)
    }

    async fn answer(&mut self) -> Result<Answer, SessionError> {
        let layers = self.layers;
        let failed = |error| own(layers, error);
        let (batch, results, compute_us) =
            match self.receive("a step was under way", "step_timeout", self.deadlines.step).await? {
                StageReply::Forwarded { batch, results, compute_us } => (batch, results, compute_us),
                other => return Err(self.unexpected(&other)),
            };
        let result = results.into_iter().next().unwrap_or_else(|| Err(StageError::Engine("no result".into())));
        match (self.pending.pop_front(), result.map_err(failed)?) {
            (Some((sequence, start, count)), Output::Logits(rows)) if u64::from(sequence) == batch => {
                self.account.steps += 1;
                self.account.positions += u64::from(count);
                self.account.compute_us += compute_us;
                Ok(Answer { sequence, start, count, rows, skipped: false })
            }
            _ => Err(failed(StageError::Engine(format!("batch {batch} was not due, or gave no logits")))),
        }
    }

    async fn row(&mut self, _sequence: u32, row: u16) -> Result<Hidden, SessionError> {
        self.send(StageCommand::Row { cache: CACHE, row }).await?;
        let step = self.deadlines.step;
        match self.receive("a row was asked for", "step_timeout", step).await? {
            StageReply::Row { result, .. } => result.map_err(|error| own(self.layers, error)),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn accounts(&mut self) -> Result<Option<Vec<StageAccount>>, SessionError> {
        Ok(Some(vec![StageAccount::new(None, self.layers, self.account)]))
    }

    fn bytes_written(&self) -> u64 {
        0
    }

    async fn let_go(&mut self) {
        // The engine ends with its channels.
        self.commands = mpsc::channel(1).0;
        self.replies.close();
    }

    async fn close(mut self) {
        // The engine ends with its channels; a cache that it no longer has needs no closing.
        let _ = self.send(StageCommand::Close { cache: CACHE }).await;
    }
}
