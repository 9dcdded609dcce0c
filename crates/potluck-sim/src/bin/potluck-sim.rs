//! Runs many seeds, and makes a small run of one that breaks a promise: `make sim`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that tells")]

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use clap::Parser;
use potluck_sim::{Failed, Kind, Report, Scenario, World, minimised, tried};
use serde_json::{Value, json};

/// Simulated swarms in which things go wrong; fails where a promise is broken
#[derive(Debug, Parser)]
struct Args {
    /// This seed alone: a number, or 0x and hexadecimal
    #[arg(long, value_parser = number)]
    seed: Option<u64>,
    /// Seeds of each kind
    #[arg(long, default_value_t = 3_500)]
    seeds: u64,
    /// The first of them
    #[arg(long, value_parser = number, default_value = "0")]
    from: u64,
    /// What goes wrong: storm, recovery, weather, crowd, day [default: the first three]
    #[arg(long, value_delimiter = ',', value_parser = kind)]
    kind: Vec<Kind>,
    /// A scenario that was kept, instead of seeds
    #[arg(long)]
    scenario: Option<PathBuf>,
    /// Where the results go, as JSON
    #[arg(long)]
    out: Option<PathBuf>,
}

fn number(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    let names = Kind::ALL.map(Kind::name).join(", ");
    Kind::named(text).ok_or_else(|| format!("one of {names}"))
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("potluck-sim: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<bool, Box<dyn std::error::Error>> {
    if let Some(file) = &args.scenario {
        let scenario: Scenario = serde_json::from_str(&fs::read_to_string(file)?)?;
        println!("{:?}", World::new(scenario).telling(|what| println!("{what}")).run());
        return Ok(true);
    }
    // Whoever breaks a promise panics, and is caught: it is told below.
    std::panic::set_hook(Box::new(|_| ()));
    let kinds = if args.kind.is_empty() { vec![Kind::Storm, Kind::Recovery, Kind::Weather] } else { args.kind.clone() };
    let (from, seeds) = args.seed.map_or((args.from, args.seeds), |seed| (seed, 1));
    let mut rows = Vec::new();
    for kind in kinds {
        let begun = Instant::now();
        let (report, failed) = hunt(kind, from, seeds);
        let seconds = (begun.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        println!("{}, {seeds} seeds from {from:#x}, {seconds} s: {report:?}", kind.name());
        let broken = failed.map(|failed| {
            println!("\n{} {:#x} breaks a promise; a smaller run that does:", kind.name(), failed.scenario.seed);
            (failed.scenario.seed, minimised(*failed))
        });
        rows.push(row(kind, (from, seeds), seconds, &report, broken.as_ref()));
        if let Some(out) = &args.out {
            fs::write(out, serde_json::to_string_pretty(&rows)? + "\n")?;
        }
        if let Some((_, failed)) = broken {
            return Ok(told(Err(Box::new(failed))));
        }
    }
    Ok(true)
}

/// What came of the seeds of one kind.
fn row(kind: Kind, (from, seeds): (u64, u64), seconds: f64, report: &Report, broken: Option<&(u64, Failed)>) -> Value {
    let failed: BTreeMap<_, _> = report.failed.iter().collect();
    let broken = broken.map(|(seed, failed)| {
        let promise = failed.message.lines().next().unwrap_or_default();
        json!({ "seed": seed, "promise": promise, "scenario": failed.scenario })
    });
    json!({
        "kind": kind.name(), "seeds": seeds, "from": from, "seconds": seconds, "finished": report.finished,
        "left": report.left, "failed": failed, "failed_under_way": report.failed_under_way, "tokens": report.tokens,
        "repairs": report.repairs, "returned": report.returned, "computed_again": report.computed_again, "events": report.events,
        "virtual_s": report.elapsed.as_secs(), "broken": broken,
    })
}

fn told(result: Result<Report, Box<Failed>>) -> bool {
    match &result {
        Ok(report) => println!("{report:?}"),
        Err(failed) => println!("{}", failed.message),
    }
    result.is_ok()
}

/// So many seeds on all cores, until one breaks a promise: of those that do, the lowest that was found.
fn hunt(kind: Kind, from: u64, seeds: u64) -> (Report, Option<Box<Failed>>) {
    let (next, is_over) = (AtomicU64::new(from), AtomicBool::new(false));
    let found: Mutex<(Report, Option<Box<Failed>>)> = Mutex::default();
    let work = || {
        while !is_over.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds {
                return;
            }
            let result = tried(&kind.scenario(seed));
            let Ok(mut found) = found.lock() else { return };
            match result {
                Ok(report) => found.0.add(report),
                Err(failed) => {
                    is_over.store(true, Ordering::Relaxed);
                    let lowest = found.1.take_if(|other| other.scenario.seed < seed);
                    found.1 = lowest.or(Some(failed));
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    found.into_inner().unwrap_or_default()
}
