//! What becomes of a prompt that is longer than the context: an error, or the oldest of it is left out.
//!
//! Of a conversation whole turns go, the oldest first: a question with its answers, a call with its results. What the system says and
//! what the user said last stay, and so does the end. How many go is found by halving: each try renders and counts the tokens.

use axum::{http::HeaderValue, response::Response};
use serde_json::Value;

/// Says in a response how many messages were left out.
const MESSAGES_HEADER: &str = "x-potluck-dropped-messages";

/// Says in a response how many tokens were left out of a text's beginning.
const TOKENS_HEADER: &str = "x-potluck-dropped-tokens";

/// A prompt that is cut leaves one in so many positions to the answer, unless the answer is to be shorter.
const ANSWER_SHARE: u32 = 4;

/// What becomes of a prompt that is longer than the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// An error: `context_length_exceeded`.
    #[default]
    Error,
    /// The oldest of it is left out.
    Truncate,
}

/// How a prompt is made to fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fit {
    overflow: Overflow,
    /// Tokens of the answer, where the request says.
    answer: Option<u32>,
}

/// A prompt that fits.
#[derive(Debug)]
pub(crate) struct Fitted {
    pub(crate) tokens: Vec<u32>,
    pub(crate) dropped: Dropped,
}

/// What was left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) messages: usize,
    pub(crate) tokens: usize,
}

impl Fit {
    /// As the gateway was told, or the request: `truncate`, where it says something. `answer`: tokens of the answer at most.
    pub(crate) fn new(setting: Overflow, truncate: Option<bool>, answer: Option<u32>) -> Self {
        let overflow = match truncate {
            Some(true) => Overflow::Truncate,
            Some(false) => Overflow::Error,
            None => setting,
        };
        Self { overflow, answer }
    }

    pub(crate) fn truncates(self) -> bool {
        self.overflow == Overflow::Truncate
    }

    /// Tokens that a prompt which is cut may have.
    pub(crate) fn room(self, context: u32) -> usize {
        let answer = (context / ANSWER_SHARE).min(self.answer.unwrap_or(u32::MAX));
        context.saturating_sub(answer).max(1) as usize
    }
}

impl Dropped {
    /// The response, which says what was left out.
    pub(crate) fn mark(self, mut response: Response) -> Response {
        for (name, count) in [(MESSAGES_HEADER, self.messages), (TOKENS_HEADER, self.tokens)] {
            if count > 0 {
                response.headers_mut().insert(name, HeaderValue::from(count));
            }
        }
        response
    }
}

impl std::ops::Add for Dropped {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { messages: self.messages + other.messages, tokens: self.tokens + other.tokens }
    }
}

/// The end of a text's tokens, as many as there is room for.
pub(crate) fn end_of(tokens: Vec<u32>, context: u32, fit: Fit) -> Fitted {
    if !fit.truncates() || tokens.len() <= context as usize {
        return Fitted { tokens, dropped: Dropped::default() };
    }
    let cut = tokens.len() - fit.room(context);
    Fitted { tokens: tokens[cut..].to_vec(), dropped: Dropped { messages: 0, tokens: cut } }
}

/// What may be left out of a conversation, in the order in which it goes: indices of messages.
pub(crate) fn groups(messages: &[Value]) -> Vec<Vec<usize>> {
    let role = |at: usize| messages[at]["role"].as_str().unwrap_or_default();
    let begin = (0..messages.len()).find(|&at| role(at) != "system").unwrap_or(messages.len());
    let Some(last) = (begin..messages.len()).rev().find(|&at| role(at) == "user") else { return Vec::new() };
    let (mut before, mut since) = (Vec::<Vec<usize>>::new(), Vec::<Vec<usize>>::new());
    for at in begin..last {
        match before.last_mut() {
            // An answer goes with its question: templates want turns.
            Some(turn) if role(at) != "user" => turn.push(at),
            _ => before.push(vec![at]),
        }
    }
    for at in last + 1..messages.len() {
        match since.last_mut() {
            // A result goes with its call.
            Some(call) if role(at) == "tool" => call.push(at),
            _ => since.push(vec![at]),
        }
    }
    // What the model is to go on from stays.
    since.pop();
    before.extend(since);
    before
}

/// The conversation without the first so many of the groups.
pub(crate) fn without(messages: &[Value], groups: &[Vec<usize>]) -> Vec<Value> {
    let mut stays = vec![true; messages.len()];
    groups.iter().flatten().for_each(|&at| stays[at] = false);
    messages.iter().zip(stays).filter(|(_, stays)| *stays).map(|(message, _)| message.clone()).collect()
}

/// Finds the smallest count with which something fits that fits from some count on.
#[derive(Debug)]
pub(crate) struct Halving {
    low: usize,
    high: usize,
}

impl Halving {
    /// Of 1 to `most`.
    pub(crate) fn up_to(most: usize) -> Self {
        Self { low: 1, high: most }
    }

    /// What to try next; none: the last count that has fitted is the smallest.
    pub(crate) fn next(&self) -> Option<usize> {
        (self.low <= self.high).then(|| self.low + (self.high - self.low) / 2)
    }

    /// What came of the try.
    pub(crate) fn tried(&mut self, count: usize, fits: bool) {
        if fits { self.high = count - 1 } else { self.low = count + 1 }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(roles: &str) -> Vec<Value> {
        let role = |c| match c {
            's' => "system",
            'u' => "user",
            't' => "tool",
            _ => "assistant",
        };
        roles.chars().enumerate().map(|(at, c)| json!({ "role": role(c), "content": at.to_string() })).collect()
    }

    #[test]
    fn turns_go_whole_and_the_last_question_stays() {
        for (roles, expected) in [
            ("suauau", vec![vec![1, 2], vec![3, 4]]),
            ("ssuau", vec![vec![2, 3]]),
            ("auau", vec![vec![0], vec![1, 2]]),
            ("suu", vec![vec![1]]),
            // Calls, with what they brought, since the last question; the end stays.
            ("suauattatat", vec![vec![1, 2], vec![4, 5, 6], vec![7, 8]]),
            ("suat", vec![]),
            ("su", vec![]),
            ("sa", vec![]),
            ("s", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(groups(&said(roles)), expected, "{roles}");
        }
        let messages = said("suauau");
        assert_eq!(without(&messages, &groups(&messages)[..1]), [0, 3, 4, 5].map(|at| messages[at].clone()));
    }

    #[test]
    fn no_more_go_than_have_to() {
        for (most, needed) in [(1, 1), (7, 1), (7, 4), (7, 7), (1_000, 333), (5, 6), (0, 1)] {
            let (mut halving, mut tries, mut found) = (Halving::up_to(most), 0, None);
            while let Some(count) = halving.next() {
                tries += 1;
                halving.tried(count, count >= needed);
                found = if count >= needed { Some(count) } else { found };
            }
            assert_eq!(found, (needed <= most).then_some(needed), "{most} {needed}");
            assert!(tries <= 10, "{most} {needed}: {tries} tries");
        }
    }

    #[test]
    fn a_text_that_is_cut_keeps_its_end_and_leaves_room_for_the_answer() {
        let tokens: Vec<u32> = (0..100).collect();
        let fit = |truncate, answer| Fit::new(Overflow::Error, truncate, answer);
        assert_eq!(end_of(tokens.clone(), 40, fit(None, None)).tokens.len(), 100, "an error is made of it");
        let cut = end_of(tokens.clone(), 40, fit(Some(true), None));
        assert_eq!((cut.tokens, cut.dropped.tokens), ((70..100).collect(), 70));
        assert_eq!(end_of(tokens.clone(), 40, fit(Some(true), Some(4))).tokens.len(), 36);
        assert_eq!(end_of(tokens, 100, fit(Some(true), None)).dropped, Dropped::default(), "it fits");
        assert!(Fit::new(Overflow::Truncate, None, None).truncates());
        assert!(!Fit::new(Overflow::Truncate, Some(false), None).truncates());
    }
}
