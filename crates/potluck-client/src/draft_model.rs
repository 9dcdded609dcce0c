//! A small model on the client's machine that guesses what the large one will say.

use std::time::{Duration, Instant};

use potluck_chain::{SessionError, Submission, sample::Sampler};
use potluck_core::{Rows, bounds};

use crate::{Chain, LocalChain};

/// Guesses that one forward gives at most.
const GUESSES_MAX: usize = 8;

/// Logits that a forward is asked for: enough for what sampling keeps.
const TOP: u16 = 64;

/// A draft model: it has the target's vocabulary, and a cache of its own.
#[derive(Debug)]
pub struct DraftModel {
    chain: LocalChain,
    /// What its cache holds once every step in flight has run.
    held: Vec<u32>,
    /// Steps whose answers nobody has taken.
    unanswered: usize,
    /// Forwards, and the time that they took, since it was asked last.
    spent: (usize, Duration),
}

impl DraftModel {
    /// Over an engine that has loaded it whole.
    pub fn new(chain: LocalChain) -> Self {
        Self { chain, held: Vec::new(), unanswered: 0, spent: (0, Duration::ZERO) }
    }

    /// Positions that its cache holds.
    pub(crate) fn positions(&self) -> usize {
        self.chain.shape().positions as usize
    }

    /// Drops all that its cache holds.
    pub(crate) fn forget(&mut self) {
        self.held.clear();
    }

    /// Forwards since this was asked last, and the seconds that they took.
    pub(crate) fn spent(&mut self) -> (usize, f64) {
        let (forwards, time) = std::mem::take(&mut self.spent);
        (forwards, time.as_secs_f64())
    }

    /// Tokens of this text, its last one left out, that it has not read yet.
    pub(crate) fn unread(&self, text: &[u32]) -> usize {
        text.len().saturating_sub(1).min(self.positions()).saturating_sub(self.common(text))
    }

    /// Evaluates all but the last of these tokens, in steps of `chunk`, so that a guess takes one forward. Dropping the future loses
    /// nothing: what was evaluated is kept.
    pub(crate) async fn read(&mut self, text: &[u32], chunk: usize) -> Result<(), SessionError> {
        self.drain().await?;
        let known = self.common(text).min(text.len().saturating_sub(1));
        self.held.truncate(known);
        let all = text.len().saturating_sub(1).min(self.positions());
        while self.held.len() < all {
            let end = all.min(self.held.len() + chunk.clamp(1, bounds::STEP_POSITIONS_MAX));
            self.submit(&text[self.held.len()..end], Rows::None).await?;
            self.drain().await?;
        }
        Ok(())
    }

    /// What may follow the text, the likeliest first, with its share: as `sampler` would choose at that position if this
    /// were the target. None where the cache has no room.
    ///
    /// # Errors
    /// The draft model is lost: answers go on without it.
    pub(crate) async fn guesses(
        &mut self,
        text: &[u32],
        path: &[u32],
        sampler: &Sampler,
        now: fn() -> Instant,
    ) -> Result<Vec<(u32, f32)>, SessionError> {
        let tokens = [text, path].concat();
        if tokens.is_empty() || tokens.len() > self.positions() {
            return Ok(Vec::new());
        }
        // What it has not read yet of the text is read once, and says nothing about what a forward takes; another branch does.
        if self.common(&tokens) + 1 < text.len() {
            self.read(text, bounds::STEP_POSITIONS_MAX).await?;
        }
        self.drain().await?;
        let begun = now();
        let known = self.common(&tokens).min(tokens.len() - 1);
        self.held.truncate(known);
        self.submit(&tokens[known..], Rows::Last).await?;
        let row = self.chain.answer().await?.rows.pop();
        self.unanswered -= 1;
        self.spent = (self.spent.0 + 1, self.spent.1 + (now() - begun));
        Ok(row.map_or(Vec::new(), |row| sampler.guesses(tokens.len() as u32, &row, GUESSES_MAX)))
    }

    fn common(&self, tokens: &[u32]) -> usize {
        self.held.iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }

    async fn submit(&mut self, tokens: &[u32], rows: Rows) -> Result<(), SessionError> {
        let start = self.held.len() as u32;
        self.chain.submit(Submission::chain(start, tokens.to_vec(), rows, TOP)).await?;
        self.held.extend_from_slice(tokens);
        self.unanswered += 1;
        Ok(())
    }

    /// Takes the answers that a dropped future left.
    async fn drain(&mut self) -> Result<(), SessionError> {
        while self.unanswered > 0 {
            self.chain.answer().await?;
            self.unanswered -= 1;
        }
        Ok(())
    }
}
