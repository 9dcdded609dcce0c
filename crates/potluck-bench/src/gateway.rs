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
    work::{Contestant, DECODE, PREFILL, Timed, Work, prompt},
};

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
