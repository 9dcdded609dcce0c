//! Where a model's bytes lie: local, and no part of what the model is.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use potluck_core::Manifest;
use serde::{Deserialize, Serialize};

use crate::StoreError;

/// Where the bytes of a model lie on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The files.
    pub files: Vec<SourceFile>,
    /// For each file where in it the GGUF lies: all of it, or the member of a wheel. None where a model was pulled from peers:
    /// its header is made from the manifest.
    pub ggufs: Vec<GgufPlace>,
    /// For each tensor that is here its file and where in that file its bytes start.
    pub tensors: BTreeMap<String, TensorPlace>,
}

/// A file that holds tensors, as it was when the model was added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Absolute, without links.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// When it was last written, in nanoseconds since 1970, as far as the file system knows.
    pub modified_ns: u64,
    /// True for a file of the catalogue's own, which an [`Intake`](crate::Intake) fills: each piece was checked when it came,
    /// and others may still be written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pulled: bool,
}

/// Where in a file a GGUF lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GgufPlace {
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
}

/// Where a tensor's bytes start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorPlace {
    /// Index in [`Place::files`].
    pub file: u16,
    /// Byte in that file.
    pub offset: u64,
}

impl SourceFile {
    /// Opens `path` and notes what it is like now.
    ///
    /// # Errors
    /// `Io`, or `NoModel` where there is no such file.
    pub fn open(path: &Path) -> Result<(Self, File), StoreError> {
        let path = fs::canonicalize(path).map_err(StoreError::io(path))?;
        let file = File::open(&path).map_err(StoreError::io(&path))?;
        let source = Self::of(path, &file)?;
        Ok((source, file))
    }

    fn of(path: PathBuf, file: &File) -> Result<Self, StoreError> {
        let metadata = file.metadata().map_err(StoreError::io(&path))?;
        if !metadata.is_file() {
            return Err(StoreError::NoModel { path, what: "not a file".into() });
        }
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified_ns = modified.and_then(|age| age.as_nanos().try_into().ok()).unwrap_or(0);
        Ok(Self { size: metadata.len(), modified_ns, path, pulled: false })
    }

    /// Opens the file again, and makes sure that it is still the same.
    ///
    /// # Errors
    /// `SourceMissing`, `SourceChanged`, `Io`.
    pub fn reopen(&self) -> Result<File, StoreError> {
        let file = match File::open(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::SourceMissing { path: self.path.clone() });
            }
            file => file.map_err(StoreError::io(&self.path))?,
        };
        self.unchanged(&file)?;
        Ok(file)
    }

    /// Makes sure that the open `file` is still what was noted.
    pub(crate) fn unchanged(&self, file: &File) -> Result<(), StoreError> {
        let now = Self::of(self.path.clone(), file)?;
        let same = if self.pulled { now.size == self.size } else { now == *self };
        if same { Ok(()) } else { Err(StoreError::SourceChanged { path: self.path.clone() }) }
    }
}

impl Place {
    /// Makes sure that every file is still what it was when the model was added.
    ///
    /// # Errors
    /// `SourceMissing`, `SourceChanged`, `Io`.
    pub fn check(&self) -> Result<(), StoreError> {
        self.files.iter().try_for_each(|file| file.reopen().map(drop))
    }

    /// Where a tensor of `bytes` bytes lies; none where the place is not that of the tensor's model.
    pub(crate) fn tensor(&self, name: &str, bytes: u64) -> Option<(&SourceFile, TensorPlace)> {
        let place = *self.tensors.get(name)?;
        let file = self.files.get(place.file as usize)?;
        (place.offset.checked_add(bytes)? <= file.size).then_some((file, place))
    }

    /// True if every GGUF, and every tensor that is said to be here, has its place inside one of the files, and is the
    /// manifest's. Of a model that is read in place every tensor is here.
    pub(crate) fn fits(&self, manifest: &Manifest) -> bool {
        let inside = |(file, gguf): (&SourceFile, &GgufPlace)| {
            gguf.start.checked_add(gguf.len).is_some_and(|end| end <= file.size)
        };
        let pulled = self.ggufs.is_empty() && self.files.iter().all(|file| file.pulled);
        let here = |name: &String| manifest.tensor(name).is_some_and(|t| self.tensor(name, t.bytes).is_some());
        (pulled || self.ggufs.len() == self.files.len() && self.tensors.len() == manifest.tensors.len())
            && self.files.iter().zip(&self.ggufs).all(inside)
            && self.tensors.keys().all(here)
    }
}
