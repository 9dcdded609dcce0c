//! What each codec changes of models, on the text that `potluck model prove` scores, at all cuts of a chain and at each alone.
//!
//! `cargo run -p potluck-engine --example codecs -- [--each-cut] [--positions=N] [--threads=N] OUT.json MODEL.gguf...` (`make prove-codecs`) writes the table of each
//! model, and prints what keeps a codec from being without loss. Beside it stand answers to small tasks of seven kinds (`tasks.txt`), each kind a passage in which a task
//! has those before it for examples: right is an answer whose first token is the likeliest.

#[path = "../tests/common/mod.rs"]
mod common;

use std::{collections::HashMap, path::PathBuf};

use common::Gguf;
use potluck_core::{CacheId, Input, LayerRange, Output, Rows, Stage, Step, Tree};
use potluck_engine::{EngineProgram, EngineSettings, EngineStage, VocabularyClient, codecs};
use potluck_model::{
    Facts,
    proof::{At, Table},
};
use potluck_wire::Codec;
use serde_json::{Value, json};

type Error = Box<dyn std::error::Error>;

/// A task each line, its answer after the bar; kinds are apart by an empty line.
const TASKS: &str = include_str!("tasks.txt");

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
        let (table, answers, further) = measure(&gguf, each_cut, positions, threads)?;
        println!("{name}: {}\n{}\n  {further}", show(&table), answers.show());
        let mut object = to_json(&name, &gguf, &table)?;
        (object["tasks"], object["further"]) = (answers.to_json(), further);
        tables.push(object);
        let positions = table.positions;
        let text = json!({
            "what": "what codecs between the stages change, teacher-forced, in exact mode: the change of the negative log \
                likelihood in nats a token and its paired standard error, divergence, agreement, margins; of small tasks how many are \
                answered right, and how many otherwise than unchanged; times are of a shared machine",
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

fn measure(gguf: &Gguf, each_cut: bool, positions: usize, threads: u16) -> Result<(Table, Answers, Value), Error> {
    let layers = gguf.layers();
    let inner = LayerRange::new(0, layers - 2)?.split(BETWEEN as usize)?;
    let mut ranges = vec![LayerRange::new(0, 1)?];
    for range in inner {
        ranges.push(LayerRange::new(range.start() + 1, range.end() + 1)?);
    }
    ranges.push(LayerRange::new(layers - 1, layers)?);
    let program = EngineProgram::current(["engine"])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (tokens, begin, tasks) = runtime.block_on(async {
        let vocabulary = VocabularyClient::start(program.clone(), gguf.vocabulary()).await?;
        let tokens = vocabulary.tokenize(codecs::TEXT, false, false).await?;
        let info = vocabulary.info();
        let begin = info.begin.filter(|_| info.adds_begin);
        Ok::<_, Error>((tokens, begin, tasks(&vocabulary, begin).await?))
    })?;
    let passages = codecs::passages(&tokens, begin, codecs::WINDOW, positions);
    let settings = EngineSettings {
        context: tasks.iter().map(|(tokens, _)| tokens.len()).max().unwrap_or(0).max(codecs::WINDOW) as u32,
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
    let (answers, further) = (answers(&mut stages, &tasks)?, further(&mut stages, &passages[0])?);
    let table = codecs::measure(&mut stages, &passages, each_cut, |(scored, all)| {
        if scored % codecs::WINDOW as u32 == 0 {
            eprintln!("{scored} of {all} positions");
        }
    })?;
    Ok((table, answers, further))
}

/// What more there is to save at each cut, of one passage: bytes a value where an entropy coder followed that knew how often each symbol
/// comes (its order-0 entropy: bytes, and half bytes of `mixed4`), and bits a value where the channels' means, taken from the passage's
/// first half, were subtracted from the second. Massive channels, which the codecs treat by themselves, are left out of that.
fn further(stages: &mut [Box<dyn Stage>], passage: &[u32]) -> Result<Value, Error> {
    let (width, cuts) = (stages[0].shape().width as usize, stages.len() - 1);
    let inputs = &passage[..passage.len() - 1];
    let mut between = vec![Vec::new(); cuts];
    stages.iter_mut().try_for_each(|stage| stage.open(CacheId(0), inputs.len() as u32))?;
    for (start, tokens) in (0..).step_by(64).zip(inputs.chunks(64)) {
        let mut input = Input::Tokens(tokens.to_vec());
        for (stage, kept) in stages.iter_mut().zip(&mut between) {
            let step = Step { cache: CacheId(0), start, input, rows: Rows::None, top: 0, tree: Tree::chain() };
            let Some(Ok(Output::Hidden(hidden))) = stage.forward(&mut [step]).pop() else {
                return Err("a stage before the last gave no hidden states".into());
            };
            kept.extend_from_slice(&hidden.0);
            input = Input::Hidden(hidden);
        }
    }
    let of_cuts = stages[1..].iter().zip(&between).map(|(stage, hidden)| {
        let mut entropies = serde_json::Map::new();
        for codec in [Codec::Q8, Codec::Mixed8, Codec::Mixed4] {
            let mut bytes = Vec::new();
            codec.encode(hidden, width, &mut bytes)?;
            let halves = || bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
            let symbols: Vec<u8> = if codec == Codec::Mixed4 { halves() } else { bytes.clone() };
            let each = entropy(&symbols) / 8.0 / hidden.len() as f64;
            entropies.insert(codec.to_string(), json!([bytes.len() as f64 / hidden.len() as f64, each]));
        }
        let before = stage.shape().spec.layers.start();
        Ok::<_, Error>(json!({ "cut": before, "bytes_and_entropy": entropies, "means_bits": means(hidden, width) }))
    });
    of_cuts.collect()
}

/// Bits of all these symbols together, each coded by how often it comes.
fn entropy(symbols: &[u8]) -> f64 {
    let mut counts = [0_u32; 256];
    symbols.iter().for_each(|&symbol| counts[usize::from(symbol)] += 1);
    let all = symbols.len() as f64;
    counts.iter().filter(|&&count| count > 0).map(|&count| f64::from(count) * (all / f64::from(count)).log2()).sum()
}

/// Bits a value that are saved where the channels' means are known.
fn means(hidden: &[f32], width: usize) -> f64 {
    let (first, second) = hidden.split_at(hidden.len() / width / 2 * width);
    let power = |rows: &[f32], at: usize, mean: f64| {
        let values = rows.iter().skip(at).step_by(width).map(|&value| f64::from(value) - mean);
        values.clone().map(|value| value * value).sum::<f64>() / values.count() as f64
    };
    let mut channels: Vec<(f64, f64)> = (0..width)
        .map(|at| {
            let mean = first.iter().skip(at).step_by(width).map(|&value| f64::from(value)).sum::<f64>();
            (power(second, at, 0.0), power(second, at, mean / (first.len() / width) as f64))
        })
        .collect();
    channels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let kept = &channels[..width - width / 64];
    let sum = |of: fn(&(f64, f64)) -> f64| kept.iter().map(of).sum::<f64>();
    (sum(|channel| channel.0) / sum(|channel| channel.1)).log2() / 2.0
}

/// The tasks of one kind: tokens, and the places among them of the answers' first ones.
type Kind = (Vec<u32>, Vec<usize>);

/// Left out: a task whose answer begins within a token.
async fn tasks(vocabulary: &VocabularyClient, begin: Option<u32>) -> Result<Vec<Kind>, Error> {
    let mut passages = Vec::new();
    for kind in TASKS.split("\n\n") {
        let (mut text, mut prompts) = (String::new(), Vec::new());
        for line in kind.lines() {
            let (prompt, answer) = line.split_once('|').ok_or("a task without an answer")?;
            text += prompt;
            prompts.push(vocabulary.tokenize(&text, false, false).await?);
            text += answer;
            text += ".\n";
        }
        let tokens = vocabulary.tokenize(&text, false, false).await?;
        let ahead = usize::from(begin.is_some());
        let at =
            prompts.iter().filter(|prompt| tokens.starts_with(prompt)).map(|prompt| ahead + prompt.len()).collect();
        passages.push((begin.into_iter().chain(tokens).collect(), at));
    }
    Ok(passages)
}

fn answers(stages: &mut [Box<dyn Stage>], tasks: &[Kind]) -> Result<Answers, Error> {
    let mut answers = Answers { of: tasks.iter().map(|(_, at)| at.len()).sum(), right: HashMap::new() };
    let passages: Vec<_> = tasks.iter().map(|(tokens, _)| tokens.clone()).collect();
    let see = |seen: codecs::Seen<'_>| {
        let (tokens, at) = &tasks[seen.passage];
        let next = seen.position as usize + 1;
        let likeliest = seen.logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(token, _)| token as u32);
        if at.contains(&next) && likeliest == Some(tokens[next]) {
            answers.right.entry(seen.codec.map(|(codec, _)| codec)).or_default().push((seen.passage, next));
        }
    };
    codecs::watch(stages, &passages, false, |_| {}, see)?;
    Ok(answers)
}

/// The tasks that were answered right, unchanged (`None`) and with each codec.
struct Answers {
    of: usize,
    right: HashMap<Option<Codec>, Vec<(usize, usize)>>,
}

impl Answers {
    fn right(&self, codec: Option<Codec>) -> &[(usize, usize)] {
        self.right.get(&codec).map_or(&[], Vec::as_slice)
    }

    /// How many are right with a codec, and how many are right in one of the two only.
    fn with(&self, codec: Codec) -> (usize, usize) {
        let (plain, with) = (self.right(None), self.right(Some(codec)));
        let both = with.iter().filter(|task| plain.contains(task)).count();
        (with.len(), plain.len() + with.len() - 2 * both)
    }

    fn show(&self) -> String {
        let of = codecs::CODECS.map(|codec| {
            let (right, changed) = self.with(codec);
            format!("{codec} {right} ({changed} otherwise)")
        });
        format!("  of {} tasks right: unchanged {}, {}", self.of, self.right(None).len(), of.join(", "))
    }

    fn to_json(&self) -> Value {
        let rows = codecs::CODECS.map(|codec| {
            let (right, changed) = self.with(codec);
            json!({ "codec": codec.to_string(), "right": right, "otherwise": changed })
        });
        json!({ "of": self.of, "right": self.right(None).len(), "rows": rows })
    }
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
