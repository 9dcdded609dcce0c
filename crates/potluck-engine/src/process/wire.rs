//! The messages that begin a conversation with an engine's process.

use potluck_core::StageShape;
use serde::{Deserialize, Serialize};

use crate::{EngineSettings, Part, sandbox::Attempt, vocabulary::VocabularyInfo};

/// The version of everything between a peer and its engine. Both are the same program, unless it was replaced on disk.
pub(crate) const VERSION: u16 = 3;

/// The first frame to a child.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) version: u16,
    /// Descriptors that travel beside the frame.
    pub(crate) files: u16,
    pub(crate) settings: EngineSettings,
    pub(crate) job: Job,
}

/// What a child is for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// To load this and serve it.
    Load(Part),
    /// To try what the sandbox forbids.
    TryOut,
}

/// What a child says until it is ready.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Loading {
    /// Percent of the weights that are in memory: the deadline starts anew.
    Progress(u8),
    /// Ready to be sent `StageCommand`s.
    Stage(StageShape),
    /// Ready to be sent vocabulary commands.
    Vocabulary(VocabularyInfo),
    /// What became of each attempt.
    TriedOut(Vec<Attempt>),
    /// It will not be.
    Refused(crate::EngineError),
}
