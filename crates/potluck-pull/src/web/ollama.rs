//! Ollama's library: a registry of OCI images, kept in Ollama's own store.
//!
//! `GET v2/USER/NAME/manifests/TAG` lists layers, `GET v2/USER/NAME/blobs/DIGEST` gives one. All layers are kept, so that Ollama
//! itself finds the model, too.

use data_encoding::HEXLOWER;
use potluck_store::Source;
use serde_json::Value;

use super::{Coming, Web, download, huggingface::write, is_plain, url};
use crate::{PullError, RoomFor};

const REGISTRY: &str = "registry.ollama.ai";
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Layers of one image: a model, its template, parameters, licences.
const LAYERS_MAX: usize = 64;

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    host: &'a str,
    user: &'a str,
    name: &'a str,
    tag: &'a str,
}

pub(super) async fn get(
    web: &Web,
    text: &str,
    room: &mut RoomFor<'_>,
    progress: &mut dyn FnMut(Coming),
) -> Result<Source, PullError> {
    let Asked { host, user, name, tag } = Asked::of(text)?;
    let local = host.starts_with("127.0.0.1:") || host.starts_with("localhost:");
    let base = format!("{}://{host}/v2/{user}/{name}", if local { "http" } else { "https" });
    let from = url(&format!("{base}/manifests/{tag}"))?;
    let manifest = web.json(&from, MANIFEST, None).await?;
    let broken = |what: &str| PullError::Answer { address: from.to_string(), what: what.to_owned() };
    let layers = manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if layers.is_empty() || layers.len() > LAYERS_MAX {
        return Err(broken(&format!("{} layers", layers.len())));
    }
    let wanted = layers.iter().chain([&manifest["config"]]).map(|layer| {
        let (digest, sha256) = digest(layer).ok_or_else(|| broken("a layer's digest is none"))?;
        Ok(download::Wanted {
            url: url(&format!("{base}/blobs/{digest}"))?,
            token: None,
            bytes: layer["size"].as_u64(),
            sha256: Some(sha256),
            to: web.places.ollama.join("blobs").join(digest.replace(':', "-")),
        })
    });
    let wanted = wanted.collect::<Result<Vec<_>, PullError>>()?;
    download::all(&web.client, &wanted, room, progress).await?;
    // Last: a manifest's blobs are all there.
    let manifests = web.places.ollama.join("manifests").join(host.replace(':', "_"));
    write(&manifests.join(user).join(name).join(tag), &manifest.to_string())?;
    let model = layers.iter().position(|layer| layer["mediaType"] == "application/vnd.ollama.image.model");
    let model = model.ok_or_else(|| broken("it has no model"))?;
    let mut found = web.places.find(&wanted[model].to.to_string_lossy())?;
    found.name = format!("{name}:{tag}");
    Ok(found)
}

impl<'a> Asked<'a> {
    fn of(text: &'a str) -> Result<Self, PullError> {
        let (path, tag) = match text.rsplit_once(':') {
            // The colon of a port is followed by a path.
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (text, "latest"),
        };
        let parts: Vec<_> = path.split('/').collect();
        let (host, user, name) = match parts.as_slice() {
            [name] => (REGISTRY, "library", *name),
            [user, name] => (REGISTRY, *user, *name),
            [host, user, name] => (*host, *user, *name),
            _ => ("", "", ""),
        };
        let plain_host = host.split(':').count() <= 2 && host.split(':').all(is_plain);
        if plain_host && [user, name, tag].into_iter().all(is_plain) {
            return Ok(Self { host, user, name, tag });
        }
        let what = "expected NAME, NAME:TAG, USER/NAME:TAG or HOST/USER/NAME:TAG".into();
        Err(PullError::Address { address: format!("ollama:{text}"), what })
    }
}

/// A layer's digest, as text and as bytes.
fn digest(layer: &Value) -> Option<(&str, [u8; 32])> {
    let digest = layer["digest"].as_str()?;
    let bytes = HEXLOWER.decode(digest.strip_prefix("sha256:")?.as_bytes()).ok()?;
    Some((digest, bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ollama_s() {
        let asked = |text| Asked::of(text).ok().map(|asked| (asked.host, asked.user, asked.name, asked.tag));
        assert_eq!(asked("smollm2"), Some((REGISTRY, "library", "smollm2", "latest")));
        assert_eq!(asked("smollm2:135m"), Some((REGISTRY, "library", "smollm2", "135m")));
        assert_eq!(asked("me/mine:v1"), Some((REGISTRY, "me", "mine", "v1")));
        assert_eq!(asked("127.0.0.1:5000/me/mine"), Some(("127.0.0.1:5000", "me", "mine", "latest")));
        for text in ["", ":", "a/b/c/d", "../x", "a:..", "a b"] {
            assert_eq!(asked(text), None, "{text}");
        }
    }
}
