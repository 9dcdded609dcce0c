//! A chat's stream: role, content, finish, usage where it was asked for, and the end, in that order.

use std::sync::Arc;

use potluck_client::{Outcome, TokenEvent};
use potluck_engine::VocabularyClient;
use serde_json::{Value, json};

use super::{
    chat::finish_with,
    finish_reason, logprobs, new_id, now, timings,
    tools::{Said, Tools},
    usage,
};
use crate::{
    Model, Problem,
    metrics::Metrics,
    stream::{Format, Writer},
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

/// What a choice has said, where calls may come.
#[derive(Debug, Default)]
struct Held {
    text: String,
    /// Bytes of it that were shown.
    shown: usize,
}

/// Bytes of a text that cannot belong to a call: none where it begins like JSON, else all before a tag or the beginning of one.
fn may_show(text: &str) -> usize {
    const TAG: &str = "<tool_call>";
    if text.trim_start().starts_with('{') {
        return 0;
    }
    if let Some(at) = text.find(TAG) {
        return text[..at].trim_end().len();
    }
    let begins = |at: usize| TAG.starts_with(&text[at..]);
    let end = text.char_indices().map(|(at, _)| at).find(|&at| begins(at)).unwrap_or(text.len());
    // Space before a call is not said.
    text[..end].trim_end().len()
}

/// The chunks of a chat.
pub(super) struct ChatFormat {
    head: Head,
    vocabulary: VocabularyClient,
    /// Whether the total was asked for: then every other chunk says `null`.
    usage: bool,
    /// Where calls may come: what an answer says is then known at its end.
    tools: Option<Tools>,
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
        tools: Option<Tools>,
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

    /// Text that may be shown of an answer that may yet become a call.
    fn hold(&mut self, index: usize, text: &str) -> String {
        let Some(tools) = &self.tools else { return text.to_owned() };
        if self.held.len() <= index {
            self.held.resize_with(index + 1, Held::default);
        }
        let held = &mut self.held[index];
        held.text += text;
        let shown = if tools.is_auto() { may_show(&held.text) } else { 0 };
        let from = held.shown.min(shown);
        held.shown = shown.max(held.shown);
        held.text[from..held.shown].to_owned()
    }

    /// What is left to say of a choice at its end, and what it calls.
    fn rest(&mut self, index: usize) -> Said {
        let held = self.held.get_mut(index).map(std::mem::take).unwrap_or_default();
        match &self.tools {
            Some(tools) => {
                let Said { text, calls } = tools.read(&held.text);
                // What was shown is the beginning of what is said.
                Said { text: text.get(held.shown.min(text.len())..).unwrap_or_default().to_owned(), calls }
            }
            None => Said { text: String::new(), calls: Vec::new() },
        }
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
        let text = self.hold(index, &token.text);
        if text.is_empty() && entry.is_none() {
            return;
        }
        let logprobs =
            entry.map_or(Value::Null, |entry| json!({ "content": [logprobs::chat(entry)], "refusal": null }));
        writer.data(&self.delta(index, json!({ "content": text }), logprobs, Value::Null));
    }

    fn done(&mut self, index: usize, outcome: &Outcome, writer: &mut Writer) {
        self.begin_choice(index, writer);
        self.metrics.answered(outcome);
        let Said { text, calls } = self.rest(index);
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
        let finish = self.tools.as_ref().map_or(finish, |tools| finish_with(finish, tools, &calls));
        writer.data(&self.delta(index, json!({}), Value::Null, finish.into()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shown_that_may_become_a_call() {
        let shown = |text: &str| text[..may_show(text)].to_owned();
        assert_eq!(shown("Hello"), "Hello");
        assert_eq!(shown("Hello "), "Hello");
        assert_eq!(shown("a < b"), "a < b");
        assert_eq!(shown("Well <tool"), "Well");
        assert_eq!(shown("Well\n<tool_call>{"), "Well");
        assert_eq!(shown(" {\"name\""), "");
        assert_eq!(shown("<"), "");
        assert_eq!(shown("x<tool_cash>"), "x<tool_cash>");
    }
}
