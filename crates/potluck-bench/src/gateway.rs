//! `potluck gateway` in a process of its own, asked over HTTP.

use std::{path::Path, process::Stdio};

use potluck_engine::EngineSettings;
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    Outcome,
    http::{complete, complete_all},
    peers::READY_TIMEOUT,
    row::Row,
    work::{Contestant, DECODE, PREFILL, Timed, Work, prompt, stream_prompts},
};

/// Positions that a conversation may have, and tokens of its two turns.
const CONVERSATION: u32 = 2_048;
const FIRST_TURN: u32 = 1_100;
const SECOND_TURN: u32 = 40;

/// Tokens of a prompt that arrives while somebody else is answered, and of that answer: long enough to outlast it.
const LONG_PROMPT: u32 = 4_096;
const ANSWERED: u32 = 200;

/// Rounds of that: each takes most of a minute on two cores.
const LONG_ROUNDS: u32 = 2;

/// Positions of a prefill step, as the gateway has it by default.
const CHUNK: u32 = 512;

/// A first token of the second turn takes a fifth of the first's, or less.
const SECOND_TURN_GOAL: f64 = 5.0;

/// Conversations, after one that is not measured.
const ROUNDS: u32 = 5;

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
    /// Peers behind it; none: one, with the whole model.
    peers: Option<u16>,
    /// Makes each prompt another one: a prompt that was there before is not evaluated again.
    rounds: u32,
}

impl Front {
    /// In front of one peer with the whole model, and with one slot.
    pub(crate) async fn start(potluck: &Path, home: &Path, file: &Path, settings: &EngineSettings) -> Outcome<Self> {
        Self::with(potluck, home, file, settings, None).await
    }

    /// With as many slots as the settings have caches, in front of so many peers.
    pub(crate) async fn with(
        potluck: &Path,
        home: &Path,
        file: &Path,
        settings: &EngineSettings,
        peers: Option<u16>,
    ) -> Outcome<Self> {
        let EngineSettings { threads, context, caches, .. } = settings;
        let [threads, context, slots] = [threads.to_string(), context.to_string(), caches.to_string()];
        let mut command = Command::new(potluck);
        command
            .args(["gateway", "--listen", "127.0.0.1:0", "--flash-attn", "on", "--json", "--slots", &slots])
            .args(["--threads", &threads, "--context", &context])
            .args(peers.map_or(vec!["--local".into()], |peers| vec!["--peers".into(), peers.to_string()]))
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
        Ok(Self { _child: child, ready, peers, rounds: 0 })
    }

    /// Asks for `count` tokens after `prompt`; seconds.
    async fn ask(&self, prompt: Vec<u32>, count: u32) -> Outcome<f64> {
        Ok(complete(self.address(), &self.ready.model, prompt, count).await?.seconds)
    }

    fn address(&self) -> &str {
        self.ready.url.trim_start_matches("http://")
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

/// What a long prompt that arrives costs somebody who is being answered: two chunks' times ÷ the longest pause between two tokens.
pub(crate) async fn stall(
    potluck: &Path,
    home: &Path,
    file: &Path,
    settings: &EngineSettings,
    peers: u16,
) -> Outcome<Row> {
    let settings = EngineSettings { context: LONG_PROMPT + 512, caches: 2, ..settings.clone() };
    let front = Front::with(potluck, home, file, &settings, Some(peers)).await?;
    let (mut ratios, mut pauses) = (Vec::new(), Vec::new());
    for round in 0..LONG_ROUNDS {
        let token = |at: u32| 1_000 + (at * 7_919 + round * 104_729) % 40_000;
        let long = |from: u32| (from..from + LONG_PROMPT).map(token).collect::<Vec<_>>();
        // Alone: how long a chunk takes.
        let chunk = front.ask(long(0), 1).await? * f64::from(CHUNK) / f64::from(LONG_PROMPT);
        // And while another is answered, from its tenth of a second on.
        let (answered, arrived) =
            tokio::join!(complete(front.address(), &front.ready.model, vec![token(1), token(2)], ANSWERED), async {
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                front.ask(long(9), 1).await
            });
        arrived?;
        let pieces = answered?.pieces;
        let pause = pieces.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        ratios.push(2.0 * chunk / pause);
        pauses.push(pause);
    }
    let name = format!("long_prompt_pause_{peers}_peers");
    Ok(Row::of(&name, &ratios, &pauses, "s").goal(1.0).setting(format!(
        "gateway over {peers} peers, {} threads: an answer of {ANSWERED} tokens, into which a prompt of {LONG_PROMPT} tokens arrives, {LONG_ROUNDS} rounds; \
         ratio: two chunks of {CHUNK}, at the rate of that prompt alone ÷ the longest pause between two tokens",
        settings.threads
    )))
}

impl Contestant for Front {
    fn name(&self, _: Work) -> String {
        match self.peers {
            None => "the gateway".into(),
            Some(peers) => format!("the gateway over {peers} peers"),
        }
    }

    async fn run(&mut self, work: Work) -> Outcome<Timed> {
        self.rounds += 1;
        if let Work::Streams(streams) = work {
            let prompts = stream_prompts(streams, self.rounds);
            let rate = complete_all(self.address(), &self.ready.model, prompts, DECODE).await?;
            return Ok(Timed { rate, steps: Vec::new() });
        }
        self.ask(vec![self.rounds], 2).await?;
        let mut tokens = prompt();
        tokens[0] = 40_000 + self.rounds;
        let (seconds, count) = match work {
            // The answer's first token comes with the prompt's last.
            Work::Prefill => (self.ask(tokens, 1).await?, PREFILL),
            Work::Decode | Work::Streams(_) => (self.ask(tokens[..1].to_vec(), DECODE).await?, DECODE),
        };
        Ok(Timed { rate: f64::from(count) / seconds, steps: Vec::new() })
    }
}
