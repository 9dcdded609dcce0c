//! This machine alone: how long its engine takes for steps of so many rows.

use potluck_core::{Rows, StageSpec};
use potluck_engine::EngineSettings;
use potluck_store::Entry;
use serde::Serialize;

use crate::{
    engines::RunningEngine,
    failure::Failure,
    models::{all_layers, cache_bytes, load_whole, stage_bytes},
    placement::missing_layers,
    screen::size,
    serving::Timed,
    speeds::read_bytes,
};

/// Rows of the steps that are timed: one token, drafts to verify, pieces of a prompt.
const ROWS: [u16; 7] = [1, 2, 4, 8, 32, 128, 512];

/// Steps of up to so many rows give the logits of each, as drafts are verified; longer ones of the last, as prompts are read.
const VERIFIED_ROWS: u16 = 8;

/// Positions that the cache holds already where a step of that kind begins.
const BEHIND: u32 = 32;

/// Steps of each size at most; the median counts.
const REPEATS: usize = 15;

/// Microseconds after which no further step of a size is timed, and beyond which a size is left out.
const SIZE_US: u64 = 1_500_000;
const STEP_US_MAX: u64 = 10_000_000;

/// What this machine does alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Measured {
    /// Threads of the engine.
    threads: u16,
    /// Layers on a GPU.
    gpu_layers: u32,
    /// Steps, by rows.
    pub(super) steps: Vec<StepTime>,
    /// Tokens a second, one after the other: steps of one row.
    pub(crate) decode_tokens_per_s: f64,
    /// Tokens a second of a prompt: the largest step.
    pub(crate) prefill_tokens_per_s: f64,
    /// Bytes of weights that a position reads: all but the table of which it reads a row.
    read_bytes: u64,
    /// Estimated: those bytes over the time of a step of one row. Less than the memory gives where arithmetic takes longer.
    pub(super) weights_bytes_per_s: f64,
}

/// How long a step takes, to the engine's process and back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct StepTime {
    /// Its rows: positions.
    pub(super) rows: u16,
    /// Milliseconds: the median.
    pub(super) ms: f64,
    /// Rows over that time.
    pub(super) rows_per_s: f64,
    /// How many were timed.
    times: usize,
}

impl Measured {
    /// What runs it, in words.
    pub(super) fn engine(&self) -> String {
        let plural = if self.threads == 1 { "" } else { "s" };
        let gpu = if self.gpu_layers > 0 { format!(", {} layers on the GPU", self.gpu_layers) } else { String::new() };
        format!("{} thread{plural}{gpu}, {} of weights a token", self.threads, size(self.read_bytes))
    }

    /// Microseconds of a position alone, and of one of a prompt; none where nothing could be timed.
    pub(crate) fn position_us(&self) -> Option<(f64, f64)> {
        let rates = [self.decode_tokens_per_s, self.prefill_tokens_per_s];
        rates.iter().all(|rate| *rate > 0.0).then(|| (1e6 / rates[0], 1e6 / rates[1]))
    }
}

/// Loads the whole model into one engine here and times its steps; why not, where this machine cannot. `memory`: bytes that it gives.
pub(crate) async fn measure_machine(
    entry: &Entry,
    settings: &EngineSettings,
    memory: u64,
) -> Result<Result<Measured, String>, Failure> {
    let missing = missing_layers(entry).len();
    if missing > 0 {
        return Ok(Err(format!("the weights of {missing} of its {} layers are not here", entry.manifest.layers())));
    }
    // What is timed needs little room, however long conversations may be.
    let context = settings.context.min(u32::from(*ROWS.last().unwrap_or(&1)) + BEHIND);
    let settings = EngineSettings { context, caches: 1, ..settings.clone() };
    let layers = all_layers(&entry.manifest)?;
    let spec = StageSpec { model: entry.id, layers, head: true, tail: true };
    let cache = cache_bytes(&entry.manifest, layers, settings.kv).saturating_mul(context.into());
    let needed = stage_bytes(&entry.manifest, spec, settings.kv)?.weights.saturating_add(cache);
    if needed > memory && settings.gpu_layers == 0 {
        return Ok(Err(format!("it takes {}, and this machine gives {}", size(needed), size(memory))));
    }
    let (engine, mut pipe) = RunningEngine::start(load_whole(entry, &settings)?).await?;
    let mut timed = Timed::open(&engine.shape, &mut pipe, context).await?;
    let steps = steps(&mut timed, context, settings.chunk).await;
    let closed = timed.close().await;
    drop(pipe);
    engine.stop().await;
    let steps = steps?;
    closed?;
    let read_bytes = read_bytes(entry, &settings)?;
    let rate = |step: Option<&StepTime>| step.map_or(0.0, |step| step.rows_per_s);
    let decode_tokens_per_s = rate(steps.first());
    Ok(Ok(Measured {
        threads: settings.threads,
        gpu_layers: settings.gpu_layers,
        decode_tokens_per_s,
        prefill_tokens_per_s: rate(steps.last()),
        read_bytes,
        weights_bytes_per_s: read_bytes as f64 * decode_tokens_per_s,
        steps,
    }))
}

async fn steps(timed: &mut Timed<'_>, context: u32, chunk: u16) -> Result<Vec<StepTime>, Failure> {
    let behind = BEHIND.min(chunk.into()).min(context.saturating_sub(1));
    if behind > 0 {
        // The first step reads the weights from the disk.
        timed.step(0, behind, Rows::Last).await?;
    }
    let mut measured: Vec<StepTime> = Vec::with_capacity(ROWS.len());
    for rows in ROWS {
        let wanted = if rows <= VERIFIED_ROWS { Rows::All } else { Rows::Last };
        let start = if rows <= VERIFIED_ROWS { behind } else { 0 };
        let expected_us = measured.last().map_or(0.0, |step| step.ms * 1e3 * f64::from(rows) / f64::from(step.rows));
        if rows > chunk || start + u32::from(rows) > context || expected_us > STEP_US_MAX as f64 {
            continue;
        }
        let mut us = Vec::with_capacity(REPEATS);
        while us.len() < REPEATS && us.iter().sum::<u64>() < SIZE_US {
            us.push(timed.step(start, rows.into(), wanted).await?);
        }
        us.sort_unstable();
        let median = us[us.len() / 2].max(1) as f64;
        let (ms, rows_per_s) = (median / 1e3, f64::from(rows) * 1e6 / median);
        measured.push(StepTime { rows, ms, rows_per_s, times: us.len() });
    }
    Ok(measured)
}
