//! The seam between Potluck and the engines: a layer range that is loaded and can run.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{CacheId, LayerRange, ModelId, SessionKey, Tree};

/// Which part of which model a stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StageSpec {
    /// The model.
    pub model: ModelId,
    /// Its layers.
    pub layers: LayerRange,
    /// Head of the chain: takes tokens and looks their embedding up itself.
    pub head: bool,
    /// Tail of the chain: applies the final norm and the output projection, and answers with logits.
    pub tail: bool,
}

/// What a loaded stage is like. The peer and the client size their buffers by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageShape {
    /// Which part of which model.
    pub spec: StageSpec,
    /// Values in one hidden state.
    pub width: u32,
    /// Tokens of the model's vocabulary.
    pub vocabulary: u32,
    /// Sessions that the stage can hold caches for at once.
    pub caches: u16,
    /// Positions that one session's cache holds.
    pub context: u32,
    /// Bytes of cache that one position takes in this stage.
    pub cache_bytes_per_position: u64,
    /// Bytes of weights in memory.
    pub weight_bytes: u64,
    /// True if the stage runs each session's step as a batch of its own (`--exact`).
    pub exact: bool,
}

/// Hidden states, row-major `[positions, width]`.
///
/// Serialised as little-endian bytes, so that a frame is one copy and not one call per value.
#[derive(Clone, Default, PartialEq)]
pub struct Hidden(pub Vec<f32>);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the values: hidden states can be read back to tokens.
        write!(f, "Hidden([{} values])", self.0.len())
    }
}

impl Serialize for Hidden {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if cfg!(target_endian = "little") {
            serializer.serialize_bytes(bytemuck::cast_slice(&self.0))
        } else {
            let bytes: Vec<u8> = self.0.iter().flat_map(|value| value.to_le_bytes()).collect();
            serializer.serialize_bytes(&bytes)
        }
    }
}

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = <&serde_bytes::Bytes>::deserialize(deserializer)?;
        if bytes.len() % 4 != 0 {
            return Err(serde::de::Error::custom("hidden states are not whole f32 values"));
        }
        Ok(Self(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
    }
}

/// What enters a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// Token ids, one a position: the head of the chain only.
    Tokens(Vec<u32>),
    /// Hidden states, `[positions, width]`: every other stage.
    Hidden(Hidden),
}

/// For which of a step's positions the tail answers with logits. Stages before the tail ignore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rows {
    /// None: a prefill chunk that is not the last.
    None,
    /// The last position only.
    Last,
    /// Every position: drafts to verify, or scoring a text.
    All,
    /// No logits: one row of the model's width, the mean over the step's positions of the hidden states after the last norm.
    /// An embedding is made of it. At most [`bounds::MEAN_POSITIONS_MAX`](crate::bounds::MEAN_POSITIONS_MAX) positions.
    Mean,
}

/// One batch of consecutive positions of a session, sent down a route.
///
/// Whatever the cache holds at or after `start` is dropped first; so a step may be sent again, and a rejected draft
/// costs nothing to undo.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The session's cache in this stage.
    pub cache: CacheId,
    /// Position of the first row.
    pub start: u32,
    /// What enters: its length gives the positions, at most [`STEP_POSITIONS_MAX`](crate::bounds::STEP_POSITIONS_MAX).
    pub input: Input,
    /// What the tail is to answer.
    pub rows: Rows,
    /// How many of the largest logits of each row the tail returns; 0: the whole row.
    pub top: u16,
    /// How the rows hang together: a chain, or drafts of which some are alternatives. Afterwards the cache holds the first path of a
    /// tree, and none of the rest.
    pub tree: Tree,
}

impl Step {
    /// Positions in the step, given the model's width. Zero where the input is not a whole number of rows.
    pub fn positions(&self, width: u32) -> usize {
        match &self.input {
            Input::Tokens(tokens) => tokens.len(),
            Input::Hidden(hidden) if width > 0 && hidden.0.len().is_multiple_of(width as usize) => {
                hidden.0.len() / width as usize
            }
            Input::Hidden(_) => 0,
        }
    }
}

/// One row of logits, as much of it as was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Logits {
    /// The largest, in falling order (ties: lower id first), and the log of the sum of all exponentials of the row.
    Top {
        /// `(token, logit)`.
        largest: Vec<(u32, f32)>,
        /// `ln(sum(exp(logit)))` over the whole row, summed in f64 in order of token id.
        log_sum_exp: f32,
    },
    /// The whole row, in order of token id.
    Whole(Hidden),
}

/// What a step gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Output {
    /// Hidden states `[positions, width]`, before the final norm: what the next stage takes.
    Hidden(Hidden),
    /// At the tail: a row for each position that was asked for.
    Logits(Vec<Logits>),
}

/// Bytes of what a cache holds that are given at a time at most.
pub const STATE_PART_BYTES_MAX: usize = 1 << 20;

/// No state has a part there: whoever asks for it wants no more of what was taken down.
pub const STATE_FORGOTTEN: u64 = u64::MAX;

/// What is encrypted with it is read by whoever has it, and by nobody else.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateKey(pub [u8; 32]);

impl fmt::Debug for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateKey(..)")
    }
}

/// A part of what a cache holds, in the engine's own words. Nobody reads it but an engine of the same version with the same stage.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatePart {
    /// Positions that the cache holds.
    pub positions: u32,
    /// Bytes of all of it.
    pub total: u64,
    /// Where this part begins.
    pub offset: u64,
    /// At most [`STATE_PART_BYTES_MAX`].
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

impl fmt::Debug for StatePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { positions, total, offset, bytes } = self;
        // Never the values: what was said can be read back from them.
        write!(f, "StatePart({positions} positions, {} bytes at {offset} of {total})", bytes.len())
    }
}

impl StatePart {
    /// Whether all of it is there with this part.
    pub fn is_last(&self) -> bool {
        self.offset.saturating_add(self.bytes.len() as u64) >= self.total
    }
}

/// Why a stage did not run a step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StageError {
    /// The caller: no cache of this name is open here.
    #[error("cache {0:?} is not open in this stage")]
    UnknownCache(CacheId),
    /// The caller: the step does not follow what the cache holds.
    #[error("the step starts at position {start}, but the cache holds {held} positions")]
    Gap {
        /// Where the step starts.
        start: u32,
        /// What the cache holds.
        held: u32,
    },
    /// The user: the conversation is longer than the cache that was opened for it.
    #[error("the step ends at position {end}; the session's cache holds {context}")]
    ContextFull {
        /// Where the step would end.
        end: u32,
        /// Positions that the cache has room for.
        context: u32,
    },
    /// The caller: the input has the wrong kind or shape for this stage.
    #[error("bad input: {0}")]
    BadInput(String),
    /// The lender: no room for another session's cache.
    #[error("all {caches} caches of this stage are in use")]
    Busy {
        /// Caches that the stage has.
        caches: u16,
    },
    /// The model or the engine: the cache cannot be cut back to the step's start.
    #[error("the cache cannot be cut back to position {0}")]
    CannotTruncate(u32),
    /// The engine: it refused or failed; the session's cache is not to be trusted.
    #[error("the engine failed: {0}")]
    Engine(String),
    /// The engine's process is gone. It restarts by itself; sessions have to be opened again.
    #[error("the engine process ended: {0}")]
    Lost(String),
}

/// A layer range that is loaded and can run. Nothing above this trait knows which engine runs it.
pub trait Stage {
    /// What the stage is like.
    fn shape(&self) -> &StageShape;

    /// Opens an empty cache for a session of at most `positions` positions.
    ///
    /// # Errors
    /// `Busy` where no cache is free, `ContextFull` where `positions` is more than a cache holds.
    fn open(&mut self, cache: CacheId, positions: u32) -> Result<(), StageError>;

    /// Opens `to` with the first `positions` positions of `from`: a prefix that two sessions share.
    ///
    /// # Errors
    /// As [`open`](Self::open); `UnknownCache` for `from`; `Gap` where `from` holds fewer positions.
    fn fork(&mut self, from: CacheId, to: CacheId, positions: u32) -> Result<(), StageError>;

    /// Closes a cache. Closing one that is not open does nothing.
    fn close(&mut self, cache: CacheId);

    /// Runs each step and returns, in the same order, its hidden states (or logits, at the tail).
    ///
    /// Steps of several sessions may share a batch; one step's failure leaves the others alone.
    fn forward(&mut self, steps: &mut [Step]) -> Vec<Result<Output, StageError>>;

    /// A whole row of logits of the last step that `cache` ran at the tail; `row` counts that step's positions.
    /// Kept until the cache's next step.
    ///
    /// # Errors
    /// `UnknownCache`; `BadInput` where the row was not kept.
    fn row(&mut self, cache: CacheId, row: u16) -> Result<Hidden, StageError>;

    /// A part of what `cache` holds, from that byte on. At 0 it is taken down; what is asked for afterwards is of that moment, as long as
    /// nobody else is asked.
    ///
    /// # Errors
    /// `UnknownCache`; `BadInput` where there is no such part, or the stage cannot say what it holds. What was taken down of the cache is
    /// forgotten then: whoever wants no more of it asks for a part [beyond its end](STATE_FORGOTTEN).
    fn export(&mut self, cache: CacheId, _offset: u64) -> Result<StatePart, StageError> {
        Err(StageError::BadInput(format!("what cache {cache:?} holds cannot be taken down here")))
    }

    /// Gives a cache what another held, part by part, in order. With the last one it holds that, and nothing else.
    ///
    /// # Errors
    /// `UnknownCache`; `BadInput` where the part does not follow, or is no such thing; `ContextFull`. The cache is empty then.
    fn import(&mut self, cache: CacheId, _part: StatePart) -> Result<(), StageError> {
        Err(StageError::BadInput(format!("cache {cache:?} can be given nothing here")))
    }
}

/// What a peer asks of a stage that runs elsewhere: the [`Stage`] trait as a message. Answered in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum StageCommand {
    /// [`Stage::open`]. Answered by [`StageReply::Opened`].
    Open {
        /// The cache.
        cache: CacheId,
        /// Positions that it must have room for.
        positions: u32,
    },
    /// [`Stage::fork`]. Answered by [`StageReply::Opened`] for `to`.
    Fork {
        /// Whose positions.
        from: CacheId,
        /// The new cache.
        to: CacheId,
        /// How many of them.
        positions: u32,
    },
    /// [`Stage::close`]. Not answered.
    Close {
        /// The cache.
        cache: CacheId,
    },
    /// [`Stage::forward`]. Answered by [`StageReply::Forwarded`].
    Forward {
        /// The caller's number for the batch.
        batch: u64,
        /// Its steps, at most one a cache.
        steps: Vec<Step>,
    },
    /// [`Stage::row`]. Answered by [`StageReply::Row`].
    Row {
        /// The cache.
        cache: CacheId,
        /// Which row of its last step.
        row: u16,
    },
    /// Keep what the cache holds, encrypted, for a while. Answered by [`StageReply::Saved`]. No stage does it: whoever speaks to one may,
    /// by [`Export`](Self::Export).
    Save {
        /// The cache.
        cache: CacheId,
        /// Whose it is.
        session: SessionKey,
        /// How many positions it holds: nothing else is kept.
        positions: u32,
        /// Bytes that these take, as far as is known; what is kept may be a little longer.
        bytes: u64,
        /// What it is encrypted with: whoever keeps it forgets it.
        key: StateKey,
        /// For how long at most.
        seconds: u32,
    },
    /// Give the cache what was kept of a session. Answered by [`StageReply::Restored`].
    Restore {
        /// The cache: it holds nothing.
        cache: CacheId,
        /// Whose state was kept.
        session: SessionKey,
        /// What it is encrypted with.
        key: StateKey,
    },
    /// [`Stage::export`]. Answered by [`StageReply::Exported`].
    Export {
        /// The cache.
        cache: CacheId,
        /// From which byte on.
        offset: u64,
    },
    /// [`Stage::import`]. Answered by [`StageReply::Imported`].
    Import {
        /// The cache.
        cache: CacheId,
        /// The part.
        part: StatePart,
    },
}

/// What a stage answers to a [`StageCommand`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum StageReply {
    /// To `Open` and `Fork`.
    Opened {
        /// The cache.
        cache: CacheId,
        /// Whether it is open now.
        result: Result<(), StageError>,
    },
    /// To `Forward`.
    Forwarded {
        /// The caller's number for the batch.
        batch: u64,
        /// One result a step, in the batch's order.
        results: Vec<Result<Output, StageError>>,
        /// Microseconds that the engine computed for the batch.
        compute_us: u64,
    },
    /// To `Row`.
    Row {
        /// The cache.
        cache: CacheId,
        /// Which row.
        row: u16,
        /// The whole row of logits.
        result: Result<Hidden, StageError>,
    },
    /// Unasked: the engine's process ended. Every cache is gone; the same stage comes back with `Ready`.
    Lost {
        /// Why, for the log.
        reason: String,
    },
    /// Unasked: the stage can run (again).
    Ready(StageShape),
    /// To `Save`.
    Saved {
        /// The cache.
        cache: CacheId,
        /// Bytes that are kept.
        result: Result<u64, StageError>,
    },
    /// To `Restore`.
    Restored {
        /// The cache.
        cache: CacheId,
        /// Positions that it holds now.
        result: Result<u32, StageError>,
    },
    /// To `Export`.
    Exported {
        /// The cache.
        cache: CacheId,
        /// The part.
        result: Result<StatePart, StageError>,
    },
    /// To `Import`.
    Imported {
        /// The cache.
        cache: CacheId,
        /// Whether it was taken.
        result: Result<(), StageError>,
    },
}

impl StageCommand {
    /// Carries the command out on `stage`; the reply, where one is due. `compute_us` is left at zero for the caller.
    pub fn apply(self, stage: &mut dyn Stage) -> Option<StageReply> {
        match self {
            Self::Open { cache, positions } => Some(StageReply::Opened { cache, result: stage.open(cache, positions) }),
            Self::Fork { from, to, positions } => {
                Some(StageReply::Opened { cache: to, result: stage.fork(from, to, positions) })
            }
            Self::Close { cache } => {
                stage.close(cache);
                None
            }
            Self::Forward { batch, mut steps } => {
                Some(StageReply::Forwarded { batch, results: stage.forward(&mut steps), compute_us: 0 })
            }
            Self::Row { cache, row } => Some(StageReply::Row { cache, row, result: stage.row(cache, row) }),
            Self::Save { cache, .. } => Some(StageReply::Saved { cache, result: Err(nobody_keeps()) }),
            Self::Restore { cache, .. } => Some(StageReply::Restored { cache, result: Err(nobody_keeps()) }),
            Self::Export { cache, offset } => Some(StageReply::Exported { cache, result: stage.export(cache, offset) }),
            Self::Import { cache, part } => Some(StageReply::Imported { cache, result: stage.import(cache, part) }),
        }
    }
}

fn nobody_keeps() -> StageError {
    StageError::BadInput("nobody keeps what caches hold here".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_states_travel_as_bytes_and_never_print() {
        let hidden = Hidden(vec![1.5, -2.25, f32::MAX]);
        let bytes = postcard::to_stdvec(&hidden).unwrap();
        assert_eq!(bytes.len(), 1 + 12);
        assert_eq!(postcard::from_bytes::<Hidden>(&bytes).unwrap(), hidden);
        assert!(postcard::from_bytes::<Hidden>(&[3, 1, 2, 3]).is_err());
        assert!(!format!("{hidden:?}").contains("1.5"));
    }

    #[test]
    fn a_step_counts_whole_rows_only() {
        let step = |input| Step { cache: CacheId(0), start: 0, input, rows: Rows::None, top: 0, tree: Tree::chain() };
        assert_eq!(step(Input::Hidden(Hidden(vec![0.0; 6]))).positions(3), 2);
        assert_eq!(step(Input::Hidden(Hidden(vec![0.0; 7]))).positions(3), 0);
        assert_eq!(step(Input::Tokens(vec![1, 2, 3])).positions(3), 3);
    }
}
