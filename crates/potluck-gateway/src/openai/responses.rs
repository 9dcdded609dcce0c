//! `/v1/responses`, without a memory: each request brings its whole conversation.

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

use super::{message, now, params::Params};
use crate::{
    Problem,
    access::Caller,
    answer::Answers,
    http::{Asker, Json as Body, Shared, Site, either},
    metrics::Metrics,
    prompt,
    stream::{Format, Framing, Writer, respond},
};

#[derive(Debug, Deserialize)]
pub(crate) struct ResponsesRequest {
    model: Option<String>,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    instructions: Option<String>,
    #[serde(default)]
    max_output_tokens: Option<u32>,
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    top_p: Option<f32>,
    #[serde(default)]
    text: Value,
    #[serde(default)]
    tools: Vec<Value>,
    #[serde(default)]
    previous_response_id: Option<String>,
    #[serde(default)]
    background: Option<bool>,
    #[serde(default)]
    metadata: Value,
    #[serde(default)]
    stream: Option<bool>,
}

pub(crate) async fn handle(
    State(shared): Site,
    Extension(Asker(caller)): Extension<Asker>,
    Body(body): Body<ResponsesRequest>,
) -> Response {
    let result = async { answer(&shared, &caller, body?).await };
    either(result.await, Problem::openai)
}

async fn answer(shared: &Shared, caller: &Caller, request: ResponsesRequest) -> Result<Response, Problem> {
    let model = shared.named(request.model.as_deref())?;
    request.check()?;
    let tokens = prompt::of_messages(model, request.messages()?, Map::new()).await?;
    let params = Params {
        temperature: request.temperature,
        top_p: request.top_p,
        max_tokens: request.max_output_tokens,
        response_format: request.format()?,
        ..Params::default()
    };
    let requests = shared.requests(&params, &tokens, None)?;
    let answers = Answers::ask(&shared.jobs, caller, requests).await?;
    let mut format = Events::new(&request, &model.name, shared.metrics.clone());
    if request.stream == Some(true) {
        return respond(answers, Framing::Events, format).await;
    }
    let whole = answers.whole().await?.pop();
    let outcome = whole.map(|whole| whole.outcome).ok_or_else(|| Problem::value("input", "no answer"))?;
    shared.answered(&outcome);
    format.text.clone_from(&outcome.text);
    Ok(Json(format.finished(&outcome)).into_response())
}

impl ResponsesRequest {
    fn check(&self) -> Result<(), Problem> {
        if self.previous_response_id.is_some() {
            let message = "nothing is kept here between requests: send the whole conversation as input";
            return Err(Problem::unsupported("previous_response_id", message));
        }
        if self.background == Some(true) {
            return Err(Problem::unsupported("background", "answers are made while you wait"));
        }
        match self.tools.is_empty() {
            true => Ok(()),
            false => Err(Problem::unsupported("tools", "this gateway does not call tools yet")),
        }
    }

    fn messages(&self) -> Result<Vec<Value>, Problem> {
        let system = self.instructions.iter().map(|text| json!({ "role": "system", "content": text }));
        let items = match self.input.clone() {
            Value::String(text) => vec![json!({ "role": "user", "content": text })],
            Value::Array(items) => items,
            _ => return Err(Problem::value("input", "an input is a text or a list of messages")),
        };
        if let Some(kind) = items.iter().find_map(|item| item["type"].as_str().filter(|kind| *kind != "message")) {
            return Err(Problem::unsupported("input", format!("an item of type `{kind}` cannot be read")));
        }
        message::for_template(system.chain(items).collect())
    }

    /// A response format, as chats have it.
    fn format(&self) -> Result<Option<Value>, Problem> {
        let format = &self.text["format"];
        Ok(match format["type"].as_str() {
            None | Some("text") => None,
            Some("json_schema") => {
                Some(json!({ "type": "json_schema", "json_schema": { "schema": format["schema"] } }))
            }
            Some(_) => Some(format.clone()),
        })
    }
}

/// The events of a response, numbered.
struct Events {
    /// The response, as far as it is known.
    response: Value,
    item: String,
    text: String,
    number: u64,
    metrics: Arc<Metrics>,
}

impl Events {
    fn new(request: &ResponsesRequest, name: &str, metrics: Arc<Metrics>) -> Self {
        let response = json!({
            "id": format!("resp_{:032x}", fastrand::u128(..)),
            "object": "response",
            "created_at": now(),
            "status": "in_progress",
            "error": null,
            "incomplete_details": null,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": request.model.as_deref().unwrap_or(name),
            "output": [],
            "parallel_tool_calls": false,
            "previous_response_id": null,
            "reasoning": { "effort": null, "summary": null },
            "store": false,
            "temperature": request.temperature,
            "text": { "format": if request.text["format"].is_object() { request.text["format"].clone() } else { json!({ "type": "text" }) } },
            "tool_choice": "none",
            "tools": [],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": null,
            "metadata": if request.metadata.is_object() { request.metadata.clone() } else { json!({}) },
        });
        let item = format!("msg_{:032x}", fastrand::u128(..));
        Self { response, item, text: String::new(), number: 0, metrics }
    }

    fn send(&mut self, kind: &str, mut event: Value, writer: &mut Writer) {
        event["type"] = kind.into();
        event["sequence_number"] = self.number.into();
        self.number += 1;
        writer.event(kind, &event);
    }

    /// Sends what belongs to the only part of the only item.
    fn part(&mut self, kind: &str, field: &str, value: Value, writer: &mut Writer) {
        let mut event = json!({ "item_id": self.item, "output_index": 0, "content_index": 0 });
        event[field] = value;
        self.send(kind, event, writer);
    }

    fn content(&self) -> Value {
        json!({ "type": "output_text", "text": self.text, "annotations": [], "logprobs": [] })
    }

    fn message(&self, status: &str, content: Value) -> Value {
        json!({ "type": "message", "id": self.item, "status": status, "role": "assistant", "content": content })
    }

    fn finished(&self, outcome: &Outcome) -> Value {
        let cut = outcome.finish_reason == FinishReason::Length;
        let status = if cut { "incomplete" } else { "completed" };
        let mut response = self.response.clone();
        response["status"] = status.into();
        response["incomplete_details"] = if cut { json!({ "reason": "max_output_tokens" }) } else { Value::Null };
        response["output"] = json!([self.message(status, json!([self.content()]))]);
        response["usage"] = json!({
            "input_tokens": outcome.prompt_tokens,
            "input_tokens_details": { "cached_tokens": outcome.reused_tokens },
            "output_tokens": outcome.completion_tokens,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
        });
        response
    }
}

impl Format for Events {
    fn begin(&mut self, writer: &mut Writer) {
        for kind in ["response.created", "response.in_progress"] {
            let event = json!({ "response": self.response });
            self.send(kind, event, writer);
        }
        let item = self.message("in_progress", json!([]));
        self.send("response.output_item.added", json!({ "output_index": 0, "item": item }), writer);
        let content = self.content();
        self.part("response.content_part.added", "part", content, writer);
    }

    async fn token(&mut self, _: usize, token: TokenEvent, writer: &mut Writer) {
        if !token.text.is_empty() {
            self.text += &token.text;
            self.part("response.output_text.delta", "delta", token.text.into(), writer);
        }
    }

    fn done(&mut self, _: usize, outcome: &Outcome, writer: &mut Writer) {
        self.metrics.answered(outcome);
        let (text, content, response) = (self.text.clone(), self.content(), self.finished(outcome));
        self.part("response.output_text.done", "text", text.into(), writer);
        self.part("response.content_part.done", "part", content, writer);
        let item = response["output"][0].clone();
        self.send("response.output_item.done", json!({ "output_index": 0, "item": item }), writer);
        let kind = format!("response.{}", response["status"].as_str().unwrap_or("completed"));
        self.send(&kind, json!({ "response": response }), writer);
    }

    fn end(&mut self, _: &mut Writer) {}

    fn failed(&mut self, problem: &Problem, writer: &mut Writer) {
        let mut response = self.response.clone();
        response["status"] = "failed".into();
        response["error"] = json!({ "code": problem.code, "message": problem.message });
        self.send("response.failed", json!({ "response": response }), writer);
    }

    fn beat(&mut self, writer: &mut Writer) {
        writer.raw(": waiting\n\n");
    }
}
