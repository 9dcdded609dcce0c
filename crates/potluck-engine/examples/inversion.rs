//! How much of a prompt a peer reads back from the hidden states that pass it: a linear probe at each depth.
//!
//! `cargo run -p potluck-engine --example inversion -- MODEL.gguf OUT.json` (`make prove-inversion`) takes public text (this
//! repository's documentation), runs it through the model cut at each depth, and fits a ridge regression from the hidden state at
//! a position to the token there, on four fifths of the text. What it gives is how often the token of a position in the other fifth
//! is the probe's first choice, and among its first ten. Whoever has the model, as any peer does, can do the same: it is what the
//! simplest attacker reaches, and no bound for better ones.

#[path = "../tests/common/mod.rs"]
mod common;

use std::{collections::BTreeMap, path::PathBuf};

use common::Gguf;
use potluck_core::{CacheId, Input, LayerRange, Output, Rows, Stage as _, Step, Tree};
use potluck_engine::{EngineProgram, EngineSettings, LlamaStage, VocabularyClient};
use potluck_wire::Codec;
use serde_json::{Value, json};

/// Tokens of one passage: each begins with empty caches.
const PASSAGE: usize = 256;

/// Passages at most; every fifth is held out.
const PASSAGES: usize = 120;

/// Depths that the model is cut at.
const DEPTHS: [u32; 8] = [1, 2, 4, 8, 15, 22, 28, 30];

/// The depth at which defences are tried.
const DEFENDED: u32 = 8;

/// How strongly the regression is kept small, on values of variance 1.
const RIDGE: f64 = 10.0;

const SEED: u64 = 20_261_128;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, out] = match args.as_slice() {
        [engine] if engine == "engine" => potluck_engine::child_main(),
        [model, out] => [model, out],
        _ => return Err("usage: inversion MODEL.gguf OUT.json".into()),
    };
    let gguf = Gguf::open(PathBuf::from(model));
    let passages = passages(&gguf)?;
    let mut chain = Chain::load(&gguf)?;
    let (train, test): (Vec<_>, Vec<_>) = passages.into_iter().enumerate().partition(|(index, _)| index % 5 != 4);
    let seen = chain.observe(train.into_iter().map(|(_, tokens)| tokens))?;
    let unseen = chain.observe(test.into_iter().map(|(_, tokens)| tokens))?;
    let classes = Classes::of(&seen.tokens);
    let known = unseen.tokens.iter().filter(|token| classes.index.contains_key(token)).count();
    let mut depths = vec![json!({ "depth": 0, "top_1": 1.0, "top_10": 1.0, "how": "the tokens themselves are sent" })];
    let mut defences = Vec::new();
    for (at, &depth) in DEPTHS.iter().enumerate() {
        let probe = Probe::fit(&seen.states[at], &seen.tokens, &classes);
        let score = probe.score(&unseen.states[at], &unseen.tokens, &classes);
        println!("depth {depth:2}: {:5.1} % first, {:5.1} % among ten", 100.0 * score.0, 100.0 * score.1);
        depths.push(json!({ "depth": depth, "top_1": round(score.0), "top_10": round(score.1) }));
        if depth == DEFENDED {
            defences = defend(&mut chain, at, (&seen, &unseen), &classes)?;
        }
    }
    let chance = classes.most_frequent(&unseen.tokens);
    let text = json!({
        "what": "tokens read back from hidden states by a ridge regression, on held-out text",
        "command": "make prove-inversion",
        "model": PathBuf::from(model).file_name().map(|name| name.to_string_lossy()),
        "commit": commit(),
        "seed": SEED,
        "tokens": { "trained": seen.tokens.len(), "held_out": unseen.tokens.len(), "distinct_trained": classes.tokens.len() },
        "at_most": round(known as f64 / unseen.tokens.len() as f64),
        "by_guessing_the_most_frequent": round(chance),
        "depths": depths,
        "defences_at": DEFENDED,
        "defences": defences,
    });
    std::fs::write(out, serde_json::to_string_pretty(&text)? + "\n")?;
    Ok(())
}

fn round(share: f64) -> f64 {
    (share * 1e4).round() / 1e4
}

fn commit() -> String {
    let output = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The repository's documentation, as tokens.
fn passages(gguf: &Gguf) -> Result<Vec<Vec<u32>>, Error> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = vec![root.join("README.md"), root.join("CHANGELOG.md")];
    for folder in ["docs", "docs/guides", "docs/decisions"] {
        files.extend(std::fs::read_dir(root.join(folder))?.flatten().map(|entry| entry.path()));
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    files.sort();
    let texts = files.iter().map(std::fs::read_to_string).collect::<Result<Vec<_>, _>>()?;
    let program = EngineProgram::current(["engine"])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tokens = runtime.block_on(async {
        let vocabulary = VocabularyClient::start(program, gguf.vocabulary()).await?;
        let mut tokens = Vec::new();
        for text in &texts {
            tokens.extend(vocabulary.tokenize(text, false, false).await?);
        }
        Ok::<_, Error>(tokens)
    })?;
    // From all over the text, and not from its beginning.
    let all: Vec<Vec<u32>> = tokens.chunks_exact(PASSAGE).map(<[u32]>::to_vec).collect();
    let every = all.len().div_ceil(PASSAGES).max(1);
    Ok(all.into_iter().step_by(every).take(PASSAGES).collect())
}

/// The model, cut at each depth.
struct Chain {
    stages: Vec<LlamaStage>,
    tail: LlamaStage,
    width: usize,
}

/// Tokens, and what a peer sees of each at each depth.
struct Observed {
    tokens: Vec<u32>,
    states: Vec<Vec<Vec<f32>>>,
}

impl Chain {
    fn load(gguf: &Gguf) -> Result<Self, Error> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u16);
        let settings = EngineSettings { threads, threads_batch: threads, context: 512, caches: 1, ..common::exact() };
        let layers = gguf.layers();
        let mut stages = Vec::new();
        let mut start = 0;
        for end in DEPTHS.map(|depth| depth.min(layers)) {
            // Not even the last one makes logits: what enters the output matrix is looked at.
            let load = gguf.ends(LayerRange::new(start, end)?, start == 0, false, &settings);
            stages.push(LlamaStage::load(&load, |_| {})?);
            start = end;
        }
        let tail = LlamaStage::load(&gguf.ends(LayerRange::new(DEFENDED, layers)?, false, true, &settings), |_| {})?;
        Ok(Self { stages, tail, width: gguf.manifest.width() as usize })
    }

    fn observe(&mut self, passages: impl Iterator<Item = Vec<u32>>) -> Result<Observed, Error> {
        let mut seen = Observed { tokens: Vec::new(), states: vec![Vec::new(); DEPTHS.len()] };
        for passage in passages {
            let mut input = Input::Tokens(passage.clone());
            for (stage, states) in self.stages.iter_mut().zip(&mut seen.states) {
                stage.open(CacheId(0), PASSAGE as u32)?;
                let mut steps =
                    [Step { cache: CacheId(0), start: 0, input, rows: Rows::None, top: 0, tree: Tree::chain() }];
                let output = stage.forward(&mut steps).pop().ok_or("no output")??;
                stage.close(CacheId(0));
                let Output::Hidden(hidden) = output else { return Err("a stage in the middle gave logits".into()) };
                states.extend(hidden.0.chunks_exact(self.width).map(<[f32]>::to_vec));
                input = Input::Hidden(hidden);
            }
            seen.tokens.extend(passage);
        }
        Ok(seen)
    }

    /// The likeliest next token after each position, where these hidden states enter at the depth that is defended.
    fn next_tokens(&mut self, states: &[Vec<f32>]) -> Result<Vec<u32>, Error> {
        let mut tokens = Vec::new();
        for passage in states.chunks(PASSAGE) {
            let hidden = potluck_core::Hidden(passage.concat());
            self.tail.open(CacheId(0), PASSAGE as u32)?;
            let input = Input::Hidden(hidden);
            let mut steps = [Step { cache: CacheId(0), start: 0, input, rows: Rows::All, top: 1, tree: Tree::chain() }];
            let output = self.tail.forward(&mut steps).pop().ok_or("no output")??;
            self.tail.close(CacheId(0));
            let Output::Logits(rows) = output else { return Err("the tail gave no logits".into()) };
            for row in rows {
                let potluck_core::Logits::Top { largest, .. } = row else { return Err("whole rows came".into()) };
                tokens.push(largest.first().ok_or("an empty row")?.0);
            }
        }
        Ok(tokens)
    }
}

/// The tokens that a probe can name: those that it was trained on.
struct Classes {
    tokens: Vec<u32>,
    index: BTreeMap<u32, usize>,
    counts: Vec<usize>,
}

impl Classes {
    fn of(tokens: &[u32]) -> Self {
        let mut counts = BTreeMap::<u32, usize>::new();
        tokens.iter().for_each(|token| *counts.entry(*token).or_default() += 1);
        let index = counts.keys().copied().zip(0..).collect();
        Self { tokens: counts.keys().copied().collect(), index, counts: counts.into_values().collect() }
    }

    fn most_frequent(&self, tokens: &[u32]) -> f64 {
        let best = (0..self.counts.len()).max_by_key(|&class| self.counts[class]).map(|class| self.tokens[class]);
        tokens.iter().filter(|token| Some(**token) == best).count() as f64 / tokens.len() as f64
    }
}

/// A ridge regression from a hidden state to a score for each class.
struct Probe {
    mean: Vec<f64>,
    scale: Vec<f64>,
    /// A row of weights for each class; the last weight is the offset.
    weights: Vec<Vec<f32>>,
}

impl Probe {
    fn fit(states: &[Vec<f32>], tokens: &[u32], classes: &Classes) -> Self {
        let (count, width) = (states.len() as f64, states[0].len());
        let mut mean = vec![0.0; width];
        states.iter().for_each(|state| mean.iter_mut().zip(state).for_each(|(m, v)| *m += f64::from(*v) / count));
        let mut scale = vec![0.0; width];
        for state in states {
            scale.iter_mut().zip(state).zip(&mean).for_each(|((s, v), m)| *s += (f64::from(*v) - m).powi(2) / count);
        }
        scale.iter_mut().for_each(|s| *s = 1.0 / s.sqrt().max(1e-6));
        let mut probe = Self { mean, scale, weights: Vec::new() };
        let size = width + 1;
        let mut gram = vec![0.0; size * size];
        let mut targets = vec![vec![0.0; size]; classes.tokens.len()];
        for (state, token) in states.iter().zip(tokens) {
            let x: Vec<f64> = probe.features(state).iter().map(|v| f64::from(*v)).collect();
            for (row, &value) in x.iter().enumerate() {
                gram[row * size..][..=row].iter_mut().zip(&x).for_each(|(g, other)| *g += value * other);
            }
            targets[classes.index[token]].iter_mut().zip(&x).for_each(|(t, value)| *t += value);
        }
        (0..size).for_each(|at| gram[at * size + at] += RIDGE);
        cholesky(&mut gram, size);
        probe.weights = targets.into_iter().map(|target| solve(&gram, size, target)).collect();
        probe
    }

    fn features(&self, state: &[f32]) -> Vec<f32> {
        let scaled = state.iter().zip(&self.mean).zip(&self.scale);
        scaled.map(|((v, m), s)| ((f64::from(*v) - m) * s) as f32).chain([1.0]).collect()
    }

    /// How often the token is the first choice, and among the first ten.
    fn score(&self, states: &[Vec<f32>], tokens: &[u32], classes: &Classes) -> (f64, f64) {
        let (mut first, mut ten) = (0usize, 0usize);
        for (state, token) in states.iter().zip(tokens) {
            let Some(&class) = classes.index.get(token) else { continue };
            let x = self.features(state);
            let score = |weights: &Vec<f32>| dot(weights, &x);
            let own = score(&self.weights[class]);
            let better = self.weights.iter().filter(|weights| score(weights) > own).count();
            first += usize::from(better == 0);
            ten += usize::from(better < 10);
        }
        (first as f64 / tokens.len() as f64, ten as f64 / tokens.len() as f64)
    }
}

/// Several sums at once: a single one would wait for each addition.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (pairs, rest) = (a.chunks_exact(LANES).zip(b.chunks_exact(LANES)), a.len() / LANES * LANES);
    for (a, b) in pairs {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f32>() + a[rest..].iter().zip(&b[rest..]).map(|(a, b)| a * b).sum::<f32>()
}

/// The lower triangle of a symmetric matrix becomes its Cholesky factor.
fn cholesky(matrix: &mut [f64], size: usize) {
    for row in 0..size {
        let (above, below) = matrix.split_at_mut(row * size);
        for column in 0..row {
            let other = &above[column * size..][..=column];
            let dot: f64 = below[..column].iter().zip(other).map(|(a, b)| a * b).sum();
            below[column] = (below[column] - dot) / other[column];
        }
        let dot: f64 = below[..row].iter().map(|value| value * value).sum();
        below[row] = (below[row] - dot).sqrt();
    }
}

/// The solution for one right-hand side.
fn solve(factor: &[f64], size: usize, mut right: Vec<f64>) -> Vec<f32> {
    for row in 0..size {
        let dot: f64 = factor[row * size..][..row].iter().zip(&right).map(|(a, b)| a * b).sum();
        right[row] = (right[row] - dot) / factor[row * size + row];
    }
    for row in (0..size).rev() {
        right[row] /= factor[row * size + row];
        let value = right[row];
        right[..row].iter_mut().zip(&factor[row * size..][..row]).for_each(|(r, a)| *r -= a * value);
    }
    right.into_iter().map(|value| value as f32).collect()
}

/// What the wire's codec, noise, and a secret rotation change at one depth: for whoever reads, and for the answer.
fn defend(
    chain: &mut Chain,
    at: usize,
    (seen, unseen): (&Observed, &Observed),
    classes: &Classes,
) -> Result<Vec<Value>, Error> {
    let mut random = Random(SEED);
    let clean = chain.next_tokens(&unseen.states[at])?;
    let mut all = Vec::new();
    let mut add = |name: &str, trained: &[Vec<f32>], read: &[Vec<f32>], answers: Option<Vec<u32>>| {
        let score = Probe::fit(trained, &seen.tokens, classes).score(read, &unseen.tokens, classes);
        let same = answers.map(|tokens| tokens.iter().zip(&clean).filter(|(a, b)| a == b).count());
        let same = same.map(|same| round(same as f64 / clean.len() as f64));
        println!("  {name}: {:.1} % first, next token unchanged {same:?}", 100.0 * score.0);
        all.push(
            json!({ "defence": name, "top_1": round(score.0), "top_10": round(score.1), "next_token_unchanged": same }),
        );
    };
    let coded = |states: &[Vec<f32>]| -> Result<Vec<Vec<f32>>, Error> {
        let code = |state: &Vec<f32>| {
            let mut payload = Vec::new();
            Codec::F16.encode(state, state.len(), &mut payload)?;
            Ok(Codec::F16.decode(&payload, 1, state.len())?)
        };
        states.iter().map(code).collect()
    };
    let (trained, read) = (&seen.states[at], &unseen.states[at]);
    let halves = coded(read)?;
    let answers = chain.next_tokens(&halves)?;
    add("codec f16", &coded(trained)?, &halves, Some(answers));
    for share in [0.1, 0.3, 1.0] {
        // As a share of what each value varies by: the attacker trains on noisy states, too.
        let probe = Probe::fit(trained, &seen.tokens, classes);
        let mut noisy = |states: &[Vec<f32>]| -> Vec<Vec<f32>> {
            let noise = |state: &Vec<f32>| -> Vec<f32> {
                state.iter().zip(&probe.scale).map(|(v, s)| v + (share * random.normal() / s) as f32).collect()
            };
            states.iter().map(noise).collect()
        };
        let (trained, read) = (noisy(trained), noisy(read));
        let answers = chain.next_tokens(&read)?;
        add(&format!("noise of {share} standard deviations"), &trained, &read, Some(answers));
    }
    let rotation = random.rotation(chain.width);
    let rotated = |states: &[Vec<f32>]| -> Vec<Vec<f32>> {
        let turn =
            |state: &Vec<f32>| rotation.iter().map(|row| row.iter().zip(state).map(|(a, b)| a * b).sum()).collect();
        states.iter().map(turn).collect()
    };
    let (turned, read_turned) = (rotated(trained), rotated(read));
    add("secret rotation, the attacker knows it not and has no pairs", trained, &read_turned, None);
    add("secret rotation, the attacker has pairs under it", &turned, &read_turned, None);
    Ok(all)
}

/// Numbers that are the same every time.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.uniform().max(1e-300), self.uniform());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    /// Rows at right angles to each other, by Gram and Schmidt.
    fn rotation(&mut self, size: usize) -> Vec<Vec<f32>> {
        let mut rows: Vec<Vec<f64>> = Vec::with_capacity(size);
        for _ in 0..size {
            let mut row: Vec<f64> = (0..size).map(|_| self.normal()).collect();
            for other in &rows {
                let dot: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= dot * b);
            }
            let length = row.iter().map(|a| a * a).sum::<f64>().sqrt();
            row.iter_mut().for_each(|a| *a /= length);
            rows.push(row);
        }
        rows.into_iter().map(|row| row.into_iter().map(|value| value as f32).collect()).collect()
    }
}
