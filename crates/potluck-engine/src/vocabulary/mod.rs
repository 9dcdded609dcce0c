//! Tokenizer and grammars, in a child of their own: both read what strangers wrote.

mod client;
mod grammar;
mod messages;
mod service;

pub use client::VocabularyClient;
pub use grammar::{GRAMMAR_BYTES_MAX, GRAMMAR_NESTING_MAX, GRAMMAR_RULES_MAX, GrammarSource};
pub use messages::{GRAMMARS_MAX, GrammarId, TEXT_BYTES_MAX, VocabularyError, VocabularyInfo};

pub(crate) use messages::{Command, Reply};
pub(crate) use service::VocabularyService;
