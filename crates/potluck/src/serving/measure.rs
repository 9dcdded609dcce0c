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
    send(pipe, StageCommand::Open { cache: CACHE, positions }).await?;
    let prefill_us = run(shape, pipe, 0, chunk).await?;
    let mut single_us = Vec::with_capacity(SINGLE_STEPS);
    for start in chunk..positions {
        single_us.push(run(shape, pipe, start, 1).await?);
    }
    send(pipe, StageCommand::Close { cache: CACHE }).await?;
    single_us.sort_unstable();
    let decode_us = single_us.get(single_us.len() / 2).copied().unwrap_or(prefill_us);
    Ok(StageSpeed { decode_us, prefill_position_us: prefill_us / u64::from(chunk) })
}

/// Microseconds that a step of so many positions takes, there and back.
async fn run(shape: &StageShape, pipe: &mut EnginePipe, start: u32, count: u32) -> Result<u64, Failure> {
    let step = Step { cache: CACHE, start, input: input(shape, count), rows: Rows::Last, top: 1, tree: Tree::chain() };
    let started = Instant::now();
    send(pipe, StageCommand::Forward { batch: start.into(), steps: vec![step] }).await?;
    loop {
        match pipe.replies.recv().await {
            Some(StageReply::Forwarded { results, .. }) => {
                let elapsed = started.elapsed().as_micros() as u64;
                return results.into_iter().try_for_each(|r| r.map(drop)).map(|()| elapsed).map_err(failed);
            }
            Some(StageReply::Opened { result, .. }) => result.map_err(failed)?,
            Some(StageReply::Ready(_) | StageReply::Row { .. }) => {}
            Some(StageReply::Lost { reason }) => return Err(failed(reason)),
            None => return Err(failed("the engine ended")),
        }
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
