//! What codecs between the stages change of a model: a fixed text, scored with each of them.
//!
//! The text is cut in passages, each with empty caches, and sent through the chain in steps of a few positions. Each step runs
//! once with hidden states that travel as they are, and once for each codec, in caches of its own; what comes out is compared at
//! once, so that no more than a step's logits are kept. In exact mode the chain gives what the unsliced model gives, bit for bit
//! (`tests/exact.rs`), and a step's result does not depend on the company: what differs, the codec did.

mod measure;

use potluck_core::{StageError, bounds};
use potluck_model::proof::NotFinite;
use potluck_wire::{Codec, CodecError};

pub use measure::{Progress, Seen, caches, measure, watch};

/// What is scored: a story, prose about this program, and code, by turns. English; ASCII but for a few characters.
pub const TEXT: &str = include_str!("text.txt");

/// Positions of a passage.
pub const WINDOW: usize = 512;

/// Positions in one step, fewer where a vocabulary is large.
const STEP: usize = 64;

/// The codecs that are compared. `f32` has to change nothing, which is checked, and `f16` is what the others are measured by.
pub const CODECS: [Codec; 6] = [Codec::F16, Codec::Q8, Codec::Dyn8, Codec::Mixed8, Codec::Mixed6, Codec::Mixed4];

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The caller: the stages are no chain with a cut in it, or the text is too short.
    #[error("there is nothing to measure: {0}")]
    Nothing(String),
    /// The model or the engine: see there.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The model: a hidden state cannot be encoded.
    #[error("hidden states of this model cannot travel as {codec}: {error}")]
    Codec {
        /// How they were to travel.
        codec: Codec,
        /// What is wrong.
        error: CodecError,
    },
    /// The model or the engine.
    #[error("position {position} of a passage: {error}")]
    NotFinite {
        /// Counted from the passage's beginning.
        position: u32,
        /// What is wrong.
        error: NotFinite,
    },
    /// The engine: the same step gave something else the second time, so that nothing can be said about codecs.
    #[error("the same step gave other logits the second time: this engine's results cannot be compared")]
    NotExact,
}

/// Cuts `tokens` into passages to score `positions` positions in all, or as many as there are: each begins with `begin` where the
/// model wants that, and has one token more than positions, the last one's target. `window`: positions of a passage.
pub fn passages(tokens: &[u32], begin: Option<u32>, window: usize, positions: usize) -> Vec<Vec<u32>> {
    let window = window.min(positions).max(1);
    let fresh = window + 1 - usize::from(begin.is_some());
    let passages = tokens.chunks_exact(fresh).take(positions.div_ceil(window));
    passages.map(|tokens| begin.into_iter().chain(tokens.iter().copied()).collect()).collect()
}

/// Positions in one step, so that the whole rows of its logits fit a frame.
fn step_positions(vocabulary: u32) -> usize {
    let row = (vocabulary as usize * size_of::<f32>()).max(1);
    STEP.min(bounds::STEP_BYTES_MAX / row).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passages_have_a_target_for_each_position() {
        let tokens: Vec<u32> = (0..10).collect();
        assert_eq!(passages(&tokens, None, 4, 100), [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]);
        assert_eq!(passages(&tokens, Some(77), 4, 100), [[77, 0, 1, 2, 3], [77, 4, 5, 6, 7]]);
        assert_eq!(passages(&tokens, None, 4, 4), [[0, 1, 2, 3, 4]]);
        assert_eq!(passages(&tokens, None, 4, 3), [[0, 1, 2, 3]], "few positions are a short passage");
        assert!(passages(&tokens, None, 10, 100).is_empty());
    }

    #[test]
    fn a_step_of_logits_fits_a_frame() {
        assert_eq!(step_positions(49_152), 64);
        assert_eq!(step_positions(bounds::VOCABULARY_MAX as u32), 16);
    }
}
