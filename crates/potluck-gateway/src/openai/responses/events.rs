//! A response, whole and as numbered events: an item for each message and each call, in the order in which they come.

use std::sync::Arc;

use potluck_chain::sample::FinishReason;
use potluck_client::{Outcome, TokenEvent};
use serde_json::{Value, json};

use super::ResponsesRequest;
use crate::{
    Problem,
    answer::Ended,
    metrics::Metrics,
    openai::now,
    overflow::Fit,
    stream::{Format, Writer},
    tools::{Call, Piece, Reader, Tools},
};

/// A response, while it comes.
pub(super) struct Events {
    /// As far as it is known.
    response: Value,
    /// Its items that are done.
    output: Vec<Value>,
    /// The one that is not.
    open: Option<Item>,
    number: u64,
    /// It may have calls: whether it says anything is not known before it does.
    may_call: bool,
    reader: Reader,
    metrics: Arc<Metrics>,
}

/// An item of a response, while it comes.
enum Item {
    Message { id: String, text: String },
    Call(Call),
}

impl Item {
    fn message() -> Self {
        Self::Message { id: format!("msg_{:032x}", fastrand::u128(..)), text: String::new() }
    }

    /// With this status; while it is in progress it has nothing yet.
    fn json(&self, status: &str) -> Value {
        match self {
            Self::Message { id, text } => {
                let content = if status == "in_progress" { json!([]) } else { json!([content(text)]) };
                json!({ "type": "message", "id": id, "status": status, "role": "assistant", "content": content })
            }
            Self::Call(call) => json!({
                "type": "function_call",
                "id": call.id.replacen("call_", "fc_", 1),
                "call_id": call.id,
                "name": call.name,
                "arguments": if status == "in_progress" { "" } else { call.arguments.as_str() },
                "status": status,
            }),
        }
    }
}

fn content(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

impl Events {
    pub(super) fn new(
        request: &ResponsesRequest,
        fit: Fit,
        name: &str,
        tools: Option<Arc<Tools>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let given = |value: &Value, otherwise: Value| if value.is_null() { otherwise } else { value.clone() };
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
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "reasoning": { "effort": null, "summary": null },
            "store": false,
            "temperature": request.temperature,
            "text": { "format": given(&request.text["format"], json!({ "type": "text" })) },
            "tool_choice": given(&request.tool_choice, "auto".into()),
            "tools": request.tools,
            "top_p": request.top_p,
            "truncation": if fit.truncates() { "auto" } else { "disabled" },
            "usage": null,
            "metadata": if request.metadata.is_object() { request.metadata.clone() } else { json!({}) },
        });
        let (may_call, reader) = (tools.is_some() || !request.tools.is_empty(), Reader::new(tools));
        Self { response, output: Vec::new(), open: None, number: 0, may_call, reader, metrics }
    }

    /// The whole response.
    pub(super) fn whole(&mut self, ended: &Ended) -> Value {
        // The events of a stream that nobody reads: both end with the same.
        let mut nobody = Writer::nobody();
        let pieces = ended.pieces(&mut self.reader);
        self.pieces(pieces, &mut nobody);
        self.finish(ended, &mut nobody)
    }

    fn send(&mut self, kind: &str, mut event: Value, writer: &mut Writer) {
        event["type"] = kind.into();
        event["sequence_number"] = self.number.into();
        self.number += 1;
        writer.event(kind, &event);
    }

    /// Sends what belongs to the open item.
    fn part(&mut self, kind: &str, id: &str, field: &str, value: Value, writer: &mut Writer) {
        let mut event = json!({ "item_id": id, "output_index": self.output.len() });
        if !kind.starts_with("response.function") {
            event["content_index"] = 0.into();
        }
        event[field] = value;
        if kind.starts_with("response.output_text") {
            event["logprobs"] = json!([]);
        }
        self.send(kind, event, writer);
    }

    /// An item begins; the one before it is done.
    fn begin_item(&mut self, item: Item, writer: &mut Writer) {
        self.close("completed", writer);
        let added = json!({ "output_index": self.output.len(), "item": item.json("in_progress") });
        self.send("response.output_item.added", added, writer);
        if let Item::Message { id, .. } = &item {
            self.part("response.content_part.added", id, "part", content(""), writer);
        }
        self.open = Some(item);
    }

    /// The open item is done, or cut off.
    fn close(&mut self, status: &str, writer: &mut Writer) {
        let Some(item) = self.open.take() else { return };
        let broken = matches!(&item, Item::Call(call) if !call.is_whole());
        let done = item.json(if broken { "incomplete" } else { status });
        match item {
            Item::Message { id, text } => {
                self.part("response.output_text.done", &id, "text", text.into(), writer);
                self.part("response.content_part.done", &id, "part", done["content"][0].clone(), writer);
            }
            Item::Call(call) => {
                let id = done["id"].as_str().unwrap_or_default().to_owned();
                let mut event = json!({ "item_id": id, "output_index": self.output.len() });
                event["arguments"] = call.arguments.into();
                event["name"] = call.name.into();
                self.send("response.function_call_arguments.done", event, writer);
            }
        }
        self.send("response.output_item.done", json!({ "output_index": self.output.len(), "item": done }), writer);
        self.output.push(done);
    }

    fn pieces(&mut self, pieces: Vec<Piece>, writer: &mut Writer) {
        for piece in pieces {
            match piece {
                Piece::Text(more) => {
                    if !matches!(self.open, Some(Item::Message { .. })) {
                        self.begin_item(Item::message(), writer);
                    }
                    if let Some(Item::Message { id, text }) = &mut self.open {
                        *text += &more;
                        let id = id.clone();
                        self.part("response.output_text.delta", &id, "delta", more.into(), writer);
                    }
                }
                Piece::Call(call) => self.begin_item(Item::Call(call), writer),
                Piece::Arguments(more) => {
                    if let Some(Item::Call(call)) = &mut self.open {
                        call.arguments += &more;
                        let id = call.id.replacen("call_", "fc_", 1);
                        self.part("response.function_call_arguments.delta", &id, "delta", more.into(), writer);
                    }
                }
            }
        }
    }

    /// The answer is over: the response as it is then.
    fn finish(&mut self, ended: &Ended, writer: &mut Writer) -> Value {
        let outcome = &ended.outcome;
        let cut = outcome.finish_reason == FinishReason::Length;
        let status = if cut { "incomplete" } else { "completed" };
        if self.output.is_empty() && self.open.is_none() {
            self.begin_item(Item::message(), writer);
        }
        self.close(status, writer);
        let mut response = self.response.clone();
        response["status"] = status.into();
        response["incomplete_details"] = if cut { json!({ "reason": "max_output_tokens" }) } else { Value::Null };
        response["output"] = self.output.clone().into();
        response["usage"] = if ended.is_counted() { usage(outcome) } else { Value::Null };
        response
    }
}

/// Tokens, as responses count them.
fn usage(outcome: &Outcome) -> Value {
    json!({
        "input_tokens": outcome.prompt_tokens,
        "input_tokens_details": { "cached_tokens": outcome.reused_tokens },
        "output_tokens": outcome.completion_tokens,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
    })
}

impl Format for Events {
    fn begin(&mut self, writer: &mut Writer) {
        for kind in ["response.created", "response.in_progress"] {
            let event = json!({ "response": self.response });
            self.send(kind, event, writer);
        }
        if !self.may_call {
            self.begin_item(Item::message(), writer);
        }
    }

    async fn token(&mut self, _: usize, token: TokenEvent, writer: &mut Writer) {
        let pieces = self.reader.read(&token.text);
        self.pieces(pieces, writer);
    }

    fn done(&mut self, _: usize, ended: &Ended, writer: &mut Writer) {
        self.metrics.answered(ended);
        let pieces = ended.rest(&mut self.reader);
        self.pieces(pieces, writer);
        let response = self.finish(ended, writer);
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
