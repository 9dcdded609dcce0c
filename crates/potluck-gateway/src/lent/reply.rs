//! A lender's answer, read: its chunks become what happens to an answer, whatever API asked. It comes from a stranger's server.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use n0_future::{StreamExt as _, boxed::BoxStream};
use potluck_chain::sample::FinishReason;
use potluck_client::{DraftCounts, Outcome, TokenEvent};
use serde_json::Value;

use super::{
    LentAnswer,
    refusal::{cut, is_word, nonsense, within},
};
use crate::{
    Problem,
    answer::{Ended, Told},
    slots::{Event, Events},
    tools::{Call, TOOLS_MAX},
};

/// Bytes of a line of a lender's answer: a chunk is a few hundred.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Bytes of all that an answer says and calls, with what each piece takes beside its text.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What a piece takes while it waits to be read.
const PIECE_BYTES: usize = 96;

/// Reads an answer to its end. `functions`: those that it may call.
pub(super) async fn follow(answer: LentAnswer, functions: Vec<String>, events: &Events) {
    // Where nobody reads any more, this ends soon.
    let send = |event| drop(events.send((0, event)));
    let mut reading = Reading::new(functions);
    send(Event::Started);
    let ended = match answer.content_type.starts_with("application/json") {
        // A server that knows no streams.
        true => match whole(answer.body, ANSWER_BYTES_MAX).await {
            Ok(body) => reading.whole(&body).map(|text| send(token(text))),
            Err(problem) => Err(problem),
        },
        false => reading.stream(answer.body, |text| send(token(text))).await,
    };
    send(ended.and_then(|()| reading.ended()).unwrap_or_else(Event::Failed));
}

fn token(text: String) -> Event {
    Event::Token(TokenEvent { token: 0, text, logprobs: None })
}

/// A body as a whole, which may not be longer.
pub(super) async fn whole(mut body: BoxStream<Result<Bytes, Problem>>, bytes_max: usize) -> Result<Vec<u8>, Problem> {
    let mut read = Vec::new();
    while let Some(piece) = body.next().await {
        read.extend_from_slice(&piece?);
        if read.len() > bytes_max {
            return Err(nonsense(format!("its answer is longer than {bytes_max} bytes")));
        }
    }
    Ok(read)
}

/// An answer as far as it has come.
struct Reading {
    functions: Vec<String>,
    /// Bytes of all that came.
    bytes: usize,
    text: String,
    /// Each with its server's number.
    calls: Vec<(u64, Call)>,
    finish: Option<FinishReason>,
    stop: Option<String>,
    prompt_tokens: usize,
    completion_tokens: usize,
    reused_tokens: usize,
    begun: Instant,
    first: Option<Instant>,
    last: Instant,
    /// The longest that a piece was waited for.
    longest_pause: Duration,
}

impl Reading {
    fn new(functions: Vec<String>) -> Self {
        let now = Instant::now();
        Self {
            functions,
            bytes: 0,
            text: String::new(),
            calls: Vec::new(),
            finish: None,
            stop: None,
            prompt_tokens: 0,
            completion_tokens: 0,
            reused_tokens: 0,
            begun: now,
            first: None,
            last: now,
            longest_pause: Duration::ZERO,
        }
    }

    /// Server-sent events, each a chunk.
    async fn stream(
        &mut self,
        mut body: BoxStream<Result<Bytes, Problem>>,
        mut say: impl FnMut(String),
    ) -> Result<(), Problem> {
        let mut line = Vec::new();
        while let Some(piece) = body.next().await {
            for part in piece?.split_inclusive(|&byte| byte == b'\n') {
                line.extend_from_slice(part);
                if line.len() > LINE_BYTES_MAX {
                    return Err(nonsense(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
                }
                if line.last() != Some(&b'\n') {
                    continue;
                }
                match event(&line)? {
                    Some(Chunk::End) => return self.over(),
                    Some(Chunk::More(chunk)) => {
                        let text = self.chunk(&chunk, "delta")?;
                        if !text.is_empty() {
                            say(text);
                        }
                    }
                    None => {}
                }
                line.clear();
            }
        }
        self.over()
    }

    /// Its stream is over. One that says why it ended is whole, also without the stream's own end; no other is.
    fn over(&self) -> Result<(), Problem> {
        if self.finish.is_some() { Ok(()) } else { Err(nonsense("it broke off")) }
    }

    /// An answer in one piece; its text.
    fn whole(&mut self, body: &[u8]) -> Result<String, Problem> {
        let object: Value = serde_json::from_slice(body).map_err(nonsense)?;
        let text = self.chunk(&object, "message")?;
        if self.finish.is_none() {
            return Err(nonsense("it has no choice"));
        }
        Ok(text)
    }

    /// Takes one chunk; the text in it.
    fn chunk(&mut self, chunk: &Value, part: &str) -> Result<String, Problem> {
        if !chunk["error"].is_null() {
            return Err(within(chunk));
        }
        let count = |value: &Value| value.as_u64().map(|count| count.min(u64::from(u32::MAX)) as usize);
        let usage = &chunk["usage"];
        self.prompt_tokens = count(&usage["prompt_tokens"]).unwrap_or(self.prompt_tokens);
        self.completion_tokens = count(&usage["completion_tokens"]).unwrap_or(self.completion_tokens);
        let reused = count(&usage["prompt_tokens_details"]["cached_tokens"]).unwrap_or(self.reused_tokens);
        self.reused_tokens = reused.min(self.prompt_tokens);

        // One was asked for.
        let choices = chunk["choices"].as_array().map_or(&[][..], Vec::as_slice);
        let Some(choice) = choices.iter().find(|choice| choice["index"].as_u64().unwrap_or(0) == 0) else {
            return Ok(String::new());
        };
        let said = &choice[part];
        // A refusal is what it says.
        let texts = [&said["content"], &said["refusal"], &choice["text"]].map(|text| text.as_str().unwrap_or_default());
        let text = texts.into_iter().find(|text| !text.is_empty()).unwrap_or_default();
        for (at, call) in said["tool_calls"].as_array().into_iter().flatten().enumerate() {
            self.call(call["index"].as_u64().unwrap_or(at as u64), call)?;
        }
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(if finish == "length" { FinishReason::Length } else { FinishReason::Stop });
            self.stop = choice["stop_reason"].as_str().map(str::to_owned);
        }
        self.bytes += text.len() + PIECE_BYTES;
        if self.bytes > ANSWER_BYTES_MAX {
            return Err(nonsense(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes")));
        }
        if !text.is_empty() || !said["tool_calls"].is_null() {
            let now = Instant::now();
            let before = if self.first.is_some() { self.last } else { self.begun };
            self.longest_pause = self.longest_pause.max(now - before);
            self.last = now;
            self.first.get_or_insert(now);
        }
        self.text += text;
        Ok(text.to_owned())
    }

    /// A call, or more of one: Ollama numbers all calls 0, and each is a new one where it has a name and another id.
    fn call(&mut self, number: u64, piece: &Value) -> Result<(), Problem> {
        let id = piece["id"].as_str().filter(|id| is_word(id));
        let function = &piece["function"];
        let name = function["name"].as_str().unwrap_or_default();
        let last = self.calls.iter().rposition(|(known, _)| *known == number);
        let same = |&at: &usize| name.is_empty() || id.is_none_or(|id| id == self.calls[at].1.id);
        let at = match last.filter(same) {
            Some(at) => at,
            None if self.calls.len() >= TOOLS_MAX => return Err(nonsense(format!("more than {TOOLS_MAX} calls"))),
            None => {
                let id = id.map_or_else(Call::new_id, str::to_owned);
                self.calls.push((number, Call { id, name: String::new(), arguments: String::new() }));
                self.bytes += PIECE_BYTES;
                self.calls.len() - 1
            }
        };
        let call = &mut self.calls[at].1;
        let before = call.name.len() + call.arguments.len();
        call.name += name;
        match &function["arguments"] {
            Value::String(text) => call.arguments += text,
            Value::Null => {}
            object => call.arguments += &object.to_string(),
        }
        self.bytes += call.name.len() + call.arguments.len() - before;
        Ok(())
    }

    /// Calls as they may be handed on: of functions that were offered, with arguments that are whole.
    fn called(&mut self) -> Result<Vec<Call>, Problem> {
        let mut calls: Vec<Call> = std::mem::take(&mut self.calls).into_iter().map(|(_, call)| call).collect();
        let is_whole =
            |call: &Call| call.arguments.is_empty() || serde_json::from_str::<Value>(&call.arguments).is_ok();
        // One that was cut off by a limit is none.
        if self.finish == Some(FinishReason::Length) && calls.last().is_some_and(|call| !is_whole(call)) {
            calls.pop();
        }
        for call in &mut calls {
            if !self.functions.contains(&call.name) {
                return Err(nonsense(format!("it calls `{}`, which it was not offered", cut(&call.name))));
            }
            if !is_whole(call) {
                return Err(nonsense(format!("the arguments of a call of `{}` are no JSON", call.name)));
            }
            if call.arguments.is_empty() {
                "{}".clone_into(&mut call.arguments);
            }
        }
        Ok(calls)
    }

    fn ended(mut self) -> Result<Event, Problem> {
        let calls = self.called()?;
        let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        let first = self.first.unwrap_or(self.last);
        let ttft_s = (first - self.begun).as_secs_f64();
        let outcome = Outcome {
            text: self.text,
            tokens: Vec::new(),
            finish_reason: self.finish.unwrap_or(FinishReason::Stop),
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            reused_tokens: self.reused_tokens,
            ttft_s,
            prefill_tokens_per_s: rate(self.prompt_tokens - self.reused_tokens, ttft_s),
            decode_tokens_per_s: rate(self.completion_tokens.saturating_sub(1), (self.last - first).as_secs_f64()),
            bytes_per_position: 0.0,
            logprobs: None,
            trace: None,
            resumed: 0,
            repairs: Vec::new(),
            longest_pause_s: self.longest_pause.as_secs_f64(),
            drafts: DraftCounts::default(),
        };
        Ok(Event::Done(Box::new(Ended { outcome, told: Some(Told { calls, stop: self.stop }) })))
    }
}

enum Chunk {
    More(Value),
    End,
}

/// What a line of an event stream says; none where it says nothing to us.
fn event(line: &[u8]) -> Result<Option<Chunk>, Problem> {
    let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { return Ok(None) };
    match data {
        b"" => Ok(None),
        b"[DONE]" => Ok(Some(Chunk::End)),
        data => serde_json::from_slice(data).map(|chunk| Some(Chunk::More(chunk))).map_err(nonsense),
    }
}

#[cfg(test)]
mod tests {
    use n0_future::stream;
    use tokio::sync::mpsc;

    use super::*;

    fn answer(content_type: &str, pieces: &[&str]) -> LentAnswer {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece.as_bytes()))).collect();
        let body: BoxStream<_> = Box::pin(stream::iter(pieces));
        LentAnswer { status: 200, content_type: content_type.into(), retry_after: None, body }
    }

    async fn events(answer: LentAnswer) -> Vec<Event> {
        let (events, mut receiver) = mpsc::unbounded_channel();
        follow(answer, vec!["f".into()], &events).await;
        std::iter::from_fn(|| receiver.try_recv().ok().map(|(_, event)| event)).collect()
    }

    async fn problem(pieces: &[&str]) -> Problem {
        match events(answer("text/event-stream", pieces)).await.pop() {
            Some(Event::Failed(problem)) => problem,
            other => panic!("{other:?}"),
        }
    }

    const DONE: &str = "data: [DONE]\n\n";

    fn delta(delta: &str, finish: &str) -> String {
        format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}]}}\n\n")
    }

    #[tokio::test]
    async fn chunks_become_events_wherever_they_are_cut() {
        let stream = [
            ": waiting\r\n\r\n".to_owned(),
            delta(r#"{"role":"assistant","content":"Hé"}"#, "null"),
            delta(r#"{"content":"llo"}"#, "null"),
            delta(r#"{"tool_calls":[{"index":0,"id":"c1","function":{"name":"f","arguments":"{\"a\""}}]}"#, "null"),
            delta(r#"{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]}"#, "null"),
            delta("{}", r#""tool_calls""#),
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":99}}}\n\n".to_owned(),
            "data: [DONE]\n\n".to_owned(),
        ]
        .concat();
        for size in [1, 7, stream.len()] {
            let pieces: Vec<_> =
                stream.as_bytes().chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let body: BoxStream<_> = Box::pin(stream::iter(pieces));
            let answer = LentAnswer { body, ..answer("text/event-stream; charset=utf-8", &[]) };
            let events = events(answer).await;
            let text: Vec<_> = events
                .iter()
                .filter_map(|event| if let Event::Token(token) = event { Some(&*token.text) } else { None })
                .collect();
            assert_eq!(text, ["Hé", "llo"]);
            let Some(Event::Done(ended)) = events.last() else { panic!("{events:?}") };
            let Ended { outcome, told: Some(told) } = &**ended else { panic!("{ended:?}") };
            assert_eq!((&*outcome.text, outcome.prompt_tokens, outcome.completion_tokens), ("Héllo", 7, 5));
            assert_eq!(outcome.reused_tokens, 7, "no more than there are");
            let call = Call { id: "c1".into(), name: "f".into(), arguments: r#"{"a":1}"#.into() };
            assert_eq!(told.calls, [call]);
        }
    }

    #[tokio::test]
    async fn an_answer_in_one_piece_is_one_too() {
        let body = r#"{"choices":[{"message":{"content":"4"},"finish_reason":"length"}],"usage":{"prompt_tokens":3}}"#;
        let events = events(answer("application/json", &[body])).await;
        let Some(Event::Done(ended)) = events.last() else { panic!("{events:?}") };
        let outcome = &ended.outcome;
        assert_eq!((&*outcome.text, outcome.finish_reason, outcome.prompt_tokens), ("4", FinishReason::Length, 3));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_said_to_be_none() {
        let line = format!("data: {}", "x".repeat(LINE_BYTES_MAX));
        let text = delta(&format!(r#"{{"content":"{}"}}"#, "x".repeat(LINE_BYTES_MAX - 1_000)), "null");
        let calls: Vec<_> =
            (0..=TOOLS_MAX).map(|at| serde_json::json!({ "index": at, "function": { "name": "f" } })).collect();
        let calls = delta(&serde_json::json!({ "tool_calls": calls }).to_string(), "null");
        let called = |name: &str, arguments: &str, finish: &str| {
            let function = serde_json::json!({ "index": 0, "function": { "name": name, "arguments": arguments } });
            delta(&serde_json::json!({ "tool_calls": [function] }).to_string(), finish)
        };
        let (other, broken) = (called("g", "{}", "\"tool_calls\""), called("f", "{\"a", "\"tool_calls\""));
        let half = delta(r#"{"content":"half"}"#, "null");
        for pieces in [
            &["data: nonsense\n"][..],
            &[&line],
            &[&half],
            &[],
            &[&*text; 17],
            &[&calls],
            &[DONE],
            &[&half, DONE],
            &[&other, DONE],
            &[&broken, DONE],
        ] {
            let problem = problem(pieces).await;
            assert_eq!((&*problem.code, problem.status()), ("upstream_protocol", 503), "{problem}");
        }
        let failed = problem(&["data: {\"error\":{\"message\":\"out of memory\"}}\n\n"]).await;
        assert_eq!((&*failed.code, &*failed.message), ("upstream_error", "out of memory"));
    }

    #[tokio::test]
    async fn calls_are_told_apart_however_they_are_numbered() {
        let call = |index: &str, id: &str, name: &str, arguments: &str| {
            let arguments = Value::from(arguments);
            delta(
                &format!(
                    r#"{{"tool_calls":[{{{index}"id":{id},"function":{{"name":{name},"arguments":{arguments}}}}}]}}"#
                ),
                "null",
            )
        };
        let end = delta("{}", r#""tool_calls""#);
        // As Ollama has it; as vLLM has it, in pieces, one with an empty id; from 1; and without any number.
        for pieces in [
            [call(r#""index":0,"#, r#""a""#, r#""f""#, "{}"), call(r#""index":0,"#, r#""b""#, r#""f""#, "[1]")]
                .to_vec(),
            [
                call(r#""index":0,"#, r#""a""#, r#""f""#, ""),
                call(r#""index":0,"#, "null", "null", "{}"),
                call(r#""index":1,"#, r#""b""#, r#""f""#, "["),
                call(r#""index":1,"#, "\"\"", "\"\"", "1]"),
            ]
            .to_vec(),
            [
                call(r#""index":1,"#, r#""a""#, r#""f""#, "{"),
                call(r#""index":1,"#, r#""a""#, "null", "}"),
                call(r#""index":2,"#, r#""b""#, r#""f""#, "[1]"),
            ]
            .to_vec(),
            [call("", r#""a""#, r#""f""#, "{}"), call("", r#""b""#, r#""f""#, "[1]")].to_vec(),
        ] {
            let pieces: Vec<&str> = pieces.iter().chain([&end]).map(String::as_str).collect();
            let events = events(answer("text/event-stream", &pieces)).await;
            let Some(Event::Done(ended)) = events.last() else { panic!("{events:?}") };
            let told = ended.told.as_ref().unwrap();
            let calls: Vec<_> = told.calls.iter().map(|call| (&*call.id, &*call.name, &*call.arguments)).collect();
            assert_eq!(calls, [("a", "f", "{}"), ("b", "f", "[1]")], "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn a_call_that_a_limit_cut_off_is_none() {
        let cut = delta(r#"{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{\"a"}}]}"#, r#""length""#);
        let bare = delta(r#"{"tool_calls":[{"index":0,"function":{"name":"f"}}]}"#, r#""tool_calls""#);
        for (piece, calls) in [(cut, &[][..]), (bare, &["{}"])] {
            let events = events(answer("text/event-stream", &[&piece, DONE])).await;
            let Some(Event::Done(ended)) = events.last() else { panic!("{events:?}") };
            let told = ended.told.as_ref().unwrap();
            assert_eq!(told.calls.iter().map(|call| &*call.arguments).collect::<Vec<_>>(), calls);
        }
    }
}
