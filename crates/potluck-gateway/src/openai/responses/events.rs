//! A response, whole and as numbered events: a message where something is said, and an item for each call.

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
    tools::{Call, Held, Said, Tools},
};

/// A response, while it comes.
pub(super) struct Events {
    /// As far as it is known.
    response: Value,
    item: String,
    text: String,
    /// Whether the message has begun.
    speaks: bool,
    number: u64,
    /// What finds calls in its text, where they are there.
    tools: Option<Arc<Tools>>,
    /// It may have calls, of which nothing is known until its end.
    may_call: bool,
    held: Held,
    metrics: Arc<Metrics>,
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
        let item = format!("msg_{:032x}", fastrand::u128(..));
        let (text, held, may_call) = (String::new(), Held::default(), tools.is_some() || !request.tools.is_empty());
        Self { response, item, text, speaks: false, number: 0, tools, may_call, held, metrics }
    }

    /// The whole response.
    pub(super) fn whole(&mut self, ended: &Ended) -> Value {
        let Said { text, calls } = ended.said(self.tools.as_deref());
        self.text = text;
        self.finished(ended, &calls)
    }

    fn send(&mut self, kind: &str, mut event: Value, writer: &mut Writer) {
        event["type"] = kind.into();
        event["sequence_number"] = self.number.into();
        self.number += 1;
        writer.event(kind, &event);
    }

    /// Sends what belongs to the only part of the message.
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

    fn finished(&self, ended: &Ended, calls: &[Call]) -> Value {
        let outcome = &ended.outcome;
        let cut = outcome.finish_reason == FinishReason::Length;
        let status = if cut { "incomplete" } else { "completed" };
        let mut response = self.response.clone();
        response["status"] = status.into();
        response["incomplete_details"] = if cut { json!({ "reason": "max_output_tokens" }) } else { Value::Null };
        let speaks = self.speaks || !self.text.is_empty() || calls.is_empty();
        let message = speaks.then(|| self.message(status, json!([self.content()])));
        response["output"] = message.into_iter().chain(calls.iter().map(|call| item(call, true))).collect();
        response["usage"] = if ended.is_counted() { usage(outcome) } else { Value::Null };
        response
    }

    /// The message begins, where it has not.
    fn speak(&mut self, writer: &mut Writer) {
        if std::mem::replace(&mut self.speaks, true) {
            return;
        }
        let item = self.message("in_progress", json!([]));
        self.send("response.output_item.added", json!({ "output_index": 0, "item": item }), writer);
        let content = self.content();
        self.part("response.content_part.added", "part", content, writer);
    }

    fn say(&mut self, text: String, writer: &mut Writer) {
        if !text.is_empty() {
            self.speak(writer);
            self.text += &text;
            self.part("response.output_text.delta", "delta", text.into(), writer);
        }
    }

    fn call(&mut self, at: usize, call: &Call, writer: &mut Writer) {
        self.send("response.output_item.added", json!({ "output_index": at, "item": item(call, false) }), writer);
        let whole = item(call, true);
        let mut event = json!({ "item_id": whole["id"], "output_index": at, "delta": call.arguments });
        self.send("response.function_call_arguments.delta", event.clone(), writer);
        event["arguments"] = event["delta"].take();
        event["name"] = call.name.clone().into();
        if let Some(fields) = event.as_object_mut() {
            fields.remove("delta");
        }
        self.send("response.function_call_arguments.done", event, writer);
        self.send("response.output_item.done", json!({ "output_index": at, "item": whole }), writer);
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

/// A call as an item: while it comes it has no arguments yet.
fn item(call: &Call, done: bool) -> Value {
    json!({
        "type": "function_call",
        "id": call.id.replacen("call_", "fc_", 1),
        "call_id": call.id,
        "name": call.name,
        "arguments": if done { call.arguments.as_str() } else { "" },
        "status": if done { "completed" } else { "in_progress" },
    })
}

impl Format for Events {
    fn begin(&mut self, writer: &mut Writer) {
        for kind in ["response.created", "response.in_progress"] {
            let event = json!({ "response": self.response });
            self.send(kind, event, writer);
        }
        if !self.may_call {
            self.speak(writer);
        }
    }

    async fn token(&mut self, _: usize, token: TokenEvent, writer: &mut Writer) {
        let tools = self.tools.clone();
        let text = self.held.hold(tools.as_deref(), &token.text);
        self.say(text, writer);
    }

    fn done(&mut self, _: usize, ended: &Ended, writer: &mut Writer) {
        self.metrics.answered(ended);
        let tools = self.tools.clone();
        let Said { text, calls } = self.held.rest(tools.as_deref(), ended);
        self.say(text, writer);
        if calls.is_empty() {
            self.speak(writer);
        }
        let response = self.finished(ended, &calls);
        if self.speaks {
            let (text, content) = (self.text.clone(), self.content());
            self.part("response.output_text.done", "text", text.into(), writer);
            self.part("response.content_part.done", "part", content, writer);
            let item = response["output"][0].clone();
            self.send("response.output_item.done", json!({ "output_index": 0, "item": item }), writer);
        }
        for (at, call) in (usize::from(self.speaks)..).zip(&calls) {
            self.call(at, call, writer);
        }
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
