//! A chat's stream: role, content, finish, usage where it was asked for, and the end, in that order.

use std::sync::Arc;

use potluck_client::{Outcome, TokenEvent};
use potluck_engine::VocabularyClient;
use serde_json::{Value, json};

use super::{add_trace, chat::finish_with, finish_reason, new_id, now, timings, usage};
use crate::{
    Model, Problem,
    answer::Ended,
    logprobs,
    metrics::Metrics,
    stream::{Format, Writer},
    tools::{Piece, Reader, Tools},
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

/// One of the answers to a question, while it comes.
struct Choice {
    reader: Reader,
    /// Calls that have begun.
    calls: usize,
}

/// The chunks of a chat.
pub(super) struct ChatFormat {
    head: Head,
    vocabulary: VocabularyClient,
    /// Whether the total was asked for: then every other chunk says `null`.
    usage: bool,
    /// Whether log-probabilities were asked for.
    logprobs: bool,
    /// Where calls may come.
    tools: Option<Arc<Tools>>,
    metrics: Arc<Metrics>,
    /// Those that have begun.
    choices: Vec<Choice>,
    outcomes: Vec<Outcome>,
}

impl ChatFormat {
    pub(super) fn new(
        head: Head,
        vocabulary: VocabularyClient,
        usage: bool,
        logprobs: bool,
        tools: Option<Arc<Tools>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { head, vocabulary, usage, logprobs, tools, metrics, choices: Vec::new(), outcomes: Vec::new() }
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

    /// The first chunk of a choice says who speaks. Choices begin in their order: clients keep them in a list.
    fn begin_choice(&mut self, index: usize, writer: &mut Writer) {
        while self.choices.len() <= index {
            // What has to call says nothing.
            let content = self.tools.as_deref().is_none_or(Tools::is_auto).then_some("");
            let role = json!({ "role": "assistant", "content": content, "refusal": null });
            let logprobs = if self.logprobs { json!({ "content": [], "refusal": null }) } else { Value::Null };
            writer.data(&self.delta(self.choices.len(), role, logprobs, Value::Null));
            self.choices.push(Choice { reader: Reader::new(self.tools.clone()), calls: 0 });
        }
    }

    /// A chunk for each piece. The log-probabilities of the token that they came with go with the first.
    fn pieces(&mut self, index: usize, pieces: Vec<Piece>, mut logprobs: Value, writer: &mut Writer) {
        let mut deltas: Vec<Value> = pieces.into_iter().map(|piece| self.choices[index].delta(piece)).collect();
        if deltas.is_empty() && !logprobs.is_null() {
            let calls = self.choices[index].calls > 0 || self.tools.as_deref().is_some_and(|tools| !tools.is_auto());
            deltas.push(if calls { json!({}) } else { json!({ "content": "" }) });
        }
        for delta in deltas {
            writer.data(&self.delta(index, delta, logprobs.take(), Value::Null));
        }
    }
}

impl Choice {
    /// A call's id and name come once; later pieces are its arguments alone.
    fn delta(&mut self, piece: Piece) -> Value {
        let mut call = match piece {
            Piece::Text(text) => return json!({ "content": text }),
            Piece::Call(call) => {
                self.calls += 1;
                call.json()
            }
            Piece::Arguments(more) => json!({ "function": { "arguments": more } }),
        };
        call["index"] = (self.calls - 1).into();
        json!({ "tool_calls": [call] })
    }
}

impl Format for ChatFormat {
    fn begin(&mut self, writer: &mut Writer) {
        self.begin_choice(0, writer);
    }

    async fn token(&mut self, index: usize, token: TokenEvent, writer: &mut Writer) {
        self.begin_choice(index, writer);
        let entry = logprobs::entries(&self.vocabulary, &token).await;
        let logprobs =
            entry.map_or(Value::Null, |entry| json!({ "content": [logprobs::chat(entry)], "refusal": null }));
        let pieces = self.choices[index].reader.read(&token.text);
        self.pieces(index, pieces, logprobs, writer);
    }

    fn done(&mut self, index: usize, ended: &Ended, writer: &mut Writer) {
        self.begin_choice(index, writer);
        self.metrics.answered(ended);
        let outcome = &ended.outcome;
        let pieces = ended.rest(&mut self.choices[index].reader);
        self.pieces(index, pieces, Value::Null, writer);
        let (finish, calls) = (finish_reason(outcome), self.choices[index].reader.has_called());
        let finish = self.tools.as_deref().map_or(finish, |tools| finish_with(finish, tools, calls));
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
