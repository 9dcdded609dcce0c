//! Why a model cannot be cut there.

use potluck_core::LayerRange;

use crate::{ModelError, gguf::GgufError};

/// Whoever asked for the cut: it is not possible, and this is why. Hint: `potluck model show` lists the legal cuts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CutError {
    /// The model's family cannot serve, not even as one stage.
    #[error("{architecture} models cannot be served: {reason}")]
    Refused {
        /// The model's architecture.
        architecture: String,
        /// Why.
        reason: String,
    },
    /// The model can only be one stage.
    #[error("{architecture} models cannot be cut into stages: {reason}")]
    Never {
        /// The model's architecture.
        architecture: String,
        /// Why.
        reason: String,
    },
    /// Something repeats with a period from layer 0, and the cut is not at its start.
    #[error("a cut before layer {layer} is not possible: the layers repeat every {period}, so cut at multiples of it")]
    Boundary {
        /// The layer.
        layer: u32,
        /// The period.
        period: u32,
    },
    /// The engine asserts that a model with sliding windows has a layer that uses one.
    #[error("layers {layers} hold no sliding-window layer, which the engine demands: choose a longer range")]
    NoWindow {
        /// The layers.
        layers: LayerRange,
    },
    /// The engine would take the slice for another size of the family.
    #[error("{count} layers of this model cannot be a stage: the engine takes {count} layers for another model")]
    Count {
        /// Layers in the slice.
        count: u32,
    },
    /// The layers are not the model's.
    #[error("layers {layers} asked for; the model has {of}")]
    NoSuchLayers {
        /// Asked for.
        layers: LayerRange,
        /// Layers of the model.
        of: u32,
    },
    /// A head that does not start at layer 0, or a tail that does not end at the last.
    #[error("layers {layers} of {of} cannot be that end of the chain")]
    Ends {
        /// Asked for.
        layers: LayerRange,
        /// Layers of the model.
        of: u32,
    },
    /// A list with one entry a layer has another length.
    #[error("`{key}` has {len} entries; the model has {layers} layers")]
    ListLength {
        /// The metadata key.
        key: String,
        /// Its entries.
        len: usize,
        /// Layers of the model.
        layers: u32,
    },
    /// A list that may have one entry a layer, and of which Potluck does not know.
    #[error("`{key}` may be a list with one entry a layer; Potluck does not know it, and so does not cut it")]
    UnknownList {
        /// The metadata key.
        key: String,
    },
    /// A tensor outside the layers whose use is not known.
    #[error("the tensor `{name}` belongs to no layer, and Potluck does not know which stage needs it")]
    UnknownTensor {
        /// Its name.
        name: String,
    },
    /// The manifest describes no model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The slice's header cannot be written.
    #[error(transparent)]
    Header(#[from] GgufError),
}
