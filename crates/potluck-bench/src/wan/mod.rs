//! Over a wide-area network: Potluck and llama.cpp's RPC on the same emulated lines, `make bench-wan`.
//!
//! A [`stand::Stand`] is a client and peers, each a machine of its own (a network namespace) on a line with delay, loss
//! and a rate. [`contest`] has arms take turns over fixed prompts; [`bound`] says what no implementation could exceed
//! with the same stages and lines, [`predict`] what the planner expects of them. Real figures come from engines that
//! share this machine's cores; **paced** ones from stages that sleep for their measured time and answer from a recording
//! ([`pace`]), and are named so wherever they are told.
//!
//! The client is a process in the client's namespace (`potluck-bench wan-client`), which is told what to do in lines of
//! JSON ([`words`]). It needs Linux and root.

mod bound;
mod chain;
mod client;
mod contest;
mod figures;
mod measure;
mod net;
mod pace;
mod parts;
mod peer;
mod plot;
mod ports;
mod predict;
mod process;
mod prompts;
mod publish;
mod race;
mod rpc;
mod server;
mod stages;
mod stand;
mod words;

use std::{collections::HashMap, fs, path::PathBuf, process::Command};

use clap::Args;
use potluck_engine::{EngineSettings, FlashAttention};
use potluck_netem::link::Line;

use self::{
    figures::{Figure, Report, StageTime},
    stand::Bench,
};
use crate::{Outcome, load, model::Model};

pub(crate) use {
    client::run as client, pace::Pace, peer::run as paced_peer, publish::ReportArgs, publish::run as publish,
    stages::ENGINE,
};

/// Positions that a session has room for: a prompt of 2,048 tokens and its answer.
const CONTEXT: u32 = 2_304;

/// Potluck and llama.cpp's RPC over an emulated wide-area network
#[derive(Debug, Args)]
pub(crate) struct WanArgs {
    /// The model's GGUF
    #[arg(long, env = "POTLUCK_TEST_MODEL")]
    model: PathBuf,
    /// The `potluck` to measure [default: the one beside this program]
    #[arg(long)]
    potluck: Option<PathBuf>,
    /// The folder of llama.cpp's own tools; without it their arms are left out
    #[arg(long)]
    llama: Option<PathBuf>,
    /// Draft models: the model requantised, and with layers left out (bench/drafts.sh makes them)
    #[arg(long, value_delimiter = ',')]
    drafts: Vec<PathBuf>,
    /// Where the results go; figures of parts that are not measured stay
    #[arg(long, default_value = "bench/results/wan.json")]
    out: PathBuf,
    /// Only these parts: plain, novel, draftable, rtt, stages, prefill, sessions, codecs
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Of plain, novel and draftable: only over these stages
    #[arg(long, value_parser = ["real", "paced"])]
    kind: Option<String>,
    /// Fewer prompts and shorter answers
    #[arg(long)]
    quick: bool,
    /// Prompts of each figure at most
    #[arg(long)]
    prompts: Option<usize>,
    /// Tokens of an answer at most
    #[arg(long)]
    tokens: Option<u32>,
    /// Per cent of packets that are lost, for what is measured with several losses
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 1.0])]
    loss: Vec<f64>,
    /// Of plain, novel and draftable: every machine on such a line, instead of even ones with those losses: lan, wifi,
    /// metro, continent, ocean, dsl, lte, satellite
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    line: Vec<Line>,
    /// Threads of the engines that compute at once on this machine's cores: a chain's, while a draft model drafts
    #[arg(long, default_value_t = 1)]
    threads: u16,
    /// What chance is made of: lost packets
    #[arg(long, default_value_t = 6)]
    seed: u64,
}

/// What is measured, and what was.
struct Wan {
    args: WanArgs,
    bench: Bench,
    report: Report,
    commit: String,
}

/// Measures what was asked for.
pub(crate) async fn run(args: WanArgs) -> Outcome<()> {
    let default = EngineSettings::default();
    let settings = EngineSettings {
        threads_batch: default.threads,
        flash: FlashAttention::On,
        context: CONTEXT,
        caches: 1,
        ..default
    };
    let home = tempfile::tempdir()?;
    let file = fs::canonicalize(&args.model)?;
    let entry = Model::add(home.path(), &file)?.entry;
    let beside = std::env::current_exe()?.with_file_name("potluck");
    let mut report = Report::read(&args.out)?;
    let commit = commit();
    report.commit.clone_from(&commit);
    report.machine = machine();
    report.model = entry.name.clone();
    if args.llama.is_none() {
        eprintln!("SKIPPED: llama.cpp's RPC: say --llama FOLDER (bench/llama-rpc.sh builds it)");
    }
    let mut drafts = Vec::new();
    for (name, file) in ["Q4_0", "cut"].iter().zip(&args.drafts) {
        drafts.push(((*name).to_owned(), Model::add(home.path(), &fs::canonicalize(file)?)?.entry));
    }
    let bench = Bench {
        potluck: args.potluck.clone().unwrap_or(beside),
        llama: args.llama.clone(),
        file,
        home: home.path().to_owned(),
        entry,
        settings,
        drafts,
        paces: HashMap::new(),
        recordings: HashMap::new(),
    };
    eprintln!("{}; load {}", report.machine, load());
    Wan { args, bench, report, commit }.parts().await
}

impl Wan {
    fn wants(&self, part: &str) -> bool {
        self.args.only.is_empty() || self.args.only.iter().any(|wanted| wanted == part)
    }

    /// Tells a figure, and keeps it at once: a run takes long.
    fn put(&mut self, figure: Figure) -> Outcome<()> {
        figure.lines().iter().for_each(|line| println!("{line}"));
        self.report.put(figure);
        for ((spec, threads), pace) in &self.bench.paces {
            let ms = pace.answering.iter().map(|(rows, seconds)| (*rows, figures::round(seconds * 1e3))).collect();
            self.report.put_stage(StageTime { layers: spec.layers.to_string(), threads: *threads, ms });
        }
        self.report.stages.sort_by(|a, b| (a.threads, &a.layers).cmp(&(b.threads, &b.layers)));
        self.report.write(&self.args.out)
    }
}

fn commit() -> String {
    let head = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    head.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    format!("{}, {cores} cores", model.unwrap_or("an unknown processor"))
}
