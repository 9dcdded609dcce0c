//! How long each stage takes for so many rows, with the cores to itself: what paced stages sleep, and bounds are made
//! of.

use std::time::Instant;

use potluck_core::{CacheId, Hidden, Input, Rows, StageCommand, StageReply, StageSpec, Step, Tree};
use potluck_engine::EngineSettings;
use potluck_model::facts;
use potluck_net::StagePort;
use potluck_store::Entry;

use super::{pace::Pace, stages};
use crate::{Outcome, row::quantile};

/// Rows of the steps that are measured, and positions that the cache holds before each, for few rows and for many.
const FEW: ([u32; 9], u32) = ([1, 2, 3, 4, 6, 8, 12, 16, 24], 192);
const MANY: ([u32; 5], u32) = ([32, 64, 128, 256, 512], 768);

/// Steps of each number of rows, of which the quickest quarter's last counts; of many rows fewer.
const TIMES: [usize; 2] = [15, 5];

/// Measures a stage.
pub(crate) async fn pace(entry: &Entry, spec: StageSpec, settings: &EngineSettings) -> Outcome<Pace> {
    let settings = EngineSettings { caches: 1, ..settings.clone() };
    let StagePort { commands, replies } = stages::start(entry, spec, &settings).await?;
    let width = entry.manifest.width();
    let mut stage = Measured { commands, replies, spec, width, batch: 0 };
    stage.open(settings.context).await?;
    let (mut answering, mut silent) = (Vec::new(), Vec::new());
    for ((rows, held), times) in [(&FEW.0[..], FEW.1), (&MANY.0[..], MANY.1)].into_iter().zip(TIMES) {
        if held + rows.last().copied().unwrap_or_default() > settings.context {
            continue;
        }
        for start in (0..held).step_by(64) {
            stage.step(start, 64.min(held - start), Rows::None).await?;
        }
        for &rows in rows {
            answering.push((rows, stage.seconds(held, rows, Rows::All, times).await?));
            if spec.tail {
                silent.push((rows, stage.seconds(held, rows, Rows::None, times).await?));
            }
        }
    }
    if !spec.tail {
        silent.clone_from(&answering);
    }
    rising(&mut answering);
    rising(&mut silent);
    let (context, caches) = (settings.context, u16::MAX);
    Ok(Pace { answering, silent, width, vocabulary: facts::vocabulary(&entry.manifest), context, caches })
}

/// More rows take no less: what took longer than more did was held up.
fn rising(points: &mut [(u32, f64)]) {
    let mut least = f64::INFINITY;
    for (_, seconds) in points.iter_mut().rev() {
        least = seconds.min(least);
        *seconds = least;
    }
}

struct Measured {
    commands: tokio::sync::mpsc::Sender<StageCommand>,
    replies: tokio::sync::mpsc::Receiver<StageReply>,
    spec: StageSpec,
    width: u32,
    batch: u64,
}

impl Measured {
    async fn open(&mut self, positions: u32) -> Outcome<()> {
        self.commands.send(StageCommand::Open { cache: CacheId(0), positions }).await?;
        loop {
            match self.replies.recv().await.ok_or("the engine ended")? {
                StageReply::Opened { result, .. } => return Ok(result?),
                StageReply::Lost { reason } => return Err(reason.into()),
                _ => {}
            }
        }
    }

    /// What others of this machine do only adds: so the quicker ones tell what a stage takes by itself.
    async fn seconds(&mut self, start: u32, rows: u32, answered: Rows, times: usize) -> Outcome<f64> {
        let mut seconds = Vec::with_capacity(times);
        // The first of a new size prepares what the others use.
        self.step(start, rows, answered).await?;
        for _ in 0..times {
            seconds.push(self.step(start, rows, answered).await?);
        }
        Ok(quantile(&seconds, 0.25))
    }

    /// Runs so many positions, as a peer has its engine run them; seconds from the command to the reply.
    async fn step(&mut self, start: u32, rows: u32, answered: Rows) -> Outcome<f64> {
        let input = match self.spec.head {
            true => Input::Tokens((0..rows).map(|at| 1_000 + (start + at) * 37 % 20_000).collect()),
            false => {
                let mut chance = fastrand::Rng::with_seed(start.into());
                Input::Hidden(Hidden((0..rows * self.width).map(|_| chance.f32() - 0.5).collect()))
            }
        };
        let steps = vec![Step { cache: CacheId(0), start, input, rows: answered, top: 1, tree: Tree::chain() }];
        self.batch += 1;
        let begun = Instant::now();
        self.commands.send(StageCommand::Forward { batch: self.batch, steps }).await?;
        loop {
            match self.replies.recv().await.ok_or("the engine ended")? {
                StageReply::Forwarded { results, .. } => {
                    let seconds = begun.elapsed().as_secs_f64();
                    results.into_iter().try_for_each(|result| result.map(drop))?;
                    return Ok(seconds);
                }
                StageReply::Lost { reason } => return Err(reason.into()),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_up_is_no_slower_than_more_rows() {
        let mut points = [(1, 5.0), (2, 3.0), (4, 9.0), (8, 8.0)];
        rising(&mut points);
        assert_eq!(points, [(1, 3.0), (2, 3.0), (4, 8.0), (8, 8.0)]);
    }
}
