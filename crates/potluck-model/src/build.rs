//! From headers and hashes to a manifest: one model, however its bytes are spread.

use std::collections::{BTreeMap, HashMap};

use potluck_core::{Manifest, MetaValue, TensorEntry, bounds};

use crate::{
    gguf::{ALIGNMENT_KEY, DIMENSIONS_MAX, Header, NAME_BYTES_MAX, TensorInfo},
    types,
};

/// Prefix of the keys that only say how a model is split into files.
pub const SPLIT_PREFIX: &str = "split.";
/// Layers that the engine's own tables have room for; a model with more would abort it.
pub const ENGINE_LAYERS_MAX: u32 = 512;

/// Bytes of one tensor; the largest of today's have some 10 GB. A model with a larger one is refused.
pub const TENSOR_BYTES_MAX: u64 = 256 << 30;

const _: () = assert!(ENGINE_LAYERS_MAX <= bounds::LAYERS_MAX, "what the engine loads has a layer range");

/// The file: its parts are sound, but they make no model. Hint: download it again, or convert it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A key that everything else depends on is missing, or is no whole number above zero.
    #[error("the metadata key `{0}` is missing, or is no number above zero")]
    Missing(String),
    /// A number is beyond what Potluck or its engine can hold.
    #[error("{what} is {value}; the limit is {max}")]
    Bound {
        /// Whose number.
        what: &'static str,
        /// What the file says.
        value: u64,
        /// The bound.
        max: u64,
    },
    /// Two parts disagree, or hold the same tensor.
    #[error("the parts of the model disagree about `{0}`")]
    Conflict(String),
    /// A tensor belongs to a layer that the model does not have.
    #[error("the tensor `{name}` is in layer {layer}; the metadata says that the model has {layers}")]
    NoSuchLayer {
        /// The tensor.
        name: String,
        /// Its layer.
        layer: u64,
        /// Layers that the metadata announces.
        layers: u32,
    },
    /// A layer without a tensor.
    #[error("layer {layer} has no tensor; the metadata says that the model has {layers} layers")]
    EmptyLayer {
        /// The layer.
        layer: u32,
        /// Layers that the metadata announces.
        layers: u32,
    },
    /// The embedding table is missing or has another shape than the metadata says.
    #[error("the tensor `token_embd.weight` is missing, or its rows are not {width} wide")]
    Embedding {
        /// What the metadata says.
        width: u32,
    },
    /// A tensor's size or layer is not what its shape and name say.
    #[error("the tensor `{0}` is not what its shape and its name say")]
    Tensor(String),
    /// No hash was given for a tensor.
    #[error("the tensor `{0}` was not hashed")]
    NotHashed(String),
}

/// The layer that a tensor belongs to, by its name (`blk.12.attn_q.weight`); none for what belongs to no layer.
pub fn layer_of(name: &str) -> Option<u64> {
    let (number, _) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer = number.parse().ok()?;
    // `blk.007.x` is no layer to the engine: one layer, one name.
    (number == format!("{layer}")).then_some(layer)
}

/// The manifest of the model that `parts` make together; `hash` gives the BLAKE3 of a tensor's data.
///
/// What only describes the files (`split.*`, the alignment, offsets) is left out, so that one file, its parts, and a
/// copy in another store give one id.
///
/// # Errors
/// See [`ModelError`]: the manifest of a model that the engine would trip over is not made.
pub fn manifest_of(
    parts: &[&Header],
    hash: impl Fn(usize, &TensorInfo) -> Option<[u8; 32]>,
) -> Result<Manifest, ModelError> {
    let metadata = merge_metadata(parts)?;
    let mut tensors: HashMap<&str, TensorEntry> = HashMap::new();
    for (part, header) in parts.iter().enumerate() {
        for info in &header.tensors {
            let entry = entry(info, hash(part, info).ok_or_else(|| ModelError::NotHashed(info.name.clone()))?)?;
            if tensors.insert(&info.name, entry).is_some() {
                return Err(ModelError::Conflict(info.name.clone()));
            }
        }
    }
    let manifest = Manifest::new(tensors.into_values().collect(), metadata);
    check(&manifest)?;
    Ok(manifest)
}

fn merge_metadata(parts: &[&Header]) -> Result<Vec<(String, MetaValue)>, ModelError> {
    let mut merged: BTreeMap<&str, &MetaValue> = BTreeMap::new();
    for (key, value) in parts.iter().flat_map(|header| &header.metadata) {
        if key.starts_with(SPLIT_PREFIX) || key == ALIGNMENT_KEY {
            continue;
        }
        if merged.insert(key, value).is_some_and(|earlier| earlier != value) {
            return Err(ModelError::Conflict(key.clone()));
        }
    }
    Ok(merged.into_iter().map(|(key, value)| (key.to_owned(), value.clone())).collect())
}

fn entry(info: &TensorInfo, hash: [u8; 32]) -> Result<TensorEntry, ModelError> {
    let layer = layer_of(&info.name)
        .map(|value| u32::try_from(value).map_err(|_| bound("a tensor's layer", value, ENGINE_LAYERS_MAX.into())))
        .transpose()?;
    Ok(TensorEntry {
        name: info.name.clone(),
        layer,
        kind: info.kind,
        shape: info.shape.clone(),
        bytes: info.bytes,
        hash,
    })
}

fn bound(what: &'static str, value: u64, max: u64) -> ModelError {
    ModelError::Bound { what, value, max }
}

/// Checks what the rest of Potluck relies on. A manifest from a stranger goes through here too.
///
/// # Errors
/// See [`ModelError`].
pub fn check(manifest: &Manifest) -> Result<(), ModelError> {
    if manifest.architecture().is_empty() {
        return Err(ModelError::Missing("general.architecture".into()));
    }
    let layers = required(manifest, "block_count", "the number of layers", ENGINE_LAYERS_MAX)?;
    let width = required(manifest, "embedding_length", "the width", bounds::HIDDEN_WIDTH_MAX as u32)?;
    required(manifest, "context_length", "the context", u32::MAX)?;
    check_tensors(manifest)?;
    check_layers(manifest, layers)?;
    let embedding = manifest
        .tensor("token_embd.weight")
        .filter(|t| t.shape.len() <= 2 && t.shape.first() == Some(&u64::from(width)));
    let rows = embedding.ok_or(ModelError::Embedding { width })?.shape.get(1).copied().unwrap_or(1);
    if rows > bounds::VOCABULARY_MAX as u64 {
        return Err(bound("the vocabulary", rows, bounds::VOCABULARY_MAX as u64));
    }
    Ok(())
}

fn required(manifest: &Manifest, key: &str, what: &'static str, max: u32) -> Result<u32, ModelError> {
    let missing = || ModelError::Missing(format!("{}.{key}", manifest.architecture()));
    let value = manifest.arch_number(key).filter(|&n| n > 0).ok_or_else(missing)?;
    u32::try_from(value).ok().filter(|&n| n <= max).ok_or(bound(what, value, max.into()))
}

/// Sizes and layers follow from shapes and names, and all sizes together are a number of bytes.
fn check_tensors(manifest: &Manifest) -> Result<(), ModelError> {
    let mut total = 0u64;
    for tensor in &manifest.tensors {
        let wrong = || ModelError::Tensor(tensor.name.clone());
        let named = layer_of(&tensor.name) == tensor.layer.map(u64::from);
        let shaped = tensor.shape.len() <= DIMENSIONS_MAX as usize && !tensor.shape.contains(&0);
        let sized = types::tensor_bytes(tensor.kind, &tensor.shape) == Some(tensor.bytes);
        if tensor.bytes > TENSOR_BYTES_MAX {
            return Err(bound("the bytes of a tensor", tensor.bytes, TENSOR_BYTES_MAX));
        }
        if !(named && shaped && sized && tensor.name.len() as u64 <= NAME_BYTES_MAX) {
            return Err(wrong());
        }
        total = total.checked_add(tensor.bytes).filter(|&n| i64::try_from(n).is_ok()).ok_or_else(wrong)?;
    }
    Ok(())
}

fn check_layers(manifest: &Manifest, layers: u32) -> Result<(), ModelError> {
    let mut present = vec![false; layers as usize];
    for tensor in &manifest.tensors {
        let Some(layer) = tensor.layer else { continue };
        match present.get_mut(layer as usize) {
            Some(seen) => *seen = true,
            None => return Err(ModelError::NoSuchLayer { name: tensor.name.clone(), layer: layer.into(), layers }),
        }
    }
    match present.iter().position(|seen| !seen) {
        Some(layer) => Err(ModelError::EmptyLayer { layer: layer as u32, layers }),
        None => Ok(()),
    }
}
