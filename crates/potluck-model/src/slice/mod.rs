//! Cutting a model into stages: which cuts are legal, and the virtual GGUF that a stage loads.
//!
//! The virtual file holds the layers, renumbered from 0, and nothing of any other layer. What the engine's loader
//! demands but a stage does not use (the vocabulary and the output matrix of a stage that is no tail, the embedding
//! table) is zeros of the smallest type. The tokenizer is left out of every stage: it runs elsewhere, from
//! [`vocabulary_file`].

mod check;
mod error;
mod metadata;
mod tensors;

use potluck_core::{LayerRange, Manifest, TensorType};
use serde::{Deserialize, Serialize};

use crate::{Extent, Family, VirtualFile, facts, gguf, types};

pub use check::{check_range, legal_cuts};
pub use error::CutError;

/// Tokens that a stage without the tail is loaded with: its logits are never used, and cost next to nothing.
pub const SMALL_VOCABULARY: u32 = 64;

/// A stage as the engine loads it: a virtual GGUF over the model's tensors, wherever those lie.
#[derive(Debug, Clone, PartialEq)]
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

impl Segment {
    /// Bytes of the segment.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Zeros { len } | Self::Tensor { len, .. } => *len,
        }
    }
}

/// The model's tensor that [`EmbeddingTable`] describes.
pub const EMBEDDING_TENSOR: &str = "token_embd.weight";

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

/// Memory that a stage takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageBytes {
    /// Bytes of weights that the engine holds, zeros that its loader demands included.
    pub weights: u64,
    /// Bytes that have to be fetched from the model for it, the embedding table of a head included.
    pub fetched: u64,
    /// Bytes of cache that one position of one session takes.
    pub cache_per_position: u64,
}

/// Plans the stage `layers` of the model: what the engine loads, without a byte of any other layer.
///
/// The plan depends on the manifest alone: two peers make the same file. `0..n` with both ends is the whole model as
/// one stage.
///
/// # Errors
/// `Refused` and its kin where the cut is illegal; the message says why.
pub fn plan(manifest: &Manifest, layers: LayerRange, head: bool, tail: bool) -> Result<StagePlan, CutError> {
    check_range(manifest, layers)?;
    if (head && layers.start() > 0) || (tail && layers.end() < manifest.layers()) {
        return Err(CutError::Ends { layers, of: manifest.layers() });
    }
    let family = Family::of(manifest);
    let vocabulary = facts::vocabulary(manifest);
    let parts = tensors::parts(manifest, layers, tail)?;
    let metadata = metadata::of_slice(manifest, &family, layers, if tail { vocabulary } else { SMALL_VOCABULARY })?;
    let segments = assemble(&metadata, parts)?;
    Ok(StagePlan {
        layers,
        head,
        tail,
        size: segments.iter().map(Segment::bytes).fold(0, u64::saturating_add),
        segments,
        embedding: head.then(|| embedding(manifest, &family)).flatten(),
        width: manifest.width(),
        vocabulary,
        positions_per_token: family.positions_per_token,
    })
}

fn assemble(
    metadata: &[(String, potluck_core::MetaValue)],
    parts: Vec<tensors::Part>,
) -> Result<Vec<Segment>, CutError> {
    let (specs, contents): (Vec<_>, Vec<_>) = parts.into_iter().map(|part| (part.spec, part.content)).unzip();
    let mut segments = vec![Segment::Inline(gguf::write(metadata, &specs)?)];
    for content in contents {
        let bytes = content.bytes();
        segments.push(content);
        let padding = bytes.next_multiple_of(gguf::ALIGNMENT_DEFAULT) - bytes;
        if padding > 0 {
            segments.push(Segment::Zeros { len: padding });
        }
    }
    Ok(segments)
}

/// The embedding table of a model; none where its shape is not one row a token.
fn embedding(manifest: &Manifest, family: &Family) -> Option<EmbeddingTable> {
    let tensor = manifest.tensor(EMBEDDING_TENSOR)?;
    let width = manifest.width();
    Some(EmbeddingTable {
        kind: tensor.kind,
        rows: facts::vocabulary(manifest),
        width,
        row_bytes: types::row_bytes(tensor.kind, width.into())?,
        scale: family.scale_factor(width),
    })
}

/// A GGUF without tensors: the tokenizer and all other metadata, for the engine's tokenizer and grammars.
///
/// # Errors
/// `Header` never in practice: metadata that was read can be written.
pub fn vocabulary_file(manifest: &Manifest) -> Result<VirtualFile, CutError> {
    Ok(VirtualFile::new(vec![Extent::Inline(gguf::write(&manifest.metadata, &[])?)]))
}

/// The model as one file again, where its parts or its store hold it in several: the header that they have in common,
/// and every tensor under its own name.
///
/// # Errors
/// `Header` never in practice: metadata that was read can be written.
pub fn merged(manifest: &Manifest) -> Result<Vec<Segment>, CutError> {
    assemble(&manifest.metadata, manifest.tensors.iter().map(|t| tensors::kept(t, t.name.clone())).collect())
}

/// The file that these segments make; `locate` gives the extent of a part of one of the model's tensors, by its name.
///
/// None where a tensor is not to be found.
pub fn resolve(segments: &[Segment], locate: impl Fn(&str, u64, u64) -> Option<Extent>) -> Option<VirtualFile> {
    let extent = |segment: &Segment| match segment {
        Segment::Inline(bytes) => Some(Extent::Inline(bytes.clone())),
        Segment::Zeros { len } => Some(Extent::Zeros { len: *len }),
        Segment::Tensor { name, offset, len } => locate(name, *offset, *len),
    };
    Some(VirtualFile::new(segments.iter().map(extent).collect::<Option<_>>()?))
}

impl StagePlan {
    /// The plan over real files: `locate` gives the extent of a part of one of the model's tensors, by its name.
    ///
    /// None where a tensor is not to be found.
    pub fn resolve(&self, locate: impl Fn(&str, u64, u64) -> Option<Extent>) -> Option<StageSource> {
        let embedding = match self.embedding {
            Some(table) => {
                let bytes = u64::from(table.rows).checked_mul(table.row_bytes)?;
                Some((table, vec![locate(EMBEDDING_TENSOR, 0, bytes)?]))
            }
            None => None,
        };
        Some(StageSource {
            model: resolve(&self.segments, &locate)?,
            embedding,
            layers: self.layers.count(),
            tail: self.tail,
            width: self.width,
            vocabulary: self.vocabulary,
            positions_per_token: self.positions_per_token,
        })
    }

    /// The model's tensors that the stage reads, each once.
    pub fn tensors(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .segments
            .iter()
            .filter_map(|segment| match segment {
                Segment::Tensor { name, .. } => Some(name.as_str()),
                _ => None,
            })
            .chain(self.embedding.map(|_| EMBEDDING_TENSOR))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Memory that the stage takes, with caches whose keys and values are of those types.
    pub fn bytes(&self, manifest: &Manifest, keys: TensorType, values: TensorType) -> StageBytes {
        let header: u64 = self.segments.iter().filter(|s| matches!(s, Segment::Inline(_))).map(Segment::bytes).sum();
        let fetched = self.tensors().iter().filter_map(|name| manifest.tensor(name)).map(|t| t.bytes).sum();
        let cache_per_position = facts::cache_bytes_per_position(manifest, self.layers, keys, values);
        StageBytes { weights: self.size - header, fetched, cache_per_position }
    }
}
