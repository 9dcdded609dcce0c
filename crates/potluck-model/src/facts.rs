//! What a manifest says about a model, in the units that people and planners ask for.

use std::collections::BTreeMap;

use potluck_core::{LayerRange, Manifest, MetaArray, MetaValue, TensorEntry, TensorType};
use serde::{Deserialize, Serialize};

use crate::{family, types};

/// What to show about a model before it is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The architecture, as the engine names it.
    pub architecture: String,
    /// What its makers call it.
    pub name: Option<String>,
    /// Its licence, as the file states it.
    pub licence: Option<String>,
    /// Layers.
    pub layers: u32,
    /// Values in one hidden state.
    pub width: u32,
    /// Tokens of the vocabulary.
    pub vocabulary: u32,
    /// Positions that it was trained for.
    pub context: u32,
    /// Weights.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// The type that most bytes are stored in (`Q4_K`).
    pub quantisation: String,
    /// True if the output matrix is the embedding table.
    pub tied: bool,
    /// True if its cache is a running state, which cannot be cut back to an earlier position.
    pub recurrent: bool,
    /// Bytes of cache that one position takes over all layers, at 16 bits a value.
    pub cache_bytes_per_position: u64,
}

impl Facts {
    /// The facts of a model.
    pub fn of(manifest: &Manifest) -> Self {
        let all = |range| cache_bytes_per_position(manifest, range, types::F16, types::F16);
        Self {
            architecture: manifest.architecture().to_owned(),
            name: manifest.string("general.name").map(str::to_owned),
            licence: licence(manifest),
            layers: manifest.layers(),
            width: manifest.width(),
            vocabulary: vocabulary(manifest),
            context: manifest.context(),
            parameters: manifest.tensors.iter().map(parameters).fold(0, u64::saturating_add),
            bytes: manifest.tensors.iter().map(|t| t.bytes).fold(0, u64::saturating_add),
            quantisation: quantisation(manifest),
            tied: tied(manifest),
            recurrent: family::is_recurrent(manifest.architecture()),
            cache_bytes_per_position: LayerRange::new(0, manifest.layers()).map_or(0, all),
        }
    }
}

/// The licence, as the file states it: its identifier, else its name.
pub fn licence(manifest: &Manifest) -> Option<String> {
    ["general.license", "general.license.name", "general.license.link"]
        .iter()
        .find_map(|key| manifest.string(key))
        .map(str::to_owned)
}

/// The chat template that comes with the model, in Jinja.
pub fn chat_template(manifest: &Manifest) -> Option<&str> {
    manifest.string("tokenizer.chat_template")
}

/// Tokens of the vocabulary: rows of the embedding table.
pub fn vocabulary(manifest: &Manifest) -> u32 {
    let table = manifest.tensor("token_embd.weight");
    table.and_then(|t| t.shape.get(1)).and_then(|&rows| rows.try_into().ok()).unwrap_or(0)
}

/// True if the output matrix is the embedding table.
pub fn tied(manifest: &Manifest) -> bool {
    manifest.tensor("output.weight").is_none()
}

fn parameters(tensor: &TensorEntry) -> u64 {
    tensor.shape.iter().copied().fold(1, u64::saturating_mul)
}

fn quantisation(manifest: &Manifest) -> String {
    let mut bytes: BTreeMap<TensorType, u64> = BTreeMap::new();
    for tensor in &manifest.tensors {
        let sum = bytes.entry(tensor.kind).or_default();
        *sum = sum.saturating_add(tensor.bytes);
    }
    let most = bytes.into_iter().max_by_key(|&(_, bytes)| bytes);
    most.and_then(|(kind, _)| types::name(kind)).unwrap_or_default().to_owned()
}

/// Bytes of weights that a layer range takes in memory, ends of the chain not included.
pub fn layer_bytes(manifest: &Manifest, layers: LayerRange) -> u64 {
    let inside = |layer: Option<u32>| layer.is_some_and(|l| layers.contains(l));
    manifest.tensors.iter().filter(|t| inside(t.layer)).map(|t| t.bytes).fold(0, u64::saturating_add)
}

/// Bytes of cache that one position of one session takes in the layers of `range`, keys and values stored in those
/// types. Sliding windows count like the rest: their caches are kept whole, so that a step can be undone.
pub fn cache_bytes_per_position(manifest: &Manifest, range: LayerRange, keys: TensorType, values: TensorType) -> u64 {
    let windows = family::window_layers(manifest).unwrap_or_default();
    (range.start()..range.end())
        .map(|layer| {
            let window = windows.get(layer as usize).copied().unwrap_or(false);
            let heads = heads(manifest, "attention.head_count_kv", layer)
                .or_else(|| heads(manifest, "attention.head_count", layer))
                .unwrap_or(0);
            let row = |key: &str, kind| cache_row_bytes(kind, heads.saturating_mul(head_width(manifest, key, window)));
            row("attention.key_length", keys).saturating_add(row("attention.value_length", values))
        })
        .fold(0, u64::saturating_add)
}

/// A cache row's bytes; rounded up where it is no whole number of blocks, for the engine then refuses or pads.
fn cache_row_bytes(kind: TensorType, width: u64) -> u64 {
    types::row_bytes(kind, width).or_else(|| types::row_bytes(kind, width.checked_next_multiple_of(256)?)).unwrap_or(0)
}

/// Values of one head's key or value: the key for window layers, else the general one, else width by heads.
fn head_width(manifest: &Manifest, key: &str, window: bool) -> u64 {
    let own = window.then(|| manifest.arch_number(&format!("{key}_swa"))).flatten();
    let heads = heads(manifest, "attention.head_count", 0).filter(|&n| n > 0);
    own.or_else(|| manifest.arch_number(key)).or_else(|| heads.map(|n| u64::from(manifest.width()) / n)).unwrap_or(0)
}

/// A head count: one number for all layers, or an array with one a layer.
fn heads(manifest: &Manifest, key: &str, layer: u32) -> Option<u64> {
    match manifest.get(&format!("{}.{key}", manifest.architecture()))? {
        MetaValue::Array(array) => element(array, layer as usize),
        number => number.number(),
    }
}

/// An element of an array of whole numbers; none for other arrays, and for negative numbers.
pub(crate) fn element(array: &MetaArray, index: usize) -> Option<u64> {
    match array {
        MetaArray::U8(v) => v.get(index).map(|&n| n.into()),
        MetaArray::I8(v) => v.get(index).and_then(|&n| n.try_into().ok()),
        MetaArray::U16(v) => v.get(index).map(|&n| n.into()),
        MetaArray::I16(v) => v.get(index).and_then(|&n| n.try_into().ok()),
        MetaArray::U32(v) => v.get(index).map(|&n| n.into()),
        MetaArray::I32(v) => v.get(index).and_then(|&n| n.try_into().ok()),
        MetaArray::U64(v) => v.get(index).copied(),
        MetaArray::I64(v) => v.get(index).and_then(|&n| n.try_into().ok()),
        MetaArray::Bool(v) => v.get(index).map(|&b| b.into()),
        MetaArray::F32(_) | MetaArray::F64(_) | MetaArray::String(_) => None,
    }
}
