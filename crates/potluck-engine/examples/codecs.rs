//! What each codec changes of models, on the text that `potluck model prove` scores, at all cuts of a chain and at each alone.
//!
//! `cargo run -p potluck-engine --example codecs -- [--each-cut] [--positions=N] [--threads=N] OUT.json MODEL.gguf...` (`make prove-codecs`) writes the table of each
//! model, and prints what keeps a codec from being without loss.

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::PathBuf;

use common::Gguf;
use potluck_core::{LayerRange, Stage};
use potluck_engine::{EngineProgram, EngineSettings, EngineStage, VocabularyClient, codecs};
use potluck_model::{
    Facts,
    proof::{At, Table},
};
use serde_json::{Value, json};

type Error = Box<dyn std::error::Error>;

/// Stages between the client's own ends, which have a layer each.
const BETWEEN: u32 = 3;

fn main() -> Result<(), Error> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let command = format!("cargo run -p potluck-engine --example codecs -- {}", args.join(" "));
    if args == ["engine"] {
        potluck_engine::child_main();
    }
    let each_cut = args.iter().any(|arg| arg == "--each-cut");
    args.retain(|arg| arg != "--each-cut");
    // Fewer than a proof takes show that it works, and no more.
    let number = |name: &str| args.iter().find_map(|arg| arg.strip_prefix(name)?.parse().ok());
    let positions = number("--positions=").unwrap_or(potluck_model::proof::POSITIONS_MIN as usize);
    let threads = number("--threads=").map_or_else(|| EngineSettings::default().threads, |threads| threads as u16);
    args.retain(|arg| !arg.starts_with("--"));
    let [out, models @ ..] = &args[..] else {
        return Err("usage: codecs [--each-cut] [--positions=N] [--threads=N] OUT.json MODEL.gguf...".into());
    };
    let mut tables = Vec::new();
    for model in models {
        let path = PathBuf::from(model);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let gguf = Gguf::open(path);
        let table = measure(&gguf, each_cut, positions, threads)?;
        println!("{name}: {}", show(&table));
        tables.push(to_json(&name, &gguf, &table)?);
        let positions = table.positions;
        let text = json!({
            "what": "what codecs between the stages change, teacher-forced, in exact mode: the change of the negative log \
                likelihood in nats a token and its paired standard error, divergence, agreement, margins; times are of a shared machine",
            "command": command,
            "commit": commit(),
            "positions": positions,
            "models": tables,
        });
        // Each is kept as it comes: a model may take long.
        std::fs::write(out, serde_json::to_string_pretty(&text)? + "\n")?;
    }
    Ok(())
}

fn commit() -> String {
    let output = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn measure(gguf: &Gguf, each_cut: bool, positions: usize, threads: u16) -> Result<Table, Error> {
    let layers = gguf.layers();
    let inner = LayerRange::new(0, layers - 2)?.split(BETWEEN as usize)?;
    let mut ranges = vec![LayerRange::new(0, 1)?];
    for range in inner {
        ranges.push(LayerRange::new(range.start() + 1, range.end() + 1)?);
    }
    ranges.push(LayerRange::new(layers - 1, layers)?);
    let program = EngineProgram::current(["engine"])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (tokens, begin) = runtime.block_on(async {
        let vocabulary = VocabularyClient::start(program.clone(), gguf.vocabulary()).await?;
        let tokens = vocabulary.tokenize(codecs::TEXT, false, false).await?;
        let info = vocabulary.info();
        Ok::<_, Error>((tokens, info.begin.filter(|_| info.adds_begin)))
    })?;
    let passages = codecs::passages(&tokens, begin, codecs::WINDOW, positions);
    let settings = EngineSettings {
        context: codecs::WINDOW as u32,
        caches: codecs::caches(ranges.len() - 1, each_cut),
        wipe_within: None,
        threads,
        threads_batch: threads,
        ..common::exact()
    };
    let mut stages = Vec::new();
    for range in ranges {
        let stage = EngineStage::start(program.clone(), gguf.stage(range, &settings))?;
        stages.push(Box::new(stage) as Box<dyn Stage>);
    }
    let table = codecs::measure(&mut stages, &passages, each_cut, |(scored, all)| {
        if scored % codecs::WINDOW as u32 == 0 {
            eprintln!("{scored} of {all} positions");
        }
    })?;
    Ok(table)
}

fn show(table: &Table) -> String {
    let smallest = table.smallest_without_loss().map_or_else(|| "none".into(), |codec| codec.to_string());
    let mut lines = vec![format!("{smallest} is the smallest without loss ({:.4} nats a token)", table.nll)];
    for row in table.rows.iter().filter(|row| row.at == At::AllCuts) {
        let losses: Vec<String> = table.losses(row.codec).iter().map(ToString::to_string).collect();
        let change = row.change;
        lines.push(format!(
            "  {:7} {:.3} bytes  {:+.4} % +- {:.4}  kl {:.6}  {} same, margins to {:.2}  {:.1} + {:.1} ns  {}",
            row.codec.to_string(),
            table.bytes_per_value(row.codec),
            100.0 * change.loss / table.nll,
            100.0 * change.loss_error / table.nll,
            change.kl,
            change.agreed,
            change.margin_max,
            row.encode_ns,
            row.decode_ns,
            losses.join("; "),
        ));
    }
    lines.join("\n")
}

fn to_json(name: &str, gguf: &Gguf, table: &Table) -> Result<Value, Error> {
    let mut object = serde_json::to_value(table)?;
    let facts = Facts::of(&gguf.manifest);
    object["model"] = name.into();
    object["family"] = facts.architecture.into();
    object["codec"] = table.smallest_without_loss().map(|codec| codec.to_string()).into();
    if let Some(rows) = object["rows"].as_array_mut() {
        for (row, measured) in rows.iter_mut().zip(&table.rows) {
            row["codec"] = measured.codec.to_string().into();
            row["bytes_per_value"] = table.bytes_per_value(measured.codec).into();
            if measured.at == At::AllCuts {
                let losses: Vec<String> = table.losses(measured.codec).iter().map(ToString::to_string).collect();
                row["losses"] = losses.into();
            }
        }
    }
    Ok(object)
}
