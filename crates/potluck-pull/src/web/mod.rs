//! Models from the web: Hugging Face's repositories, Ollama's library, and any address.
//!
//! What comes is kept where the programs keep it that people have already: Hugging Face's cache and Ollama's store, in their own
//! layouts, so that nobody downloads a model twice. A transfer that broke off goes on where it was.

mod download;
mod huggingface;
mod ollama;

use std::{path::PathBuf, time::Duration};

use potluck_store::{Locations, Progress, Source};
use reqwest::{Client, StatusCode, Url};
use serde_json::Value;

use crate::{PullError, RoomFor};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(20);

/// Bytes of an answer that is read into memory: lists of files and manifests.
const LIST_BYTES_MAX: usize = 8 << 20;

/// Where models come from, and how we say who we are.
#[derive(Debug, Clone)]
pub struct Web {
    client: Client,
    huggingface: Url,
    token: Option<String>,
    places: Locations,
    /// Where models of other addresses are kept.
    downloads: PathBuf,
}

/// How far a model from the web has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coming {
    /// All of it.
    pub all: Progress,
    /// The file that comes now.
    pub file: Progress,
    /// That file's SHA-256, where it was announced.
    pub sha256: Option<[u8; 32]>,
}

/// What a user can name that lies on the web.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `hf:ORG/NAME[:QUANTISATION][@REVISION]`, or `hf:ORG/NAME/FILE`.
    HuggingFace(String),
    /// `ollama:NAME[:TAG]`, `ollama:USER/NAME[:TAG]`, `ollama:HOST/USER/NAME[:TAG]`.
    Ollama(String),
    /// `https://...`.
    Url(String),
}

impl Address {
    /// What this text names; none where it names nothing on the web.
    pub fn of(text: &str) -> Option<Self> {
        for prefix in ["hf:", "hf.co/", "huggingface.co/", "https://huggingface.co/"] {
            // An address of a file there is an address.
            if let Some(rest) = text.strip_prefix(prefix).filter(|rest| !rest.contains("/resolve/")) {
                return Some(Self::HuggingFace(rest.to_owned()));
            }
        }
        if let Some(rest) = text.strip_prefix("ollama:") {
            return Some(Self::Ollama(rest.to_owned()));
        }
        (text.starts_with("https://") || text.starts_with("http://")).then(|| Self::Url(text.to_owned()))
    }
}

impl Web {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN`, and where Hugging Face and Ollama keep models. What comes from other
    /// addresses is kept in `downloads`.
    ///
    /// # Errors
    /// `Web` where `HF_ENDPOINT` is no address.
    pub fn from_env(downloads: PathBuf) -> Result<Self, PullError> {
        let env = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = env("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Self::new(&endpoint, env("HF_TOKEN"), Locations::from_env(), downloads)
    }

    /// With this endpoint for Hugging Face, and this token for it.
    ///
    /// # Errors
    /// `Web` where the endpoint is no address.
    pub fn new(
        huggingface: &str,
        token: Option<String>,
        places: Locations,
        downloads: PathBuf,
    ) -> Result<Self, PullError> {
        // Another part of the program may have chosen one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let agent = concat!("potluck/", env!("CARGO_PKG_VERSION"));
        let client = Client::builder().user_agent(agent).connect_timeout(CONNECT).build();
        let client = client.map_err(|error| PullError::http(huggingface, error))?;
        let huggingface = url(&format!("{}/", huggingface.trim_end_matches('/')))?;
        Ok(Self { client, huggingface, token, places, downloads })
    }

    /// Gets a model, unless it is here already; where it is now. `room`: asked before the first byte, where any is to come.
    ///
    /// # Errors
    /// `Web` where the address does not give it, `Several` where it has more than one, `Digest` where what came is not what was
    /// announced, `Store` where there is no room, or it cannot be written.
    pub async fn get(
        &self,
        address: &Address,
        room: &mut RoomFor<'_>,
        progress: &mut dyn FnMut(Coming),
    ) -> Result<Source, PullError> {
        match address {
            Address::HuggingFace(text) => huggingface::get(self, text, room, progress).await,
            Address::Ollama(text) => ollama::get(self, text, room, progress).await,
            Address::Url(text) => self.get_url(text, room, progress).await,
        }
    }

    /// The folder that a model of this address is kept in: another program's store, or one of ours, of its own.
    pub fn folder(&self, address: &Address) -> PathBuf {
        match address {
            Address::HuggingFace(_) => self.places.huggingface.clone(),
            Address::Ollama(_) => self.places.ollama.clone(),
            // Two addresses may have files of one name.
            Address::Url(text) => self.downloads.join(&blake3::hash(text.as_bytes()).to_hex()[..16]),
        }
    }

    async fn get_url(
        &self,
        text: &str,
        room: &mut RoomFor<'_>,
        progress: &mut dyn FnMut(Coming),
    ) -> Result<Source, PullError> {
        let from = url(text)?;
        let name = from.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default();
        if name.is_empty() || !is_plain(name) {
            return Err(PullError::Address { address: text.into(), what: "it names no file".into() });
        }
        let to = self.folder(&Address::Url(text.to_owned())).join(name);
        let wanted = download::Wanted { url: from, token: None, bytes: None, sha256: None, to: to.clone() };
        download::all(&self.client, &[wanted], room, progress).await?;
        Ok(self.places.find(&to.to_string_lossy())?)
    }

    /// A list or a manifest, in JSON. `token`: shown to that host only.
    async fn json(&self, from: &Url, accept: &str, token: Option<&str>) -> Result<Value, PullError> {
        let failed = |error| PullError::http(from, error);
        let request = self.client.get(from.clone()).header("accept", accept).timeout(CONNECT);
        let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
        let mut response = check(from, request.send().await.map_err(failed)?)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > LIST_BYTES_MAX {
                return Err(PullError::Answer { address: from.to_string(), what: "it does not end".into() });
            }
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| PullError::Answer { address: from.to_string(), what: error.to_string() })
    }
}

/// A response that says what was asked for.
fn check(from: &Url, response: reqwest::Response) -> Result<reqwest::Response, PullError> {
    match response.status() {
        status if status.is_success() => Ok(response),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(PullError::NotAllowed(from.to_string())),
        StatusCode::NOT_FOUND => Err(PullError::Missing(from.to_string())),
        status => Err(PullError::Answer { address: from.to_string(), what: format!("it answers {status}") }),
    }
}

fn url(text: &str) -> Result<Url, PullError> {
    Url::parse(text).map_err(|error| PullError::Address { address: text.into(), what: error.to_string() })
}

/// A part of a name that is a file's or a folder's, and leads nowhere else.
fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= 200
        && part != "."
        && part != ".."
        && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_that_people_copy() {
        let hub = |text: &str| Some(Address::HuggingFace(text.into()));
        assert_eq!(Address::of("hf:a/b:Q4_K_M"), hub("a/b:Q4_K_M"));
        assert_eq!(Address::of("hf.co/a/b"), hub("a/b"));
        assert_eq!(Address::of("https://huggingface.co/a/b"), hub("a/b"));
        let file = "https://huggingface.co/a/b/resolve/main/c.gguf";
        assert_eq!(Address::of(file), Some(Address::Url(file.into())));
        assert_eq!(Address::of("ollama:smollm2"), Some(Address::Ollama("smollm2".into())));
        for text in ["smollm2", "./a.gguf", "a/b", "ftp://x/y"] {
            assert_eq!(Address::of(text), None, "{text}");
        }
    }

    #[test]
    fn names_lead_nowhere_else() {
        assert!(["a", "Qwen2.5-0.5B", "x_y+z.gguf"].into_iter().all(is_plain));
        assert!(!["", ".", "..", "a/b", "a\\b", "a b", "ü", "a%2fb"].into_iter().any(is_plain));
    }
}
