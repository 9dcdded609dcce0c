//! Where pooling stops paying: what the user's own machine would do by itself.

use potluck_core::LayerRange;
use serde::Serialize;

use super::{
    facts::{Machine, ModelFacts, Who, Wish},
    preview::{Preview, gigabytes, per_second},
    stage::Piece,
};

/// The whole model in one engine on the user's own machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Alone {
    /// Predicted.
    pub decode_tokens_per_s: f64,
    /// Predicted, for a long prompt.
    pub prefill_tokens_per_s: f64,
    /// True if it rests on what this machine did with this very model; false if on another model, or on a guess.
    pub measured: bool,
    /// What keeps it from doing so now.
    pub hindrance: Option<Hindrance>,
}

/// What keeps a machine from running a model alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Hindrance {
    /// Weights that are not here. Hint: `potluck model pull`.
    #[error("the weights of {layers} layers are not here")]
    NotHere {
        /// Of so many layers.
        layers: u32,
    },
    /// Too little memory. Hint: a shorter `--context`, or `--memory`.
    #[error("it takes {}, and this machine gives {}", gigabytes(*.needed_bytes), gigabytes(*.free_bytes))]
    TooSmall {
        /// Bytes of all weights, and of the caches that are wished for.
        needed_bytes: u64,
        /// Bytes that it gives.
        free_bytes: u64,
    },
}

/// What this machine would do with the whole model; none where nobody knows how fast it is, or the model has no layers.
///
/// Layers that are missing count where the wish is that nothing is loaded that is not here.
pub fn alone(model: &ModelFacts, own: &Machine, wish: &Wish) -> Option<Alone> {
    let all = LayerRange::new(0, model.layers.len() as u32).ok()?;
    let whole = Piece::fresh(model, wish, own.speed?, 0, all);
    let caches = whole.cache_bytes.saturating_mul(wish.own_sessions.max(1).into());
    let needed_bytes = whole.weight_bytes.saturating_add(caches);
    let missing = if wish.may_load { 0 } else { own.missing.len() as u32 };
    let hindrance = match (missing, needed_bytes > own.memory_bytes) {
        (0, false) => None,
        (0, true) => Some(Hindrance::TooSmall { needed_bytes, free_bytes: own.memory_bytes }),
        (layers, _) => Some(Hindrance::NotHere { layers }),
    };
    Some(Alone {
        decode_tokens_per_s: per_second(whole.decode_us),
        prefill_tokens_per_s: per_second(whole.prefill_us),
        measured: own.speed.is_some_and(|speed| speed.measured),
        hindrance,
    })
}

/// The same of whichever of these machines is the user's own.
pub(super) fn of_own(model: &ModelFacts, machines: &[Machine], wish: &Wish) -> Option<Alone> {
    alone(model, machines.iter().find(|machine| machine.who == Who::Own)?, wish)
}

impl Preview {
    /// This machine alone, where it is predicted faster than the plan, which has others in it: whether or not something keeps it
    /// from doing so now.
    ///
    /// [`plan`](super::plan) leaves none that nothing keeps, but for what was kept from it: the own machine, or the choice.
    pub fn faster_alone(&self) -> Option<Alone> {
        let others = self.stages.iter().any(|stage| stage.who != Who::Own);
        self.alone.filter(|alone| others && alone.decode_tokens_per_s > self.decode_tokens_per_s)
    }
}
