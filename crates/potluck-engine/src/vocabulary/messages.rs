//! What a client and the vocabulary's process say to each other.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::GrammarSource;

/// Bytes of one text to tokenize. A longer one is refused.
pub const TEXT_BYTES_MAX: usize = 16 << 20;

/// Grammars that are open at once. The next one is refused.
pub const GRAMMARS_MAX: usize = 64;

/// A grammar that is open: where one answer is in its grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GrammarId(pub(crate) u64);

/// What does not change about a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VocabularyInfo {
    /// Tokens, numbered from 0.
    pub tokens: u32,
    /// The token that begins a text.
    pub begin: Option<u32>,
    /// The token that ends a text.
    pub end: Option<u32>,
    /// The tokens that end an answer, ascending.
    pub ends: Vec<u32>,
    /// The tokens that are for control and not part of a text, ascending.
    pub control: Vec<u32>,
    /// True if tokenizing begins a text by itself.
    pub adds_begin: bool,
    /// True if tokenizing ends a text by itself.
    pub adds_end: bool,
}

/// Why the vocabulary gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum VocabularyError {
    /// The user: beyond a bound.
    #[error("{what} is {value}; the most is {max}")]
    TooMuch {
        /// Whose number.
        what: String,
        /// The number.
        value: u64,
        /// The bound.
        max: u64,
    },
    /// The user: this is no grammar, or no schema.
    #[error("llama.cpp cannot read the {0}")]
    Malformed(String),
    /// The caller: no grammar of this name is open. (The process may have been restarted.)
    #[error("grammar {0:?} is not open")]
    UnknownGrammar(GrammarId),
    /// The caller: the grammar does not allow this token here.
    #[error("the grammar does not allow token {0} here")]
    NotAllowed(u32),
    /// The user or the model: it took too long, and the process was ended. The next call starts another.
    #[error("no answer in {0} s: a grammar that branches too much, or a text that is too long")]
    TimedOut(u64),
    /// The engine: the process ended. The next call starts another; open grammars are gone.
    #[error("the vocabulary's process ended: {0}")]
    Ended(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Command {
    Tokenize {
        text: String,
        special: bool,
        parse: bool,
    },
    Pieces {
        tokens: Vec<u32>,
        special: bool,
    },
    Open {
        grammar: GrammarId,
        source: GrammarSource,
    },
    Close {
        grammar: GrammarId,
    },
    /// Of the whole vocabulary where there are no candidates.
    Allowed {
        grammar: GrammarId,
        candidates: Option<Vec<u32>>,
    },
    Accept {
        grammar: GrammarId,
        token: u32,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Reply {
    Tokens(Vec<u32>),
    Pieces(Vec<ByteBuf>),
    Allowed(Vec<bool>),
    Done,
    Refused(VocabularyError),
}
