//! Bounds of a grammar, checked before llama.cpp sees it.

use serde::{Deserialize, Serialize};

use super::VocabularyError;

/// Bytes of a grammar or a schema. A longer one is refused.
pub const GRAMMAR_BYTES_MAX: usize = 256 << 10;

/// Rules of a grammar. One with more is refused.
pub const GRAMMAR_RULES_MAX: usize = 2_048;

/// Groups within groups of a grammar, or objects within objects of a schema. A deeper one is refused.
pub const GRAMMAR_NESTING_MAX: usize = 32;

/// What an answer must follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GrammarSource {
    /// A grammar in GBNF; its first rule is `root`.
    Gbnf(String),
    /// A JSON schema: the answer is JSON that it accepts.
    JsonSchema(String),
}

impl GrammarSource {
    /// Refuses what is too long or too deep, before anything is read.
    ///
    /// # Errors
    /// `TooMuch`, with the number and its bound.
    pub fn check(&self) -> Result<(), VocabularyError> {
        let (text, open, close) = match self {
            Self::Gbnf(text) => (text, b"(".as_slice(), b")".as_slice()),
            Self::JsonSchema(text) => (text, b"[{".as_slice(), b"]}".as_slice()),
        };
        within("bytes of the grammar", text.len(), GRAMMAR_BYTES_MAX)?;
        within("depth of the grammar", nesting(text.as_bytes(), open, close), GRAMMAR_NESTING_MAX)?;
        match self {
            // llama.cpp takes an empty text for no grammar at all.
            Self::Gbnf(text) if text.trim().is_empty() => {
                Err(VocabularyError::Malformed("grammar: it is empty".into()))
            }
            Self::Gbnf(text) => check_rules(text),
            Self::JsonSchema(_) => Ok(()),
        }
    }
}

/// Refuses a grammar of more rules than are sensible.
pub(super) fn check_rules(gbnf: &str) -> Result<(), VocabularyError> {
    within("rules of the grammar", gbnf.matches("::=").count(), GRAMMAR_RULES_MAX)
}

pub(super) fn within(what: &str, value: usize, max: usize) -> Result<(), VocabularyError> {
    match value <= max {
        true => Ok(()),
        false => Err(VocabularyError::TooMuch { what: what.into(), value: value as u64, max: max as u64 }),
    }
}

/// How deep brackets nest, outside of strings.
fn nesting(text: &[u8], open: &[u8], close: &[u8]) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0usize, 0usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            byte if open.contains(byte) => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            byte if close.contains(byte) => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_long_and_many_are_refused_and_strings_do_not_count() {
        let gbnf = |text: String| GrammarSource::Gbnf(text).check();
        assert!(gbnf(format!("root ::= {}\"a\"{}", "(".repeat(33), ")".repeat(33))).is_err());
        assert_eq!(gbnf(format!("root ::= \"{}\"", "(".repeat(99))), Ok(()));
        assert_eq!(gbnf(format!("root ::= {}", "(\"a\")".repeat(99))), Ok(()));
        assert!(gbnf("r ::= \"a\"\n".repeat(GRAMMAR_RULES_MAX + 1)).is_err());
        assert!(gbnf(" ".repeat(GRAMMAR_BYTES_MAX + 1)).is_err());
        let schema = |depth| GrammarSource::JsonSchema(format!("{}{}", "[".repeat(depth), "]".repeat(depth))).check();
        assert_eq!(schema(GRAMMAR_NESTING_MAX), Ok(()));
        assert!(schema(GRAMMAR_NESTING_MAX + 1).is_err());
    }
}
