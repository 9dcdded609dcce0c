//! Ratios against llama.cpp, measured side by side on this machine: `make bench`.
//!
//! Each contestant takes turns with what it is measured against (A B A B ... A); a round's ratio is B against the mean of
//! its two neighbours, and a row has the median of the rounds and the distance of their quartiles. All use the same file,
//! threads, chunk, cache type and flash attention. What is printed says how; `bench/results/chain.json` is for machines.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bare;
mod counters;
mod gateway;
mod http;
mod llama;
mod model;
mod noop;
mod peers;
mod row;
#[cfg(feature = "undefended")]
mod security;
mod start;
#[cfg(target_os = "linux")]
mod wan;
mod work;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use potluck_engine::{EngineSettings, FlashAttention};

use crate::{
    bare::Baseline,
    counters::{Counters, family},
    gateway::Front,
    llama::{LlamaBench, LlamaServer},
    model::Model,
    peers::PeerChain,
    row::{Row, quantile},
    work::{Contestant, DECODE, Duel, PREFILL, STREAM_PROMPT, Work},
};

/// What a step of a measurement gives. A bench is read by people: its errors are sentences.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Within what the bare loop must agree with `llama-bench`.
const BARE_GOAL: f64 = 0.97;
const ONE_PEER_GOAL: f64 = 0.97;
const THREE_PEERS_GOAL: f64 = 0.95;
const GATEWAY_GOAL: f64 = 0.97;
const STREAMS_GOAL: f64 = 0.9;

/// How many answers are made at once, where several are.
const STREAMS: [u16; 2] = [8, 16];

/// Positions that a session has room for.
const CONTEXT: u32 = 1_024;

/// Ratios against llama.cpp, measured side by side
#[derive(Debug, Parser)]
struct Cli {
    /// The model's GGUF
    #[arg(long, env = "POTLUCK_TEST_MODEL")]
    model: Option<PathBuf>,
    /// The `potluck` to measure [default: the one beside this program]
    #[arg(long)]
    potluck: Option<PathBuf>,
    /// The folder of llama.cpp's own tools; without it their rows are left out
    #[arg(long)]
    llama: Option<PathBuf>,
    /// Where the results go
    #[arg(long, default_value = "bench/results/chain.json")]
    out: PathBuf,
    /// Only these parts: llama, one, gateway, three, rpc, streams, hop, bytes, turns, stall, start
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only this kind of work: prefill or decode
    #[arg(long)]
    work: Option<String>,
    /// Fewer rounds
    #[arg(long)]
    quick: bool,
    /// Threads of every engine [default: every core]
    #[arg(long)]
    threads: Option<u16>,
    /// `poll` of the peers' engines, for experiments: a number, or `none` [default: what `potluck` uses]
    #[arg(long)]
    poll: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A peer whose stage computes nothing
    #[command(hide = true)]
    NoopPeer,
    /// Over a wide-area network
    #[cfg(target_os = "linux")]
    Wan(Box<wan::WanArgs>),
    /// Plots and tables of that
    #[cfg(target_os = "linux")]
    WanReport(wan::ReportArgs),
    /// Its client
    #[cfg(target_os = "linux")]
    #[command(hide = true)]
    WanClient,
    /// A peer of it that is paced
    #[cfg(target_os = "linux")]
    #[command(hide = true)]
    WanPacedPeer,
    /// An engine of its client
    #[cfg(target_os = "linux")]
    #[command(hide = true, name = wan::ENGINE)]
    WanEngine,
    /// A peer that does without defences
    #[cfg(feature = "undefended")]
    #[command(hide = true)]
    UndefendedPeer,
    /// Its engine
    #[cfg(feature = "undefended")]
    #[command(hide = true)]
    UndefendedEngine,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(feature = "undefended")]
    if matches!(cli.command, Some(Command::UndefendedEngine)) {
        security::engine();
    }
    #[cfg(target_os = "linux")]
    if matches!(cli.command, Some(Command::WanEngine)) {
        potluck_engine::child_main();
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let result = runtime.block_on(async {
        match cli.command {
            Some(Command::NoopPeer) => noop::peer().await,
            #[cfg(target_os = "linux")]
            Some(Command::Wan(args)) => wan::run(*args).await,
            #[cfg(target_os = "linux")]
            Some(Command::WanReport(args)) => wan::publish(&args),
            #[cfg(target_os = "linux")]
            Some(Command::WanClient) => wan::client().await,
            #[cfg(target_os = "linux")]
            Some(Command::WanPacedPeer) => wan::paced_peer().await,
            #[cfg(target_os = "linux")]
            Some(Command::WanEngine) => Ok(()),
            #[cfg(feature = "undefended")]
            Some(Command::UndefendedPeer | Command::UndefendedEngine) => security::peer().await,
            None => Bench::new(cli)?.run().await,
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error.as_ref()),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

struct Bench {
    cli: Cli,
    potluck: PathBuf,
    file: PathBuf,
    home: tempfile::TempDir,
    settings: EngineSettings,
    rows: Vec<Row>,
    /// By how much more often than usual work is repeated.
    rounds: usize,
}

impl Bench {
    fn new(cli: Cli) -> Outcome<Self> {
        let file = cli.model.clone().ok_or("which model? Say --model FILE, or set POTLUCK_TEST_MODEL")?;
        let beside = std::env::current_exe()?.with_file_name("potluck");
        let potluck = cli.potluck.clone().unwrap_or(beside);
        let default = EngineSettings::default();
        let threads = cli.threads.unwrap_or(default.threads);
        let poll = match cli.poll.as_deref() {
            None => default.poll,
            Some("none") => None,
            Some(number) => Some(number.parse()?),
        };
        let settings = EngineSettings {
            threads,
            threads_batch: threads,
            poll,
            flash: FlashAttention::On,
            context: CONTEXT,
            caches: 1,
            ..default
        };
        let home = tempfile::tempdir()?;
        Ok(Self { cli, potluck, file: fs::canonicalize(file)?, home, settings, rows: Vec::new(), rounds: 1 })
    }

    async fn run(mut self) -> Outcome<()> {
        eprintln!("{} threads; load {}", self.settings.threads, load());
        let model = Model::add(self.home.path(), &self.file)?;
        if ["llama", "one", "gateway", "three", "rpc"].iter().any(|part| self.wants(part)) {
            self.engines(&model).await?;
        }
        if self.wants("streams") {
            match self.cli.llama.clone() {
                Some(folder) => self.streams(&folder).await?,
                None => skip("streams against llama-server"),
            }
        }
        if self.wants("hop") {
            self.report(noop::time(self.home.path()).await?);
        }
        if self.wants("bytes") {
            self.report(noop::bytes(self.home.path()).await?);
        }
        if self.wants("turns") {
            let (potluck, home) = (self.potluck.clone(), self.home.path().to_owned());
            self.report(vec![gateway::second_turn(&potluck, &home, &self.file, &self.settings).await?]);
        }
        if self.wants("stall") {
            let (potluck, home) = (self.potluck.clone(), self.home.path().to_owned());
            for peers in [1, 3] {
                self.report(vec![gateway::stall(&potluck, &home, &self.file, &self.settings, peers).await?]);
            }
        }
        if self.wants("start") {
            self.report(start::first_token(&self.potluck, self.home.path(), &self.file).await?);
        }
        #[cfg(feature = "undefended")]
        if self.wants("security") {
            self.security(&model).await?;
        }
        self.write()
    }

    /// Three peers as they are, against three that do without.
    #[cfg(feature = "undefended")]
    async fn security(&mut self, model: &Model) -> Outcome<()> {
        let (mut bare, mut secured) = security::chains(&self.potluck, self.home.path(), model, &self.settings).await?;
        // The difference is smaller than what a machine does otherwise in a round.
        self.rounds = security::MORE_ROUNDS;
        self.duel("security", Some(security::GOAL), &mut bare, &mut secured, &[]).await?;
        self.rounds = 1;
        self.report(security::checks()?);
        Ok(())
    }

    /// Everything that computes, against the bare loop.
    async fn engines(&mut self, model: &Model) -> Outcome<()> {
        let mut bare = Baseline::find(model, &self.settings).await?;
        if self.wants("llama") {
            match self.cli.llama.clone() {
                Some(folder) => {
                    let mut tool = LlamaBench::alone(&folder, &self.file, self.settings.threads);
                    // Who is measured against whom is turned round: the tool is the yardstick of the bare loop.
                    self.duel("bare_loop", Some(BARE_GOAL), &mut tool, &mut bare, &[]).await?;
                }
                None => skip("the bare loop against llama-bench"),
            }
        }
        if self.wants("one") {
            let mut one = self.chain(model, 1).await?;
            let pids = pids(&one);
            self.duel("one_peer", Some(ONE_PEER_GOAL), &mut bare, &mut one, &pids).await?;
        }
        if self.wants("gateway") {
            let mut front = Front::start(&self.potluck, self.home.path(), &self.file, &self.settings).await?;
            self.duel("gateway", Some(GATEWAY_GOAL), &mut bare, &mut front, &[]).await?;
        }
        let mut three = match self.wants("three") || self.wants("rpc") {
            true => Some(self.chain(model, 3).await?),
            false => None,
        };
        if let Some(three) = &mut three
            && self.wants("three")
        {
            let pids = pids(three);
            self.duel("three_peers", Some(THREE_PEERS_GOAL), &mut bare, three, &pids).await?;
        }
        if let Some(three) = &mut three
            && self.wants("rpc")
        {
            match self.cli.llama.clone() {
                Some(folder) => {
                    let mut rpc = LlamaBench::over_rpc(&folder, &self.file, self.settings.threads).await?;
                    let servers: Vec<_> = rpc.servers().collect();
                    self.duel("llama_rpc", None, &mut bare, &mut rpc, &servers).await?;
                    self.duel("three_peers_over_llama_rpc", Some(1.0), &mut rpc, three, &[]).await?;
                }
                None => skip("llama.cpp RPC with three servers"),
            }
        }
        Ok(())
    }

    /// Several answers at once, against llama-server with as many slots.
    async fn streams(&mut self, folder: &Path) -> Outcome<()> {
        for streams in STREAMS {
            let settings = EngineSettings { caches: streams, ..self.settings.clone() };
            let mut server = LlamaServer::start(folder, &self.file, &settings).await?;
            for (name, peers) in [("one_peer", None), ("three_peers", Some(3))] {
                let mut front = Front::with(&self.potluck, self.home.path(), &self.file, &settings, peers).await?;
                let work = Work::Streams(streams);
                let duel = Duel::fight(&mut server, &mut front, work, work.rounds(self.cli.quick)).await?;
                let setting = format!(
                    "{} against llama-server at {:.1} tokens/s; {streams} answers at once, each of {DECODE} tokens after {STREAM_PROMPT}, \
                     {streams} slots of {CONTEXT} positions, {} threads an engine, flash attention, f16 cache; load {}",
                    front.name(work),
                    quantile(&duel.base, 0.5),
                    settings.threads,
                    load()
                );
                let row = Row::of(&format!("{streams}_streams_{name}"), &duel.ratios(), &duel.other, "tokens/s");
                self.report(vec![row.goal(STREAMS_GOAL).setting(setting)]);
            }
        }
        Ok(())
    }

    async fn chain(&self, model: &Model, stages: usize) -> Outcome<PeerChain> {
        PeerChain::start(&self.potluck, self.home.path(), model, stages, &self.settings).await
    }

    async fn duel(
        &mut self,
        name: &str,
        goal: Option<f64>,
        base: &mut impl Contestant,
        other: &mut impl Contestant,
        pids: &[u32],
    ) -> Outcome<()> {
        let wanted = |work: &Work| self.cli.work.as_deref().is_none_or(|name| name == work.name());
        for work in Work::ALL.into_iter().filter(wanted).collect::<Vec<_>>() {
            let rounds = work.rounds(self.cli.quick) * self.rounds;
            let before: Vec<_> = pids.iter().map(|&pid| Counters::of(pid)).collect();
            let duel = Duel::fight(base, other, work, rounds).await?;
            for (&pid, before) in pids.iter().zip(before) {
                let tokens = rounds as f64 * f64::from(if work == Work::Decode { DECODE } else { PREFILL });
                eprintln!("    {}: a token {}", process_name(pid), Counters::of(pid).since(before, tokens));
            }
            for (who, steps) in ["base", "measured"].iter().zip(&duel.steps) {
                if let [_, _, ..] = steps[..] {
                    let [low, middle, high] = [0.1, 0.5, 0.9].map(|share| quantile(steps, share));
                    eprintln!("    {who}: a step {low:.3} ms at p10, {middle:.3} at p50, {high:.3} at p90");
                }
            }
            let base_rate = quantile(&duel.base, 0.5);
            let setting = format!(
                "against {} at {base_rate:.1} tokens/s; {} in {rounds} rounds; {} threads, flash attention, \
                 f16 cache, chunk 512, engines' poll {:?}; load {}",
                base.name(work),
                if work == Work::Decode { "64 tokens from an empty cache" } else { "512 positions" },
                self.settings.threads,
                self.settings.poll,
                load()
            );
            let mut row = Row::of(&format!("{name}_{}", work.name()), &duel.ratios(), &duel.other, "tokens/s");
            row.goal = goal;
            self.report(vec![row.setting(setting)]);
        }
        Ok(())
    }

    fn wants(&self, part: &str) -> bool {
        self.cli.only.is_empty() || self.cli.only.iter().any(|wanted| wanted == part)
    }

    fn report(&mut self, rows: Vec<Row>) {
        for row in rows {
            println!("{}", row.line());
            self.rows.push(row);
        }
    }

    fn write(&self) -> Outcome<()> {
        if let Some(folder) = self.cli.out.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&self.cli.out, serde_json::to_string_pretty(&self.rows)? + "\n")?;
        eprintln!("written to {}", self.cli.out.display());
        Ok(())
    }
}

/// The processes of a chain: each peer and its engine.
fn pids(chain: &PeerChain) -> Vec<u32> {
    chain.peers.iter().filter_map(|peer| peer.child.id()).flat_map(family).collect()
}

fn process_name(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = line.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
    let verb = words.get(1).map_or("", |word| word.as_ref());
    format!("{verb} {pid}")
}

/// The machine's load of the last minute, where the system tells it: others who compute spoil a measurement.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().filter(|first| !first.is_empty()).unwrap_or("unknown").to_owned()
}

fn skip(what: &str) {
    eprintln!("SKIPPED: {what}: llama.cpp's tools are not built; bench/llama-rpc.sh builds them");
}
