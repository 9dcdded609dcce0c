//! The tensors of a slice: its layers', what all layers share, and stand-ins for what the loader demands.

use potluck_core::{LayerRange, Manifest, TensorEntry, TensorType};

use super::{CutError, EMBEDDING_TENSOR, SMALL_VOCABULARY, Segment};
use crate::{facts, gguf::TensorSpec, types};

/// Learned positions, added before layer 0: zeros in every other stage.
const POSITIONS: &str = "position_embd.weight";
/// What the tail alone uses; other stages get zeros, for the loader demands some of them.
const OUTPUT_PREFIXES: [&str; 2] = ["output.", "output_norm."];
/// What every layer uses.
const SHARED: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// One tensor of a slice: as the engine sees it, and where its bytes come from.
pub(super) struct Part {
    pub(super) spec: TensorSpec,
    pub(super) content: Segment,
}

/// The tensors of the slice, in the order in which the virtual file has them.
pub(super) fn parts(manifest: &Manifest, layers: LayerRange, tail: bool) -> Result<Vec<Part>, CutError> {
    let mut parts = Vec::new();
    for tensor in manifest.tensors.iter().filter(|t| t.layer.is_none()) {
        parts.push(shared_part(manifest, tensor, layers, tail)?);
    }
    let mut inside: Vec<_> = manifest.tensors.iter().filter_map(|t| Some((t.layer?, t))).collect();
    inside.retain(|&(layer, _)| layers.contains(layer));
    inside.sort_by_key(|&(layer, _)| layer);
    for (layer, tensor) in inside {
        let rest = tensor.name.splitn(3, '.').nth(2).unwrap_or_default();
        parts.push(kept(tensor, format!("blk.{}.{rest}", layer - layers.start())));
    }
    Ok(parts)
}

/// Every tensor outside the layers is one whose use is known.
pub(super) fn check_shared(manifest: &Manifest) -> Result<(), CutError> {
    let known = |name: &str| name == EMBEDDING_TENSOR || name == POSITIONS || SHARED.contains(&name) || is_output(name);
    match manifest.tensors.iter().find(|t| t.layer.is_none() && !known(&t.name)) {
        Some(tensor) => Err(CutError::UnknownTensor { name: tensor.name.clone() }),
        None => Ok(()),
    }
}

fn is_output(name: &str) -> bool {
    OUTPUT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn shared_part(manifest: &Manifest, tensor: &TensorEntry, layers: LayerRange, tail: bool) -> Result<Part, CutError> {
    let name = tensor.name.as_str();
    let vocabulary = u64::from(facts::vocabulary(manifest));
    let small = |shape: &[u64]| -> Vec<u64> {
        shape.iter().map(|&n| if n == vocabulary { SMALL_VOCABULARY.into() } else { n }).collect()
    };
    match name {
        EMBEDDING_TENSOR if tail && facts::tied(manifest) => Ok(kept(tensor, name.to_owned())),
        EMBEDDING_TENSOR if tail => zeros(name, smallest(tensor.shape[0]), tensor.shape.clone()),
        EMBEDDING_TENSOR => zeros(name, types::F32, vec![tensor.shape[0], SMALL_VOCABULARY.into()]),
        POSITIONS if layers.start() > 0 => zeros(name, types::F32, tensor.shape.clone()),
        _ if is_output(name) && !tail && name.starts_with("output.") => zeros(name, types::F32, small(&tensor.shape)),
        _ if is_output(name) && !tail => zeros(name, types::F32, tensor.shape.clone()),
        _ => Ok(kept(tensor, name.to_owned())),
    }
}

/// The tensor as it is, under this name.
pub(super) fn kept(tensor: &TensorEntry, name: String) -> Part {
    Part {
        spec: TensorSpec { name, kind: tensor.kind, shape: tensor.shape.clone() },
        content: Segment::Tensor { name: tensor.name.clone(), offset: 0, len: tensor.bytes },
    }
}

fn zeros(name: &str, kind: TensorType, shape: Vec<u64>) -> Result<Part, CutError> {
    let impossible =
        |what| crate::gguf::GgufError::Tensor { name: name.into(), kind: kind.0, shape: shape.clone(), what };
    let len = types::tensor_bytes(kind, &shape).ok_or_else(|| impossible("a stand-in of that shape"))?;
    Ok(Part { spec: TensorSpec { name: name.to_owned(), kind, shape }, content: Segment::Zeros { len } })
}

/// The type in which rows of that width take the least memory.
fn smallest(width: u64) -> TensorType {
    [types::Q1_0, types::Q2_0, types::Q4_0]
        .into_iter()
        .find(|&kind| types::row_bytes(kind, width).is_some())
        .unwrap_or(types::F16)
}
