//! `potluck gateway` in a process of its own, asked over HTTP.

use std::{path::Path, process::Stdio, time::Instant};

use potluck_engine::EngineSettings;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use crate::{
    Outcome,
    peers::READY_TIMEOUT,
    row::Row,
    work::{Contestant, DECODE, PREFILL, Timed, Work, prompt},
};

/// Positions that a conversation may have, and tokens of its two turns.
const CONVERSATION: u32 = 2_048;
const FIRST_TURN: u32 = 1_100;
const SECOND_TURN: u32 = 40;

/// A first token of the second turn takes a fifth of the first's, or less.
const SECOND_TURN_GOAL: f64 = 5.0;

/// Conversations, after one that is not measured.
const ROUNDS: u32 = 5;

/// Bytes of an answer that is read: far more than one has.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// What a gateway says when it is ready.
#[derive(Debug, Deserialize)]
struct Ready {
    url: String,
    model: String,
}

/// One peer with the whole model, its engine, a gateway in front of them, and HTTP between us and it.
#[derive(Debug)]
pub(crate) struct Front {
    _child: Child,
    ready: Ready,
    /// Makes each prompt another one: a prompt that was there before is not evaluated again.
    rounds: u32,
}

impl Front {
    pub(crate) async fn start(potluck: &Path, home: &Path, file: &Path, settings: &EngineSettings) -> Outcome<Self> {
        let [threads, context] = [settings.threads.to_string(), settings.context.to_string()];
        let mut command = Command::new(potluck);
        command
            .args(["gateway", "--local", "--slots", "1", "--listen", "127.0.0.1:0", "--flash-attn", "on", "--json"])
            .args(["--threads", &threads, "--context", &context])
            .arg("--model")
            .arg(file)
            .env("POTLUCK_HOME", home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or("a gateway has no pipe")?;
        let mut line = String::new();
        timeout(READY_TIMEOUT, BufReader::new(stdout).read_line(&mut line)).await??;
        let ready = serde_json::from_str(&line).map_err(|_| format!("the gateway said {line:?}"))?;
        Ok(Self { _child: child, ready, rounds: 0 })
    }

    /// Asks for `count` tokens after `prompt`, streamed; how long it took, from the request's first byte to the answer's last.
    async fn ask(&self, prompt: Vec<u32>, count: u32) -> Outcome<f64> {
        let body = json!({
            "model": self.ready.model, "prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": true,
            "stream": true, "stream_options": { "include_usage": true },
        });
        let (address, body) = (self.ready.url.trim_start_matches("http://"), body.to_string());
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let start = Instant::now();
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        stream.write_all((head + &body).as_bytes()).await?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await?;
        let took = start.elapsed().as_secs_f64();
        let done = answer.contains("data: [DONE]") && answer.contains(&format!("\"completion_tokens\":{count},"));
        if done { Ok(took) } else { Err(format!("the gateway answered {answer}").into()) }
    }
}

/// A conversation's second turn against its first: how much sooner its first token comes where the caches still hold the first.
pub(crate) async fn second_turn(potluck: &Path, home: &Path, file: &Path, settings: &EngineSettings) -> Outcome<Row> {
    let settings = EngineSettings { context: CONVERSATION, ..settings.clone() };
    let front = Front::start(potluck, home, file, &settings).await?;
    let (mut ratios, mut seconds) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        // Each conversation is another one: tokens of the middle of the vocabulary, in an order of its own.
        let token = |at: u32| 1_000 + (at * 7_919 + round * 104_729) % 40_000;
        let first: Vec<u32> = (0..FIRST_TURN).map(token).collect();
        let second: Vec<u32> = (0..FIRST_TURN + SECOND_TURN).map(token).collect();
        let (first, second) = (front.ask(first, 1).await?, front.ask(second, 1).await?);
        if round > 0 {
            ratios.push(first / second);
            seconds.push(second);
        }
    }
    Ok(Row::of("second_turn_first_token", &ratios, &seconds, "s").goal(SECOND_TURN_GOAL).setting(format!(
        "gateway, one peer, {} threads: a prompt of {FIRST_TURN} tokens, then the same and {SECOND_TURN} more, to the end of an \
         answer of one token, {ROUNDS} rounds; ratio: first turn ÷ second",
        settings.threads
    )))
}

impl Contestant for Front {
    fn name(&self, _: Work) -> String {
        "the gateway".into()
    }

    async fn run(&mut self, work: Work) -> Outcome<Timed> {
        self.rounds += 1;
        self.ask(vec![self.rounds], 2).await?;
        let mut tokens = prompt();
        tokens[0] = 40_000 + self.rounds;
        let (seconds, count) = match work {
            // The answer's first token comes with the prompt's last.
            Work::Prefill => (self.ask(tokens, 1).await?, PREFILL),
            Work::Decode => (self.ask(tokens[..1].to_vec(), DECODE).await?, DECODE),
        };
        Ok(Timed { rate: f64::from(count) / seconds, steps: Vec::new() })
    }
}
