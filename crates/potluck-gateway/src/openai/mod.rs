//! OpenAI's API: what every client speaks.

pub(crate) mod chat;
mod chat_format;
pub(crate) mod completions;
pub(crate) mod embeddings;
mod message;
pub(crate) mod models;
mod params;
pub(crate) mod responses;

use axum::{
    Json,
    http::{HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
pub(crate) use embeddings::TEXTS_MAX as EMBEDDED_TEXTS_MAX;
pub(crate) use message::{for_template, text as text_of};
pub(crate) use params::{OneOrMany, Params};

use potluck_chain::sample::FinishReason;
use potluck_client::Outcome;
use serde_json::{Value, json};

use crate::Problem;

impl Problem {
    /// The error object that OpenAI's clients read.
    pub(crate) fn object(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind(), "param": self.param, "code": self.code } })
    }

    /// The response with it.
    pub(crate) fn openai(self) -> Response {
        let object = self.object();
        self.respond(object)
    }

    /// A response with this problem's status.
    pub(crate) fn respond(&self, object: Value) -> Response {
        let status = StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(object)).into_response();
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert("retry-after", HeaderValue::from(seconds));
        }
        response
    }
}

/// Tokens, as they are counted.
fn usage<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Value {
    let (mut prompt, mut cached, mut answer) = (0, 0, 0);
    for (n, outcome) in outcomes.enumerate() {
        if n == 0 {
            (prompt, cached) = (outcome.prompt_tokens, outcome.reused_tokens);
        }
        answer += outcome.completion_tokens;
    }
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": { "cached_tokens": cached },
        "completion_tokens_details": { "reasoning_tokens": 0 },
    })
}

/// llama.cpp's own figures: clients show tokens per second from them.
fn timings(outcome: &Outcome) -> Value {
    let evaluated = outcome.prompt_tokens - outcome.reused_tokens;
    let ms = |tokens: usize, rate: f64| if rate > 0.0 { tokens as f64 / rate * 1e3 } else { 0.0 };
    let following = outcome.completion_tokens.saturating_sub(1);
    json!({
        "cache_n": outcome.reused_tokens,
        "prompt_n": evaluated,
        "prompt_ms": ms(evaluated, outcome.prefill_tokens_per_s),
        "prompt_per_second": outcome.prefill_tokens_per_s,
        "predicted_n": outcome.completion_tokens,
        "predicted_ms": ms(following, outcome.decode_tokens_per_s),
        "predicted_per_second": outcome.decode_tokens_per_s,
    })
}

/// Where the time went, where the request asked for it.
fn add_trace(object: &mut Value, outcome: Option<&Outcome>) {
    if let Some(trace) = outcome.and_then(|outcome| outcome.trace.as_ref()) {
        object["potluck"] = json!({ "trace": trace });
    }
}

fn finish_reason(outcome: &Outcome) -> &'static str {
    match outcome.finish_reason {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::Cancel => "stop",
    }
}

/// An id that nobody can guess, and a client can quote.
fn new_id(kind: &str) -> String {
    format!("{kind}-{:032x}", fastrand::u128(..))
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
