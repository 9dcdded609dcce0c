//! Why there is no answer.

use potluck_chain::{
    SessionError,
    sample::{ParamsError, SampleError, StopError},
};
use potluck_engine::VocabularyError;

/// Why an answer could not be made. The session is over after `Session`; after any other it can go on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The chain: see there.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The user: sampling parameters.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The user: stop strings.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The user, or the model: no token can follow.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The user's grammar, or the vocabulary's process.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// The user: there is nothing to answer.
    #[error("the prompt has no token")]
    EmptyPrompt,
    /// The user: the prompt fills the context. Hint: `--context`.
    #[error("the prompt has {tokens} tokens; the context holds {positions}")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of the session.
        positions: u32,
    },
    /// The model: its states say nothing about the text.
    #[error("the model gave no embedding: all its values are zero")]
    NoEmbedding,
    /// The tail: it answered with fewer rows than were asked for.
    #[error("step {sequence} was answered without a row")]
    NoRow {
        /// The step.
        sequence: u32,
    },
}

impl GenerateError {
    /// A short code for machines: the `code` of an error object.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Session(error) => error.code(),
            Self::Params(_) | Self::Stop(_) | Self::EmptyPrompt => "bad_request",
            Self::Sample(_) => "nothing_to_sample",
            Self::Vocabulary(VocabularyError::Ended(_) | VocabularyError::TimedOut(_)) => "vocabulary_failed",
            Self::Vocabulary(_) => "bad_grammar",
            Self::PromptTooLong { .. } => "context_full",
            Self::NoEmbedding => "no_embedding",
            Self::NoRow { .. } => "protocol",
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Session(error) => error.hint(),
            Self::Params(_) => "see `potluck run --help` for what each parameter means",
            Self::Stop(_) => "give fewer or shorter --stop texts",
            Self::Sample(_) => "loosen the grammar or the logit bias",
            Self::Vocabulary(VocabularyError::Ended(_) | VocabularyError::TimedOut(_)) => "run it again",
            Self::Vocabulary(_) => "check the grammar or the schema: llama.cpp's GBNF and JSON schema subset",
            Self::EmptyPrompt => "say something",
            Self::PromptTooLong { .. } => "shorten the conversation, or ask for a larger context with --context",
            Self::NoEmbedding => "use another model for embeddings",
            Self::NoRow { .. } => "run it again: another peer may serve the same layers",
        }
    }
}
