//! An answer in Anthropic's shape: as a message, and as events in their order.

use std::sync::Arc;

use potluck_chain::sample::FinishReason;
use potluck_client::TokenEvent;
use serde_json::{Value, json};

use super::object;
use crate::{
    Problem,
    answer::Ended,
    metrics::Metrics,
    stream::{Format, Writer},
    tools::{Call, Piece, Reader, Said},
};

/// An answer, while it comes.
pub(super) struct Events {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) prompt_tokens: usize,
    pub(super) ends: Vec<u32>,
    pub(super) stops: Vec<String>,
    /// It may have calls, of which nothing is known until its end.
    pub(super) may_call: bool,
    pub(super) metrics: Arc<Metrics>,
    pub(super) reader: Reader,
    /// Blocks that have begun. The last one is open where it is text.
    pub(super) blocks: usize,
    pub(super) text_open: bool,
}

impl Events {
    /// The whole message.
    pub(super) fn whole(&mut self, ended: &Ended) -> Value {
        let pieces = ended.pieces(&mut self.reader);
        let Said { text, calls } = self.reader.said(&pieces);
        let text = (!text.is_empty() || calls.is_empty()).then(|| json!({ "type": "text", "text": text }));
        let content: Vec<_> = text.into_iter().chain(calls.iter().map(|call| block(call, call.input()))).collect();
        let mut message = self.message(&content);
        let (reason, sequence) = self.stop(ended, &calls);
        message["stop_reason"] = reason.into();
        message["stop_sequence"] = sequence;
        message["usage"]["input_tokens"] = ended.outcome.prompt_tokens.into();
        message["usage"]["output_tokens"] = ended.outcome.completion_tokens.into();
        message
    }

    fn message(&self, content: &[Value]) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": null, "stop_sequence": null,
            "usage": { "input_tokens": self.prompt_tokens, "output_tokens": 0 },
        })
    }

    /// Why it ended, in Anthropic's words; and the text that ended it, where it is known.
    fn stop(&self, ended: &Ended, calls: &[Call]) -> (&'static str, Value) {
        let Ended { outcome, told } = ended;
        let by_model = outcome.tokens.last().is_some_and(|token| self.ends.contains(token));
        let stop = told.as_ref().map(|told| told.stop.as_ref().filter(|stop| self.stops.contains(stop)));
        match outcome.finish_reason {
            FinishReason::Length => ("max_tokens", Value::Null),
            _ if !calls.is_empty() => ("tool_use", Value::Null),
            FinishReason::Stop => match (stop, &self.stops[..]) {
                (Some(Some(stop)), _) => ("stop_sequence", stop.clone().into()),
                (None, [only]) if !by_model => ("stop_sequence", only.clone().into()),
                (None, _) if !by_model => ("stop_sequence", Value::Null),
                _ => ("end_turn", Value::Null),
            },
            FinishReason::Cancel => ("end_turn", Value::Null),
        }
    }

    fn start(&mut self, block: &Value, writer: &mut Writer) {
        let event = json!({ "type": "content_block_start", "index": self.blocks, "content_block": block });
        writer.event("content_block_start", &event);
        self.blocks += 1;
    }

    fn delta(&self, delta: &Value, writer: &mut Writer) {
        let event = json!({ "type": "content_block_delta", "index": self.blocks - 1, "delta": delta });
        writer.event("content_block_delta", &event);
    }

    fn stop_block(&self, writer: &mut Writer) {
        writer.event("content_block_stop", &json!({ "type": "content_block_stop", "index": self.blocks - 1 }));
    }

    fn say(&mut self, text: &str, writer: &mut Writer) {
        if text.is_empty() {
            return;
        }
        self.open_text(writer);
        self.delta(&json!({ "type": "text_delta", "text": text }), writer);
    }

    fn open_text(&mut self, writer: &mut Writer) {
        if !self.text_open {
            self.start(&json!({ "type": "text", "text": "" }), writer);
            self.text_open = true;
        }
    }

    fn close_text(&mut self, writer: &mut Writer) {
        if self.text_open {
            self.stop_block(writer);
            self.text_open = false;
        }
    }
}

/// A call as a block: in a stream it begins without its input.
fn block(call: &Call, input: Value) -> Value {
    let id = call.id.replacen("call_", "toolu_", 1);
    json!({ "type": "tool_use", "id": id, "name": call.name, "input": input })
}

impl Format for Events {
    fn begin(&mut self, writer: &mut Writer) {
        writer.event("message_start", &json!({ "type": "message_start", "message": self.message(&[]) }));
        if !self.may_call {
            self.open_text(writer);
        }
        self.beat(writer);
    }

    async fn token(&mut self, _: usize, token: TokenEvent, writer: &mut Writer) {
        // Calls come whole, at the end: their input is an object, and none is called with half of it.
        let text: String = self.reader.read(&token.text).iter().filter_map(Piece::text).collect();
        self.say(&text, writer);
    }

    fn done(&mut self, _: usize, ended: &Ended, writer: &mut Writer) {
        self.metrics.answered(ended);
        let outcome = &ended.outcome;
        let pieces = ended.rest(&mut self.reader);
        let Said { text, calls } = self.reader.said(&pieces);
        self.say(&text, writer);
        if calls.is_empty() && self.blocks == 0 {
            self.open_text(writer);
        }
        self.close_text(writer);
        for call in &calls {
            self.start(&block(call, json!({})), writer);
            self.delta(&json!({ "type": "input_json_delta", "partial_json": call.input().to_string() }), writer);
            self.stop_block(writer);
        }
        let (reason, sequence) = self.stop(ended, &calls);
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
