//! Where models are found: files, parts, folders, and the stores of other programs. Found, never copied.

mod files;
mod huggingface;
mod ollama;
mod wheel;

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::StoreError;

/// A model that was found: its GGUFs in order, and what to call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What to call it, unless the user says otherwise.
    pub name: String,
    /// Its GGUFs: one, or the parts of a split model in order.
    pub parts: Vec<Part>,
}

/// A GGUF inside a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The file.
    pub path: PathBuf,
    /// Where the GGUF starts in it.
    pub start: u64,
    /// Its bytes; none: up to the file's end.
    pub len: Option<u64>,
}

impl Source {
    /// The file to name in messages.
    pub(crate) fn path(&self) -> &Path {
        self.parts.first().map_or(Path::new(&self.name), |part| &part.path)
    }
}

impl Part {
    /// A file that is a GGUF.
    fn whole(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), start: 0, len: None }
    }
}

/// Where other programs keep their models, and where we may extract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locations {
    /// Ollama's `models` folder.
    pub ollama: PathBuf,
    /// Hugging Face's `hub` folder.
    pub huggingface: PathBuf,
    /// A folder of ours for what has to be unpacked: the compressed member of a wheel.
    pub extracted: PathBuf,
}

impl Locations {
    /// As the programs themselves look: `OLLAMA_MODELS`, `HF_HUB_CACHE`, `HF_HOME`, else below the home folder.
    /// What has to be unpacked goes to the cache folder; see [`Locations::extracted`].
    pub fn from_env() -> Self {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = env::home_dir().unwrap_or_default();
        let cache = set("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        Self {
            ollama: set("OLLAMA_MODELS").unwrap_or_else(|| home.join(".ollama/models")),
            huggingface: set("HF_HUB_CACHE")
                .or_else(|| set("HF_HOME").map(|folder| folder.join("hub")))
                .unwrap_or_else(|| cache.join("huggingface/hub")),
            extracted: cache.join("potluck/extracted"),
        }
    }

    /// Finds a model: a path (a GGUF, any of its parts, a folder, a wheel), `ollama:NAME[:TAG]`, or
    /// `hf:ORG/NAME[/FILE]`.
    ///
    /// # Errors
    /// `NoModel` where there is none, `Several` where a folder holds more than one; `Io`.
    pub fn find(&self, text: &str) -> Result<Source, StoreError> {
        if let Some(name) = text.strip_prefix("ollama:") {
            return ollama::find(&self.ollama, name);
        }
        if let Some(name) = text.strip_prefix("hf:") {
            return huggingface::find(&self.huggingface, name);
        }
        let path = Path::new(text);
        if path.is_dir() {
            return huggingface::find_repository(path).unwrap_or_else(|| files::find_in_folder(path));
        }
        match path.extension() {
            Some(extension) if extension == "whl" || extension == "zip" => wheel::find(path, &self.extracted),
            _ => files::find_file(path),
        }
    }
}

/// A part of a path that a stranger's text may become: no separator, no way up, nothing hidden.
fn is_plain(component: &str) -> bool {
    !component.is_empty()
        && !component.starts_with('.')
        && component.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '+'))
}
