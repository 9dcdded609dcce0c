//! What the generation loop needs of whatever runs the model.

use std::sync::Arc;

use potluck_chain::{Answer, SessionError, Submission, chunks::Place};
use potluck_core::{Account, Hidden};
use tokio::sync::watch;

use crate::{RepairTimes, StageAccount};

/// What a chain can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainShape {
    /// Tokens of the vocabulary.
    pub vocabulary: u32,
    /// Positions that the session was opened for.
    pub positions: u32,
}

/// A model that is ready to run for one session: peers on a route, or one engine.
///
/// Steps are answered in order. What the caches hold at or after a step's `start` is dropped first.
#[expect(async_fn_in_trait, reason = "used by type, on one thread; no bound on the futures is wanted")]
pub trait Chain {
    /// What it can take.
    fn shape(&self) -> ChainShape;

    /// Sends tokens, and returns the step's number. Several steps may be in flight.
    ///
    /// # Errors
    /// See [`SessionError`].
    async fn submit(&mut self, submission: Submission) -> Result<u32, SessionError>;

    /// Whether all of it takes trees of drafts, and skips what is fenced off.
    fn takes_drafts(&self) -> bool;

    /// Rows of `top` largest logits each, or whole ones where it is 0, that one answer can hold.
    fn rows_max(&self, _top: u16) -> usize {
        usize::MAX
    }

    /// The answer to the oldest step that has none yet. Dropping the future loses nothing.
    ///
    /// # Errors
    /// See [`SessionError`]; there is a deadline.
    async fn answer(&mut self) -> Result<Answer, SessionError>;

    /// A whole row of logits of the step that was answered last; `row` counts its positions.
    ///
    /// # Errors
    /// See [`SessionError`]; there is a deadline.
    async fn row(&mut self, sequence: u32, row: u16) -> Result<Hidden, SessionError>;

    /// What each stage has done for the session so far, in the route's order; none where a peer of it keeps no accounts.
    ///
    /// # Errors
    /// See [`SessionError`]; there is a deadline.
    async fn accounts(&mut self) -> Result<Option<Vec<StageAccount>>, SessionError>;

    /// Its stages, in order, as they are reached now: prompts are cut for them. None where they are not known, or are one
    /// machine's: prompts go in the largest steps.
    fn places(&self) -> Vec<Place> {
        Vec::new()
    }

    /// Asks for the accounts without waiting for them, where every stage keeps them and no question is open: they come while
    /// answers are awaited, for [`told_accounts`](Self::told_accounts).
    ///
    /// # Errors
    /// See [`SessionError`].
    fn ask_accounts(&mut self) -> Result<(), SessionError> {
        Ok(())
    }

    /// The accounts that came last, once, of those that [`ask_accounts`](Self::ask_accounts) has asked for; none where none have come
    /// yet.
    ///
    /// # Errors
    /// See [`SessionError`].
    async fn told_accounts(&mut self) -> Result<Option<Vec<Account>>, SessionError> {
        Ok(None)
    }

    /// How other peers took the places of those that it had lost, since this was asked last.
    fn take_repairs(&mut self) -> Vec<RepairTimes> {
        Vec::new()
    }

    /// Bytes written on all hops of the route so far, headers included: for `bytes_per_position`.
    fn bytes_written(&self) -> u64;

    /// Lets go of all that it has, connections and engines: it was lost, and what follows it may need them. Only `close` may come after.
    async fn let_go(&mut self);

    /// Ends the session everywhere.
    async fn close(self);
}

/// Ends an answer from outside: Ctrl-C, a closed connection. Clones share it.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<watch::Sender<bool>>);

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}

impl Cancel {
    /// Not cancelled yet.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Ends the answer: no further step is sent.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// True once cancelled.
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once cancelled.
    pub async fn cancelled(&self) {
        // The sender is alive as long as `self`: waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|cancelled| *cancelled).await;
    }
}
