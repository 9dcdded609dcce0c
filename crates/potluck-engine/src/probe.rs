//! Whether a family can be cut: three layers' worth of evidence, from a child that may die of it.
//!
//! The layers on both sides of a cut run as one slice and as a chain of two, on the same random hidden states. It costs
//! the memory of four layers, not of the model. It misses what is wrong in both alike (something before layer 0, a
//! cut tokenizer): the families that the tests prove are proven against the whole model.

use potluck_core::{CacheId, Hidden, Input, Output, Rows, Stage as _, StageError, Step, Tree};

use crate::{EngineError, EngineProgram, EngineStage, Load};

/// Rows of the steps of a probe: a chunk, single positions, and a step that is sent again.
const STEPS: [(u32, u32); 6] = [(0, 24), (24, 1), (25, 1), (26, 8), (25, 1), (26, 3)];

/// Positions that a probe's cache needs.
const POSITIONS: u32 = 34;

/// The one session of a probe.
const CACHE: CacheId = CacheId(0);

/// The same hidden states in every probe.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a probe found.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The chain of two gave the same bits as the one slice, in every step.
    Exact,
    /// It did not: the family must not be cut.
    Differs {
        /// Position of the first difference.
        position: u32,
        /// The largest difference of that step.
        largest: f32,
    },
    /// A slice did not load, or did not run: the family must not be cut.
    Fails(String),
}

/// Probes the cut between `first` and `second`; `joined` holds the layers of both. None of them is head or tail.
///
/// Every load is in exact mode and has its layers' own caches; each runs in a child of its own.
///
/// # Errors
/// Only where the machine is at fault: `Settings`, `CacheBudget`, `System`, `TimedOut`. What the model does wrong is a
/// [`Verdict`].
pub fn probe(program: &EngineProgram, joined: &Load, first: &Load, second: &Load) -> Result<Verdict, EngineError> {
    if ![joined, first, second].iter().all(|load| load.settings.exact && load.settings.context >= POSITIONS) {
        return Err(EngineError::Settings(format!("a probe is exact, with {POSITIONS} positions or more")));
    }
    let mut stages = Vec::with_capacity(3);
    for load in [joined, first, second] {
        match EngineStage::start(program.clone(), load.clone()) {
            Ok(stage) => stages.push(stage),
            Err(error) if is_the_machines(&error) => return Err(error),
            Err(error) => return Ok(Verdict::Fails(error.to_string())),
        }
    }
    Ok(compare(&mut stages).unwrap_or_else(|error| Verdict::Fails(error.to_string())))
}

fn is_the_machines(error: &EngineError) -> bool {
    use EngineError::{CacheBudget, Settings, System, TimedOut};
    matches!(error, Settings(_) | CacheBudget { .. } | System { .. } | TimedOut { .. })
}

/// Runs the same steps over `[joined, first, second]`.
fn compare(stages: &mut [EngineStage]) -> Result<Verdict, StageError> {
    let width = stages[0].shape().width as usize;
    for stage in stages.iter_mut() {
        stage.open(CACHE, POSITIONS)?;
    }
    let mut draw = SEED;
    for (start, rows) in STEPS {
        let input: Vec<f32> = (0..rows as usize * width).map(|_| next(&mut draw)).collect();
        let expected = run(&mut stages[0], start, input.clone())?;
        let between = run(&mut stages[1], start, input)?;
        let got = run(&mut stages[2], start, between)?;
        let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
        if got.len() != expected.len() {
            return Err(StageError::Engine(format!("{} values instead of {}", got.len(), expected.len())));
        }
        if let Some(at) = expected.iter().zip(&got).position(differs) {
            let largest = expected.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            return Ok(Verdict::Differs { position: start + (at / width) as u32, largest });
        }
    }
    Ok(Verdict::Exact)
}

fn run(stage: &mut EngineStage, start: u32, input: Vec<f32>) -> Result<Vec<f32>, StageError> {
    let input = Input::Hidden(Hidden(input));
    match stage.forward(&mut [Step { cache: CACHE, start, input, rows: Rows::None, top: 0, tree: Tree::chain() }]).pop()
    {
        Some(Ok(Output::Hidden(Hidden(values)))) => Ok(values),
        Some(Err(error)) => Err(error),
        _ => Err(StageError::BadInput("a probe's stages are neither head nor tail".into())),
    }
}

/// A value between -2 and 2.
fn next(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 40) as f32 / (1u64 << 22) as f32 - 2.0
}
