//! Ollama's store: a JSON manifest names the blob that is the GGUF.

use std::{fs::File, io::Read as _, path::Path};

use serde::Deserialize;

use super::{Part, Source, is_plain};
use crate::StoreError;

/// Ollama's own registry, where a name says no other.
const REGISTRY: &str = "registry.ollama.ai";
/// The media type of the layer that is a GGUF.
const MODEL_LAYER: &str = "application/vnd.ollama.image.model";
/// Bytes of a manifest: a longer one is refused.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
}

/// The model `NAME[:TAG]`, as Ollama names it: `smollm2`, `smollm2:135m`, `user/model`, `host/user/model`.
pub(super) fn find(store: &Path, text: &str) -> Result<Source, StoreError> {
    let no_model = |what: String| StoreError::NoModel { path: store.into(), what };
    let (name, tag) = text.split_once(':').unwrap_or((text, "latest"));
    let components: Vec<&str> = name.split('/').collect();
    let (registry, user, model) = match *components.as_slice() {
        [model] => (REGISTRY, "library", model),
        [user, model] => (REGISTRY, user, model),
        [registry, user, model] => (registry, user, model),
        _ => return Err(no_model(format!("`{text}` is no name of Ollama's"))),
    };
    if ![registry, user, model, tag].into_iter().all(is_plain) {
        return Err(no_model(format!("`{text}` is no name of Ollama's")));
    }
    let path = store.join("manifests").join(registry).join(user).join(model).join(tag);
    if !path.is_file() {
        return Err(no_model(format!("Ollama has no `{text}` here")));
    }
    let parts = blobs(&path)?.iter().map(|blob| Part::whole(store.join("blobs").join(blob))).collect::<Vec<_>>();
    if parts.is_empty() {
        return Err(no_model(format!("`{text}` holds no GGUF")));
    }
    Ok(Source { name: format!("{model}:{tag}"), parts })
}

/// File names of the blobs that are GGUFs.
fn blobs(path: &Path) -> Result<Vec<String>, StoreError> {
    let mut json = Vec::new();
    let file = File::open(path).map_err(StoreError::io(path))?;
    file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut json).map_err(StoreError::io(path))?;
    let damaged = |what: String| StoreError::NoModel { path: path.into(), what };
    if json.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(damaged(format!("Ollama's manifest is longer than {MANIFEST_BYTES_MAX} bytes")));
    }
    let manifest: Manifest =
        serde_json::from_slice(&json).map_err(|e| damaged(format!("Ollama's manifest is damaged: {e}")))?;
    let models = manifest.layers.iter().filter(|layer| layer.media_type == MODEL_LAYER);
    models
        .map(|layer| blob_name(&layer.digest).ok_or_else(|| damaged(format!("`{}` is no digest", layer.digest))))
        .collect()
}

/// `sha256:HEX` as the blob's file name; none for anything else, a path above all.
fn blob_name(digest: &str) -> Option<String> {
    let hex = digest.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then(|| format!("sha256-{hex}"))
}
