//! How fast a stage is: its own numbers, on its own machine, before it offers itself.

use std::time::Instant;

use potluck_core::{CacheId, Hidden, Input, Rows, StageCommand, StageReply, StageShape, StageSpeed, Step, Tree};
use potluck_engine::EngineSettings;

use crate::{engines::EnginePipe, failure::Failure};

/// Single positions that are timed; the median counts.
const SINGLE_STEPS: usize = 9;

/// The cache that is used, and closed again.
const CACHE: CacheId = CacheId(0);

/// Runs one chunk and a few single positions.
pub(crate) async fn measure(
    shape: &StageShape,
    settings: &EngineSettings,
    pipe: &mut EnginePipe,
) -> Result<StageSpeed, Failure> {
    let chunk = u32::from(settings.chunk).min(shape.context.saturating_sub(SINGLE_STEPS as u32)).max(1);
    let positions = (chunk + SINGLE_STEPS as u32).min(shape.context);
    let mut timed = Timed::open(shape, pipe, positions).await?;
    let prefill_us = timed.step(0, chunk, Rows::Last).await?;
    let mut single_us = Vec::with_capacity(SINGLE_STEPS);
    for start in chunk..positions {
        single_us.push(timed.step(start, 1, Rows::Last).await?);
    }
    timed.close().await?;
    single_us.sort_unstable();
    let decode_us = single_us.get(single_us.len() / 2).copied().unwrap_or(prefill_us);
    // It will rest after each.
    let with_rest = |us: u64| us * 100 / u64::from(settings.share.max(1));
    Ok(StageSpeed { decode_us: with_rest(decode_us), prefill_position_us: with_rest(prefill_us) / u64::from(chunk) })
}

/// A session of a stage whose steps are timed.
#[derive(Debug)]
pub(crate) struct Timed<'a> {
    shape: &'a StageShape,
    pipe: &'a mut EnginePipe,
    steps: u64,
}

impl<'a> Timed<'a> {
    /// Opens a cache for so many positions; an engine that refuses says so at the first step.
    pub(crate) async fn open(shape: &'a StageShape, pipe: &'a mut EnginePipe, positions: u32) -> Result<Self, Failure> {
        send(pipe, StageCommand::Open { cache: CACHE, positions }).await?;
        Ok(Self { shape, pipe, steps: 0 })
    }

    /// Microseconds that a step of `count` positions from `start` on takes, there and back.
    pub(crate) async fn step(&mut self, start: u32, count: u32, rows: Rows) -> Result<u64, Failure> {
        let input = input(self.shape, count);
        let step = Step { cache: CACHE, start, input, rows, top: 1, tree: Tree::chain() };
        self.steps += 1;
        let started = Instant::now();
        send(self.pipe, StageCommand::Forward { batch: self.steps, steps: vec![step] }).await?;
        loop {
            match self.pipe.replies.recv().await {
                Some(StageReply::Forwarded { results, .. }) => {
                    let elapsed = started.elapsed().as_micros() as u64;
                    return results.into_iter().try_for_each(|r| r.map(drop)).map(|()| elapsed).map_err(failed);
                }
                Some(StageReply::Opened { result, .. }) => result.map_err(failed)?,
                // Nothing else was asked for.
                Some(StageReply::Ready(_) | StageReply::Row { .. }) => {}
                Some(StageReply::Saved { .. } | StageReply::Restored { .. }) => {}
                Some(StageReply::Exported { .. } | StageReply::Imported { .. }) => {}
                Some(StageReply::Lost { reason }) => return Err(failed(reason)),
                None => return Err(failed("the engine ended")),
            }
        }
    }

    /// Gives the cache back.
    pub(crate) async fn close(self) -> Result<(), Failure> {
        send(self.pipe, StageCommand::Close { cache: CACHE }).await
    }
}

/// Something to compute with: which values does not matter for the time it takes.
fn input(shape: &StageShape, count: u32) -> Input {
    if shape.spec.head {
        return Input::Tokens((0..count).map(|i| i % shape.vocabulary).collect());
    }
    let values = (0..count as usize * shape.width as usize).map(|i| (i % 7) as f32 * 0.1 - 0.3);
    Input::Hidden(Hidden(values.collect()))
}

async fn send(pipe: &EnginePipe, command: StageCommand) -> Result<(), Failure> {
    pipe.commands.send(command).await.map_err(|_| failed("the engine ended"))
}

fn failed(why: impl std::fmt::Display) -> Failure {
    Failure::new("engine_error", format!("the stage does not run: {why}"), "run it again with RUST_LOG=debug")
}
