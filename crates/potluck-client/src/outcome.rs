//! What an answer was: the part of the command line's JSON that generation knows.

use potluck_chain::sample::{FinishReason, TokenLogprobs};
use serde::Serialize;

use crate::{DraftCounts, Trace};

/// One token of an answer, as it comes.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEvent {
    /// The token.
    pub token: u32,
    /// Text that became safe to show: it may be empty, and belong to earlier tokens too.
    pub text: String,
    /// Where the request asked for it.
    pub logprobs: Option<TokenLogprobs>,
}

/// A finished answer, and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The answer's text, without the stop string that ended it.
    pub text: String,
    /// Its tokens, the end token included if it came, the prompt not.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub completion_tokens: usize,
    /// Prompt tokens that the caches held already.
    pub reused_tokens: usize,
    /// Seconds from the first step sent to the first token.
    pub ttft_s: f64,
    /// Prompt tokens evaluated, over the time until the last of them was answered.
    pub prefill_tokens_per_s: f64,
    /// Tokens after the first, over their time; 0 where there are none.
    pub decode_tokens_per_s: f64,
    /// Bytes written on all hops in decode, headers included, per position; 0 where there was no decode step.
    pub bytes_per_position: f64,
    /// One entry a token, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprobs>>,
    /// Where the time went, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<Trace>,
    /// How often a peer was lost and the answer went on over another route.
    #[serde(skip_serializing_if = "is_none")]
    pub resumed: usize,
    /// Other peers took the places of lost ones while the rest of the route kept what it held: each time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repairs: Vec<RepairTimes>,
    /// Seconds that a token was waited for, at most: the first one included.
    pub longest_pause_s: f64,
    /// What drafting came to.
    pub drafts: DraftCounts,
}

/// Other peers took the places of lost ones. The times count from when the loss was noticed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RepairTimes {
    /// Layers whose peers were lost, the first and one past the last of each.
    pub layers: Vec<[u32; 2]>,
    /// Peers that stood by took all these places.
    pub stood_by: bool,
    /// No other was asked: the connections alone were lost, and the peers had kept what they held.
    pub came_back: bool,
    /// Until others were found, and asked.
    pub found_s: f64,
    /// How much of that was waiting for a peer that loaded the layers, because nobody else had them.
    #[serde(skip_serializing_if = "is_zero")]
    pub load_s: f64,
    /// Until all were ready.
    pub ready_s: f64,
    /// Until the next step was answered: what was under way has been computed again.
    pub answered_s: f64,
}

fn is_zero(seconds: &f64) -> bool {
    *seconds == 0.0
}

fn is_none(count: &usize) -> bool {
    *count == 0
}
