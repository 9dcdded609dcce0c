//! When an answer ends, and which of its text may already be shown.

use serde::{Deserialize, Serialize};

use super::Utf8Stream;

/// Stop strings of one request. More are refused.
pub const STOP_STRINGS_MAX: usize = 16;
/// Bytes of a stop string, and so of the text that is ever held back. A longer one is refused.
pub const STOP_STRING_BYTES_MAX: usize = 1_024;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it, or a stop string came.
    Stop,
    /// It has as many tokens as were allowed, or the context is full.
    Length,
    /// The user ended it.
    Cancel,
}

/// When to end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopRules {
    /// Tokens with which the model ends its answer.
    pub end_of_generation: Vec<u32>,
    /// Texts that end it; the answer's text stops before them.
    pub strings: Vec<String>,
    /// Tokens of the answer.
    pub max_tokens: u32,
}

/// The user: a stop string that cannot be watched for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// It would end every answer at once.
    #[error("a stop string is empty")]
    Empty,
    /// Too many, or too long.
    #[error("{what} is {value}; the limit is {max}")]
    Bound {
        /// What is too large.
        what: &'static str,
        /// How large.
        value: usize,
        /// The limit.
        max: usize,
    },
}

/// What a token brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Text that is safe to show: no part of it can belong to a stop string.
    pub text: String,
    /// Set with the last token.
    pub finish: Option<FinishReason>,
}

/// Follows one answer to its end.
#[derive(Debug, Clone)]
pub struct Stopper {
    rules: StopRules,
    characters: Utf8Stream,
    held: String,
    tokens: u32,
}

impl Stopper {
    /// Follows an answer that has no token yet.
    ///
    /// # Errors
    /// See [`StopError`].
    pub fn new(rules: StopRules) -> Result<Self, StopError> {
        let within = |what, value, max| if value > max { Err(StopError::Bound { what, value, max }) } else { Ok(()) };
        within("the number of stop strings", rules.strings.len(), STOP_STRINGS_MAX)?;
        for string in &rules.strings {
            within("the length of a stop string", string.len(), STOP_STRING_BYTES_MAX)?;
            if string.is_empty() {
                return Err(StopError::Empty);
            }
        }
        Ok(Self { rules, characters: Utf8Stream::default(), held: String::new(), tokens: 0 })
    }

    /// The next token of the answer, and the bytes that it stands for.
    pub fn push(&mut self, token: u32, piece: &[u8]) -> Progress {
        self.tokens += 1;
        if self.rules.end_of_generation.contains(&token) {
            return Progress { text: self.flush(), finish: Some(FinishReason::Stop) };
        }
        self.held += &self.characters.push(piece);
        if let Some(at) = self.rules.strings.iter().filter_map(|string| self.held.find(string)).min() {
            self.held.truncate(at);
            return Progress { text: std::mem::take(&mut self.held), finish: Some(FinishReason::Stop) };
        }
        if self.tokens >= self.rules.max_tokens {
            return Progress { text: self.flush(), finish: Some(FinishReason::Length) };
        }
        let rest = self.held.split_off(self.shown());
        Progress { text: std::mem::replace(&mut self.held, rest), finish: None }
    }

    /// The answer ends here for another reason: the text that was held back.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held) + &self.characters.finish()
    }

    /// Bytes of the held text that no stop string can begin in.
    fn shown(&self) -> usize {
        let begins = |tail: &str| self.rules.strings.iter().any(|string| string.starts_with(tail));
        self.held.char_indices().map(|(at, _)| at).find(|&at| begins(&self.held[at..])).unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stopper(strings: &[&str], max_tokens: u32) -> Stopper {
        let strings = strings.iter().map(ToString::to_string).collect();
        Stopper::new(StopRules { end_of_generation: vec![0], strings, max_tokens }).unwrap()
    }

    fn run(stopper: &mut Stopper, pieces: &[&str]) -> Vec<(String, Option<FinishReason>)> {
        pieces.iter().map(|piece| stopper.push(1, piece.as_bytes())).map(|p| (p.text, p.finish)).collect()
    }

    #[test]
    fn a_stop_string_may_span_tokens_and_is_never_shown() {
        let mut s = stopper(&["</end>", "<|x|>"], 100);
        let shown = run(&mut s, &["a <", "/e", "b <", "/en", "d>c"]);
        let texts: Vec<&str> = shown.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, ["a ", "", "</eb ", "", ""]);
        assert_eq!(shown[4].1, Some(FinishReason::Stop));
    }

    #[test]
    fn the_earliest_of_several_stop_strings_counts() {
        let mut s = stopper(&["two", "one"], 100);
        assert_eq!(run(&mut s, &["zero one two"]), [("zero ".into(), Some(FinishReason::Stop))]);
    }

    #[test]
    fn an_end_token_and_the_limit_release_what_was_held() {
        let mut s = stopper(&["stop"], 100);
        assert_eq!(run(&mut s, &["a st"]), [("a ".into(), None)]);
        assert_eq!(s.push(0, b"<eos>"), Progress { text: "st".into(), finish: Some(FinishReason::Stop) });
        let mut s = stopper(&["stop"], 2);
        let shown = run(&mut s, &["a", " sto"]);
        assert_eq!(shown, [("a".into(), None), (" sto".into(), Some(FinishReason::Length))]);
        let mut s = stopper(&[], 1);
        assert_eq!(s.push(1, &[0xC3]), Progress { text: "\u{FFFD}".into(), finish: Some(FinishReason::Length) });
    }

    #[test]
    fn stop_strings_are_bounded() {
        let new = |strings: Vec<String>| Stopper::new(StopRules { strings, max_tokens: 1, ..StopRules::default() });
        assert_eq!(new(vec![String::new()]).unwrap_err(), StopError::Empty);
        assert!(new(vec!["x".repeat(STOP_STRING_BYTES_MAX + 1)]).is_err());
        assert!(new(vec!["x".into(); STOP_STRINGS_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn the_text_is_all_before_the_first_stop_string(
            answer in "[abé]{0,30}", stop in "[abé]{1,4}", cut in 1usize..4,
        ) {
            let mut s = stopper(&[&stop], 1_000);
            let mut text = String::new();
            let mut finish = None;
            for piece in answer.as_bytes().chunks(cut) {
                let progress = s.push(1, piece);
                text += &progress.text;
                finish = progress.finish;
                if finish.is_some() { break }
            }
            let expected = answer.find(&stop);
            prop_assert_eq!(finish.is_some(), expected.is_some());
            if finish.is_none() { text += &s.flush() }
            prop_assert_eq!(text.as_str(), &answer[..expected.unwrap_or(answer.len())]);
        }
    }
}
