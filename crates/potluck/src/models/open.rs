//! What an engine is handed: a stage, the whole model, or its vocabulary.

use std::sync::Arc;

use potluck_core::{LayerRange, Manifest, StageSpec, TensorType};
use potluck_engine::{EngineSettings, KvType, Load, Part};
use potluck_model::{
    StageBytes, facts,
    slice::{self, CutError},
};
use potluck_store::{Entry, StoreError, WholeFiles, open_stage, open_whole};

use crate::failure::{Failure, OrFail};

/// A stage of the model, over its bytes where they lie.
pub(crate) fn load_stage(entry: &Entry, spec: StageSpec, settings: &EngineSettings) -> Result<Load, Failure> {
    if entry.id != spec.model {
        let message = format!("{} is another model than the one that was asked for", entry.name);
        return Err(Failure::new("bad_model", message, "name it by its id: potluck model list"));
    }
    let plan = slice::plan(&entry.manifest, spec.layers, spec.head, spec.tail)?;
    let opened = open_stage(entry, &plan)?;
    let cache_bytes_per_position = cache_bytes(&entry.manifest, spec.layers, settings.kv);
    let part = Part::Stage { spec, source: opened.source, cache_bytes_per_position };
    Ok(Load { part, settings: settings.clone(), files: opened.files.into_iter().map(Arc::new).collect() })
}

/// The original model, with tokens as input: nothing of ours in between.
pub(crate) fn load_whole(entry: &Entry, settings: &EngineSettings) -> Result<Load, Failure> {
    let layers = all_layers(&entry.manifest)?;
    let spec = StageSpec { model: entry.id, layers, head: true, tail: true };
    let WholeFiles { files, model } = open_whole(entry)?;
    let cache_bytes_per_position = cache_bytes(&entry.manifest, layers, settings.kv);
    let part = Part::Whole { spec, model, cache_bytes_per_position };
    Ok(Load { part, settings: settings.clone(), files: files.into_iter().map(Arc::new).collect() })
}

/// The model's tokenizer and grammars.
pub(crate) fn load_vocabulary(entry: &Entry, settings: &EngineSettings) -> Result<Load, Failure> {
    let model = slice::vocabulary_file(&entry.manifest)?;
    Ok(Load { part: Part::Vocabulary { model }, settings: settings.clone(), files: Vec::new() })
}

/// What a stage takes.
pub(crate) fn stage_bytes(manifest: &Manifest, spec: StageSpec, kv: KvType) -> Result<StageBytes, Failure> {
    let plan = slice::plan(manifest, spec.layers, spec.head, spec.tail)?;
    Ok(plan.bytes(manifest, tensor_type(kv), tensor_type(kv)))
}

/// All layers of a model.
pub(crate) fn all_layers(manifest: &Manifest) -> Result<LayerRange, Failure> {
    LayerRange::new(0, manifest.layers()).or_fail("bad_model", "download it again, or convert it again")
}

/// Bytes of cache that one position of one session takes in these layers.
pub(crate) fn cache_bytes(manifest: &Manifest, layers: LayerRange, kv: KvType) -> u64 {
    facts::cache_bytes_per_position(manifest, layers, tensor_type(kv), tensor_type(kv))
}

/// ggml's number for the type.
fn tensor_type(kv: KvType) -> TensorType {
    TensorType(match kv {
        KvType::F32 => 0,
        KvType::Q4_0 => 2,
        KvType::Q8_0 => 8,
        KvType::Bf16 => 30,
        _ => 1,
    })
}

impl From<CutError> for Failure {
    fn from(error: CutError) -> Self {
        StoreError::Cut(error).into()
    }
}
