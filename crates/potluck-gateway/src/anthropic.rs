//! Anthropic's Messages API: what coding agents of that house speak.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Extension, State},
    response::{IntoResponse, Response},
};
use potluck_chain::sample::FinishReason;
use potluck_client::{Outcome, TokenEvent};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    Model, Problem,
    access::Caller,
    answer::Answers,
    http::{Asker, Json as Body, Shared, Site, either},
    metrics::Metrics,
    openai::{OneOrMany, Params, for_template, text_of},
    prompt,
    stream::{Format, Framing, Writer, respond},
};

#[derive(Debug, Deserialize)]
pub(crate) struct MessagesRequest {
    model: Option<String>,
    #[serde(default)]
    messages: Vec<Value>,
    #[serde(default)]
    system: Value,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    stop_sequences: Vec<String>,
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    top_p: Option<f32>,
    #[serde(default)]
    top_k: Option<i64>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    tools: Vec<Value>,
}

pub(crate) async fn handle(
    State(shared): Site,
    Extension(Asker(caller)): Extension<Asker>,
    Body(body): Body<MessagesRequest>,
) -> Response {
    let result = async { answer(&shared, &caller, body?).await };
    either(result.await, problem)
}

pub(crate) async fn count_tokens(State(shared): Site, Body(body): Body<MessagesRequest>) -> Response {
    let result = async {
        let request = body?;
        let model = shared.named(request.model.as_deref())?;
        let tokens = request.tokens(model).await?;
        Ok(Json(json!({ "input_tokens": tokens.len() })).into_response())
    };
    either(result.await, problem)
}

/// The error object that Anthropic's clients read.
pub(crate) fn problem(problem: Problem) -> Response {
    problem.respond(object(&problem))
}

fn object(problem: &Problem) -> Value {
    json!({ "type": "error", "error": { "type": problem.kind(), "message": problem.message } })
}

async fn answer(shared: &Shared, caller: &Caller, request: MessagesRequest) -> Result<Response, Problem> {
    let model = shared.named(request.model.as_deref())?;
    let limit = request.max_tokens.ok_or_else(|| Problem::value("max_tokens", "max_tokens: Field required"))?;
    let tokens = request.tokens(model).await?;
    let params = Params {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        stop: Some(OneOrMany::Many(request.stop_sequences.clone())),
        max_tokens: Some(limit),
        ..Params::default()
    };
    let requests = shared.requests(&params, &tokens, None)?;
    let answers = Answers::ask(&shared.jobs, caller, requests).await?;
    let format = Events {
        id: format!("msg_{:032x}", fastrand::u128(..)),
        model: request.model.unwrap_or_else(|| model.name.clone()),
        prompt_tokens: tokens.len(),
        ends: model.vocabulary.info().ends.clone(),
        stops: request.stop_sequences,
        metrics: shared.metrics.clone(),
    };
    if request.stream == Some(true) {
        return respond(answers, Framing::Events, format).await;
    }
    let whole = answers.whole().await?.pop();
    let outcome = whole.map(|whole| whole.outcome).ok_or_else(|| Problem::value("messages", "no answer"))?;
    shared.answered(&outcome);
    let mut message = format.message(&[json!({ "type": "text", "text": outcome.text })]);
    let (reason, sequence) = format.stop(&outcome);
    message["stop_reason"] = reason.into();
    message["stop_sequence"] = sequence;
    message["usage"]["output_tokens"] = outcome.completion_tokens.into();
    Ok(Json(message).into_response())
}

impl MessagesRequest {
    async fn tokens(&self, model: &Model) -> Result<Vec<u32>, Problem> {
        if !self.tools.is_empty() {
            return Err(Problem::unsupported("tools", "this gateway does not call tools yet"));
        }
        let system = text_of("system", self.system.clone())?;
        let system = (!system.is_empty()).then(|| json!({ "role": "system", "content": system }));
        let messages = system.into_iter().chain(self.messages.iter().cloned()).collect();
        prompt::of_messages(model, for_template(messages)?, Map::new()).await
    }
}

/// The events of an answer, in their order.
struct Events {
    id: String,
    model: String,
    prompt_tokens: usize,
    ends: Vec<u32>,
    stops: Vec<String>,
    metrics: Arc<Metrics>,
}

impl Events {
    fn message(&self, content: &[Value]) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": null, "stop_sequence": null,
            "usage": { "input_tokens": self.prompt_tokens, "output_tokens": 0 },
        })
    }

    /// Why it ended, in Anthropic's words; and the text that ended it, where it is known.
    fn stop(&self, outcome: &Outcome) -> (&'static str, Value) {
        let by_model = outcome.tokens.last().is_some_and(|token| self.ends.contains(token));
        match outcome.finish_reason {
            FinishReason::Length => ("max_tokens", Value::Null),
            FinishReason::Stop if !by_model => {
                let only = if let [only] = &self.stops[..] { only.clone().into() } else { Value::Null };
                ("stop_sequence", only)
            }
            FinishReason::Stop | FinishReason::Cancel => ("end_turn", Value::Null),
        }
    }
}

impl Format for Events {
    fn begin(&mut self, writer: &mut Writer) {
        writer.event("message_start", &json!({ "type": "message_start", "message": self.message(&[]) }));
        let block = json!({ "type": "text", "text": "" });
        writer.event(
            "content_block_start",
            &json!({ "type": "content_block_start", "index": 0, "content_block": block }),
        );
        self.beat(writer);
    }

    async fn token(&mut self, _: usize, token: TokenEvent, writer: &mut Writer) {
        if !token.text.is_empty() {
            let delta = json!({ "type": "text_delta", "text": token.text });
            writer.event("content_block_delta", &json!({ "type": "content_block_delta", "index": 0, "delta": delta }));
        }
    }

    fn done(&mut self, _: usize, outcome: &Outcome, writer: &mut Writer) {
        self.metrics.answered(outcome);
        writer.event("content_block_stop", &json!({ "type": "content_block_stop", "index": 0 }));
        let (reason, sequence) = self.stop(outcome);
        let delta = json!({ "stop_reason": reason, "stop_sequence": sequence });
        let usage = json!({ "input_tokens": outcome.prompt_tokens, "output_tokens": outcome.completion_tokens });
        writer.event("message_delta", &json!({ "type": "message_delta", "delta": delta, "usage": usage }));
    }

    fn end(&mut self, writer: &mut Writer) {
        writer.event("message_stop", &json!({ "type": "message_stop" }));
    }

    fn failed(&mut self, problem: &Problem, writer: &mut Writer) {
        writer.event("error", &object(problem));
    }

    fn beat(&mut self, writer: &mut Writer) {
        writer.event("ping", &json!({ "type": "ping" }));
    }
}
