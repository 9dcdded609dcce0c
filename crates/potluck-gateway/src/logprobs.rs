//! Log-probabilities with the tokens' texts.

use potluck_client::TokenEvent;
use potluck_engine::VocabularyClient;
use serde_json::{Value, json};

use crate::Problem;

/// What is said of a token that the reduced row did not hold: less likely than any that was reported.
const UNKNOWN: f32 = -9999.0;

/// Alternatives that one may ask to see of each token.
const TOP_MAX: u16 = 20;

/// How many alternatives to report of each token; none: no log-probabilities.
pub(crate) fn asked(logprobs: Option<bool>, top: Option<u16>) -> Result<Option<u16>, Problem> {
    match (logprobs.unwrap_or(false), top) {
        (_, Some(top)) if top > TOP_MAX => {
            let message = format!("top_logprobs is {top}; it must be between 0 and {TOP_MAX}");
            Err(Problem::value("top_logprobs", message))
        }
        (false, Some(top)) if top > 0 => Err(Problem::value("top_logprobs", "top_logprobs needs logprobs to be true")),
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, _) => Ok(None),
    }
}

/// A token, its bytes, and how likely it was.
pub(crate) struct Entry {
    pub(crate) text: String,
    bytes: Vec<u8>,
    pub(crate) logprob: f32,
}

/// The chosen token, and its alternatives; none where they were not asked for. The token that ends an answer is not one of it.
pub(crate) async fn entries(vocabulary: &VocabularyClient, event: &TokenEvent) -> Option<(Entry, Vec<Entry>)> {
    let logprobs = event.logprobs.as_ref()?;
    if event.text.is_empty() && vocabulary.info().ends.contains(&event.token) {
        return None;
    }
    let chosen = (event.token, logprobs.logprob.unwrap_or(UNKNOWN));
    let all: Vec<_> = std::iter::once(chosen).chain(logprobs.top.iter().copied()).collect();
    let tokens: Vec<u32> = all.iter().map(|(token, _)| *token).collect();
    // Without the vocabulary's process a token has no text; the answer's own end says what happened.
    let pieces = vocabulary.pieces(&tokens, true).await.unwrap_or_default();
    let entry = |((_, logprob), bytes): (&(u32, f32), Vec<u8>)| Entry {
        text: String::from_utf8_lossy(&bytes).into_owned(),
        bytes,
        logprob: *logprob,
    };
    let mut entries = all.iter().zip(pieces).map(entry);
    let chosen = entries.next()?;
    Some((chosen, entries.collect()))
}

impl Entry {
    fn json(&self) -> Value {
        json!({ "token": self.text, "logprob": self.logprob, "bytes": self.bytes })
    }
}

/// As a chat has it: one element of `content`.
pub(crate) fn chat((chosen, top): (Entry, Vec<Entry>)) -> Value {
    let mut entry = chosen.json();
    entry["top_logprobs"] = top.iter().map(Entry::json).collect();
    entry
}
