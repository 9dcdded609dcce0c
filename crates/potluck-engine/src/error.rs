//! Why an engine does not run.

use serde::{Deserialize, Serialize};

/// Why an engine did not load, or stopped. What one step can meet is a [`StageError`](potluck_core::StageError).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum EngineError {
    /// The user: a setting that no engine can run with.
    #[error("settings: {0}")]
    Settings(String),
    /// The lender. Hint: fewer caches, a shorter context, or a larger budget.
    #[error(
        "{caches} caches of {context} positions at {bytes_per_position} bytes each need {needed} bytes; the budget is \
         {budget}. Hint: fewer caches or a shorter context"
    )]
    CacheBudget {
        /// Bytes needed.
        needed: u64,
        /// Bytes allowed.
        budget: u64,
        /// Sessions.
        caches: u16,
        /// Positions of each.
        context: u32,
        /// Bytes that one position takes in this stage.
        bytes_per_position: u64,
    },
    /// Whoever supplied the model: llama.cpp refuses it. Never retried.
    #[error("llama.cpp refuses the model: {0}")]
    Model(String),
    /// Whoever supplied the model: it is not what its manifest says.
    #[error("the model's {what} is {found}; its manifest says {expected}")]
    Mismatch {
        /// Which number.
        what: String,
        /// In the manifest.
        expected: u64,
        /// In the file.
        found: u64,
    },
    /// The lender: llama.cpp cannot make a context, mostly for want of memory.
    #[error("llama.cpp cannot make a context: {0}")]
    Context(String),
    /// The model's family: it does not run as a stage.
    #[error("this model does not run as a stage: {0}")]
    NotAStage(String),
    /// The lender: the operating system refused.
    #[error("{what}: {why}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        why: String,
    },
    /// We: the other end of the socket pair sent what the protocol does not have. The child is killed.
    #[error("the engine's process broke the protocol: {0}")]
    Protocol(String),
    /// The engine: it made no progress in time. The child is killed.
    #[error("the engine made no progress for {seconds} s while {doing}")]
    TimedOut {
        /// How long was waited.
        seconds: u64,
        /// What it was to do.
        doing: String,
    },
    /// The engine: its process ended. Restarted, unless it was loading.
    #[error("the engine's process ended: {0}")]
    Ended(String),
}

impl EngineError {
    pub(crate) fn system(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::System { what: what.into(), why: why.to_string() }
    }
}
