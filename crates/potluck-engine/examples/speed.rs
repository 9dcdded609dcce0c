//! What the engine's process costs: the bare llama.cpp loop against one child, side by side, alternating.
//!
//! `cargo run -p potluck-engine --example speed -- MODEL.gguf [THREADS]` prints tokens per second and ratios. The child
//! is this same program.

use std::{fs::File, io::BufReader, sync::Arc, time::Instant};

use potluck_core::{
    CacheId, Input, LayerRange, Logits, ModelId, Output, Rows, StageCommand, StageReply, StageSpec, Step, TensorType,
    Tree,
};
use potluck_engine::{EngineProcess, EngineProgram, EngineSettings, FlashAttention, Load, Part, bare::Bare};
use potluck_model::{Extent, VirtualFile, facts, gguf, manifest_of, slice};
use tokio::sync::mpsc::{Receiver, Sender, channel};

const PROMPT: u32 = 256;
const TOKENS: u32 = 96;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let first = args.next().ok_or("usage: speed MODEL.gguf [THREADS]")?;
    if first == "engine" {
        potluck_engine::child_main();
    }
    let threads = args.next().map_or(Ok(2), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for poll in [Some(0), Some(50), None] {
        let settings = EngineSettings { threads, threads_batch: threads, poll, caches: 1, context: 512, ..settings() };
        runtime.block_on(compare(&first, &settings))?;
    }
    Ok(())
}

fn settings() -> EngineSettings {
    EngineSettings { flash: FlashAttention::Off, ..EngineSettings::default() }
}

async fn compare(path: &str, settings: &EngineSettings) -> Result<(), Box<dyn std::error::Error>> {
    let [whole, stage] = loads(path, settings)?;
    let mut bare = Bare::load(&whole)?;
    let (mut local, mut chain) = (Child::start(whole).await?, Child::start(stage).await?);
    let mut speeds: [Vec<(f64, f64)>; 3] = Default::default();
    let prompt: Vec<u32> = (0..PROMPT).map(|at| 1_000 + at * 37 % 20_000).collect();
    for _ in 0..ROUNDS {
        bare.clear();
        let prefill = bare.prefill(&prompt)?.as_secs_f64();
        let first = bare.likeliest(PROMPT as usize - 1)?;
        let decode = bare.decode(first, TOKENS as usize)?.1.as_secs_f64();
        speeds[0].push((f64::from(PROMPT) / prefill, f64::from(TOKENS) / decode));
        speeds[1].push(local.round(&prompt).await?);
        speeds[2].push(chain.round(&prompt).await?);
    }
    let [bare, local, chain] = speeds.map(median);
    println!("poll {:?}, {} threads: tokens per second (prefill, decode)", settings.poll, settings.threads);
    println!("  bare loop            {:7.1} {:7.1}", bare.0, bare.1);
    println!(
        "  whole model in child {:7.1} {:7.1}  ratio {:.3} {:.3}",
        local.0,
        local.1,
        local.0 / bare.0,
        local.1 / bare.1
    );
    println!(
        "  one stage in child   {:7.1} {:7.1}  ratio {:.3} {:.3}",
        chain.0,
        chain.1,
        chain.0 / bare.0,
        chain.1 / bare.1
    );
    Ok(())
}

fn median(mut speeds: Vec<(f64, f64)>) -> (f64, f64) {
    speeds.sort_by(|a, b| a.0.total_cmp(&b.0));
    let prefill = speeds[speeds.len() / 2].0;
    speeds.sort_by(|a, b| a.1.total_cmp(&b.1));
    (prefill, speeds[speeds.len() / 2].1)
}

/// The original file, and all of its layers as one stage.
fn loads(path: &str, settings: &EngineSettings) -> Result<[Load; 2], Box<dyn std::error::Error>> {
    let file = Arc::new(File::open(path)?);
    let len = file.metadata()?.len();
    let header = gguf::read(BufReader::new(&*file), len)?;
    let manifest = manifest_of(&[&header], |_, _| Some([0; 32]))?;
    let layers = LayerRange::new(0, manifest.layers())?;
    let spec = StageSpec { model: ModelId::from_bytes([0; 32]), layers, head: true, tail: true };
    let cache_bytes_per_position = facts::cache_bytes_per_position(&manifest, layers, TensorType(1), TensorType(1));
    let locate = |name: &str, offset: u64, len: u64| {
        let info = header.tensors.iter().find(|info| info.name == name)?;
        Some(Extent::File { file: 0, offset: header.data_offset + info.offset + offset, len })
    };
    let source = slice::plan(&manifest, layers, true, true)?.resolve(locate).ok_or("a tensor is missing")?;
    let model = VirtualFile::new(vec![Extent::File { file: 0, offset: 0, len }]);
    let parts =
        [Part::Whole { spec, model, cache_bytes_per_position }, Part::Stage { spec, source, cache_bytes_per_position }];
    Ok(parts.map(|part| Load { part, settings: settings.clone(), files: vec![file.clone()] }))
}

/// A child and the channels to it.
struct Child {
    commands: Sender<StageCommand>,
    replies: Receiver<StageReply>,
}

impl Child {
    async fn start(load: Load) -> Result<Self, Box<dyn std::error::Error>> {
        let engine = EngineProcess::start(EngineProgram::current(["engine"])?, load).await?;
        let (commands, to_engine) = channel(8);
        let (from_engine, mut replies) = channel(8);
        tokio::spawn(engine.run(to_engine, from_engine));
        replies.recv().await.ok_or("no `Ready`")?;
        Ok(Self { commands, replies })
    }

    /// Tokens per second of the prefill and of greedy decoding.
    async fn round(&mut self, prompt: &[u32]) -> Result<(f64, f64), Box<dyn std::error::Error>> {
        self.commands.send(StageCommand::Open { cache: CacheId(0), positions: PROMPT + TOKENS }).await?;
        self.replies.recv().await.ok_or("gone")?;
        let start = Instant::now();
        let mut token = self.step(0, prompt.to_vec()).await?;
        let prefill = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for position in PROMPT..PROMPT + TOKENS {
            token = self.step(position, vec![token]).await?;
        }
        let decode = start.elapsed().as_secs_f64();
        Ok((f64::from(PROMPT) / prefill, f64::from(TOKENS) / decode))
    }

    async fn step(&mut self, start: u32, tokens: Vec<u32>) -> Result<u32, Box<dyn std::error::Error>> {
        let input = Input::Tokens(tokens);
        let step = Step { cache: CacheId(0), start, input, rows: Rows::Last, top: 40, tree: Tree::chain() };
        self.commands.send(StageCommand::Forward { batch: 0, steps: vec![step] }).await?;
        match self.replies.recv().await {
            Some(StageReply::Forwarded { mut results, .. }) => match results.remove(0)? {
                Output::Logits(logits) => match &logits[..] {
                    [Logits::Top { largest, .. }] => Ok(largest[0].0),
                    _ => Err("no top".into()),
                },
                Output::Hidden(_) => Err("no logits".into()),
            },
            other => Err(format!("{other:?}").into()),
        }
    }
}
