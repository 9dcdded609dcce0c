//! The metadata of a slice: what is true of its layers, counted from 0.

use potluck_core::{LayerRange, Manifest, MetaArray, MetaValue};

use super::{CutError, check::any_window};
use crate::{
    Family,
    family::{self, Entry, WINDOW_PATTERN, WINDOW_WIDTH, Window},
};

/// Lists with one entry a layer, where the model has a list and not one number for all layers.
const PER_LAYER: [&str; 14] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.indexer.types",
    "attention.rope_pattern",
    WINDOW_PATTERN,
    "expert_feed_forward_length",
    "expert_used_count",
    "feed_forward_length",
    "swiglu_clamp_exp",
    "swiglu_clamp_shexp",
    "xielu.alpha_n",
    "xielu.alpha_p",
    "xielu.beta",
    "xielu.eps",
];
/// Lists whose length has nothing to do with the layers.
const NOT_PER_LAYER: [&str; 2] = ["rope.dimension_sections", "classifier.output_labels"];
/// Layers at the start with a dense feed-forward network, before those with experts.
const LEADING_DENSE: &str = "leading_dense_block_count";
/// The factor that a graph applies to what enters.
const EMBEDDING_SCALE: &str = "embedding_scale";
/// MiniCPM's default depends on the number of layers.
const RESIDUAL_SCALE: &str = "residual_scale";
/// Pictures that enter further layers make the hidden state wider; we send none.
const DEEPSTACK: &str = "n_deepstack_layers";

/// The part of a key behind the architecture's prefix.
fn part<'k>(manifest: &Manifest, key: &'k str) -> Option<&'k str> {
    key.strip_prefix(manifest.architecture())?.strip_prefix('.')
}

/// The metadata of the slice `layers`, loaded with a vocabulary of `vocabulary` tokens and no tokenizer.
pub(super) fn of_slice(
    manifest: &Manifest,
    family: &Family,
    layers: LayerRange,
    vocabulary: u32,
) -> Result<Vec<(String, MetaValue)>, CutError> {
    let architecture = manifest.architecture();
    let mut slice = vec![("general.architecture".to_owned(), MetaValue::String(architecture.to_owned()))];
    for (key, value) in &manifest.metadata {
        if let Some(part) = part(manifest, key) {
            slice.push((key.clone(), cut_value(manifest, part, value, layers)?));
        }
    }
    let mut edit = Edit { architecture, slice: &mut slice };
    edit.set("block_count", MetaValue::U32(layers.count()));
    edit.set("vocab_size", MetaValue::U32(vocabulary));
    set_window(&mut edit, manifest, family, layers);
    set_scales(&mut edit, manifest, family, layers);
    slice.push(("tokenizer.ggml.model".to_owned(), MetaValue::String("no_vocab".to_owned())));
    Ok(slice)
}

fn cut_value(manifest: &Manifest, part: &str, value: &MetaValue, layers: LayerRange) -> Result<MetaValue, CutError> {
    Ok(match value {
        MetaValue::Array(array) if PER_LAYER.contains(&part) => {
            MetaValue::Array(cut_array(manifest, part, array, layers)?)
        }
        _ if part == LEADING_DENSE => {
            let leading = u32::try_from(value.number().unwrap_or(0)).unwrap_or(u32::MAX);
            MetaValue::U32(leading.saturating_sub(layers.start()))
        }
        _ if part == DEEPSTACK => MetaValue::U32(0),
        _ => value.clone(),
    })
}

fn cut_array(manifest: &Manifest, part: &str, array: &MetaArray, layers: LayerRange) -> Result<MetaArray, CutError> {
    let range = layers.start() as usize..layers.end() as usize;
    let length = |len| CutError::ListLength { key: part.to_owned(), len, layers: manifest.layers() };
    macro_rules! cut {
        ($($kind:ident),*) => {
            match array { $(MetaArray::$kind(v) => MetaArray::$kind(v.get(range).ok_or(length(v.len()))?.to_vec()),)* }
        };
    }
    Ok(cut!(U8, I8, U16, I16, U32, I32, F32, Bool, String, U64, I64, F64))
}

fn array_len(array: &MetaArray) -> usize {
    match array {
        MetaArray::U8(v) => v.len(),
        MetaArray::I8(v) => v.len(),
        MetaArray::U16(v) => v.len(),
        MetaArray::I16(v) => v.len(),
        MetaArray::U32(v) | MetaArray::F32(v) => v.len(),
        MetaArray::I32(v) => v.len(),
        MetaArray::Bool(v) => v.len(),
        MetaArray::String(v) => v.len(),
        MetaArray::U64(v) | MetaArray::F64(v) => v.len(),
        MetaArray::I64(v) => v.len(),
    }
}

/// Lists that are cut have one entry a layer, and no other list looks as if it had.
pub(super) fn check_lists(manifest: &Manifest) -> Result<(), CutError> {
    let layers = manifest.layers();
    for (key, value) in &manifest.metadata {
        let (Some(part), MetaValue::Array(array)) = (part(manifest, key), value) else { continue };
        let len = array_len(array);
        if PER_LAYER.contains(&part) && len != layers as usize {
            return Err(CutError::ListLength { key: key.clone(), len, layers });
        }
        if !PER_LAYER.contains(&part) && !NOT_PER_LAYER.contains(&part) && len >= layers as usize {
            return Err(CutError::UnknownList { key: key.clone() });
        }
    }
    Ok(())
}

/// A pattern that the engine counts from layer 0 is written out; a window that no layer uses is left out.
fn set_window(edit: &mut Edit<'_>, manifest: &Manifest, family: &Family, layers: LayerRange) {
    let Some(windows) = family::window_layers(manifest) else { return };
    if matches!(family.window, Window::Periodic { removable: true, .. }) && !any_window(&windows, layers) {
        edit.remove(WINDOW_WIDTH);
        edit.remove(WINDOW_PATTERN);
    } else if !matches!(edit.get(WINDOW_PATTERN), Some(MetaValue::Array(_))) {
        let pattern = windows[layers.start() as usize..layers.end() as usize].to_vec();
        edit.set(WINDOW_PATTERN, MetaValue::Array(MetaArray::Bool(pattern)));
    }
}

/// What the graph multiplies with on entry is applied by the stage of layer 0 alone.
fn set_scales(edit: &mut Edit<'_>, manifest: &Manifest, family: &Family, layers: LayerRange) {
    if let Entry::Scaled { always } = family.entry
        && layers.start() > 0
        && (always || edit.get(EMBEDDING_SCALE).is_some())
    {
        edit.set(EMBEDDING_SCALE, MetaValue::F32(1f32.to_bits()));
    }
    if manifest.architecture() == "minicpm" && edit.get(RESIDUAL_SCALE).is_none() {
        let scale = 1.4 / (manifest.layers() as f32).sqrt();
        edit.set(RESIDUAL_SCALE, MetaValue::F32(scale.to_bits()));
    }
}

/// Changes to a slice's metadata, by the part of the key behind the architecture.
struct Edit<'a> {
    architecture: &'a str,
    slice: &'a mut Vec<(String, MetaValue)>,
}

impl Edit<'_> {
    fn key(&self, part: &str) -> String {
        format!("{}.{part}", self.architecture)
    }

    fn get(&self, part: &str) -> Option<&MetaValue> {
        let key = self.key(part);
        self.slice.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    fn set(&mut self, part: &str, value: MetaValue) {
        let key = self.key(part);
        match self.slice.iter_mut().find(|(k, _)| *k == key) {
            Some(entry) => entry.1 = value,
            None => self.slice.push((key, value)),
        }
    }

    fn remove(&mut self, part: &str) {
        let key = self.key(part);
        self.slice.retain(|(k, _)| *k != key);
    }
}
