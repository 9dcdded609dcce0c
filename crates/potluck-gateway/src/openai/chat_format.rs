//! A chat's stream: role, content, finish, usage where it was asked for, and the end, in that order.

use std::sync::Arc;

use potluck_client::{Outcome, TokenEvent};
use potluck_engine::VocabularyClient;
use serde_json::{Value, json};

use super::{add_trace, chat::finish_with, finish_reason, logprobs, new_id, now, timings, usage};
use crate::{
    Model, Problem,
    answer::Ended,
    metrics::Metrics,
    stream::{Format, Writer},
    tools::{Held, Said, Tools},
};

/// What all parts of one response have in common.
#[derive(Debug, Clone)]
pub(super) struct Head {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
}

impl Head {
    pub(super) fn new(name: &str, model: &Model) -> Self {
        Self::with_id(new_id("chatcmpl"), name, model)
    }

    pub(super) fn with_id(id: String, name: &str, model: &Model) -> Self {
        let fingerprint = format!("fp_{}", model.id.get(..10).unwrap_or(&model.id));
        Self { id, created: now(), model: name.to_owned(), fingerprint }
    }

    pub(super) fn object(&self, kind: &str) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        })
    }
}

/// The chunks of a chat.
pub(super) struct ChatFormat {
    head: Head,
    vocabulary: VocabularyClient,
    /// Whether the total was asked for: then every other chunk says `null`.
    usage: bool,
    /// Where calls may come: what an answer says is then known at its end.
    tools: Option<Arc<Tools>>,
    metrics: Arc<Metrics>,
    /// Choices that have said their role.
    begun: Vec<bool>,
    /// What each choice has said, where calls may come.
    held: Vec<Held>,
    outcomes: Vec<Outcome>,
}

impl ChatFormat {
    pub(super) fn new(
        head: Head,
        vocabulary: VocabularyClient,
        usage: bool,
        tools: Option<Arc<Tools>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { head, vocabulary, usage, tools, metrics, begun: Vec::new(), held: Vec::new(), outcomes: Vec::new() }
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = self.head.object("chat.completion.chunk");
        chunk["choices"] = choices;
        if self.usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn delta(&self, index: usize, delta: Value, logprobs: Value, finish: Value) -> Value {
        self.chunk(json!([{ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish }]))
    }

    /// What a choice has said so far.
    fn held(&mut self, index: usize) -> &mut Held {
        if self.held.len() <= index {
            self.held.resize_with(index + 1, Held::default);
        }
        &mut self.held[index]
    }

    /// The first chunk of a choice says who speaks.
    fn begin_choice(&mut self, index: usize, writer: &mut Writer) {
        if self.begun.len() <= index {
            self.begun.resize(index + 1, false);
        }
        if !std::mem::replace(&mut self.begun[index], true) {
            let role = json!({ "role": "assistant", "content": "" });
            writer.data(&self.delta(index, role, Value::Null, Value::Null));
        }
    }
}

impl Format for ChatFormat {
    fn begin(&mut self, writer: &mut Writer) {
        self.begin_choice(0, writer);
    }

    async fn token(&mut self, index: usize, token: TokenEvent, writer: &mut Writer) {
        self.begin_choice(index, writer);
        let entry = logprobs::entries(&self.vocabulary, &token).await;
        let tools = self.tools.clone();
        let text = self.held(index).hold(tools.as_deref(), &token.text);
        if text.is_empty() && entry.is_none() {
            return;
        }
        let logprobs =
            entry.map_or(Value::Null, |entry| json!({ "content": [logprobs::chat(entry)], "refusal": null }));
        writer.data(&self.delta(index, json!({ "content": text }), logprobs, Value::Null));
    }

    fn done(&mut self, index: usize, ended: &Ended, writer: &mut Writer) {
        self.begin_choice(index, writer);
        self.metrics.answered(ended);
        let outcome = &ended.outcome;
        let tools = self.tools.clone();
        let Said { text, calls } = self.held(index).rest(tools.as_deref(), ended);
        if !text.is_empty() {
            writer.data(&self.delta(index, json!({ "content": text }), Value::Null, Value::Null));
        }
        for (at, call) in calls.iter().enumerate() {
            // Whole in one chunk: the id and the name come once, the arguments are a text that may come in pieces.
            let mut delta = call.json();
            delta["index"] = at.into();
            writer.data(&self.delta(index, json!({ "tool_calls": [delta] }), Value::Null, Value::Null));
        }
        let finish = finish_reason(outcome);
        let finish = self.tools.as_deref().map_or(finish, |tools| finish_with(finish, tools, &calls));
        let mut last = self.delta(index, json!({}), Value::Null, finish.into());
        add_trace(&mut last, Some(outcome));
        writer.data(&last);
        self.outcomes.push(outcome.clone());
    }

    fn end(&mut self, writer: &mut Writer) {
        if self.usage {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = usage(self.outcomes.iter());
            chunk["timings"] = self.outcomes.first().map_or(Value::Null, timings);
            writer.data(&chunk);
        }
        writer.raw("data: [DONE]\n\n");
    }

    fn failed(&mut self, problem: &Problem, writer: &mut Writer) {
        writer.data(&problem.object());
        writer.raw("data: [DONE]\n\n");
    }

    fn beat(&mut self, writer: &mut Writer) {
        writer.raw(": waiting\n\n");
    }
}
