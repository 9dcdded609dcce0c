//! What can go wrong with a model on disk, and who is to act.

use std::{io, path::PathBuf};

use potluck_core::{ManifestError, RangeError};
use potluck_model::{CutError, ModelError, gguf::GgufError};

/// Why the store could not do it. The doc of each variant says whose turn it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The user, or the machine: a file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The user. Hint: `potluck model list` shows the names; `potluck model add` takes a path.
    #[error("there is no model `{0}` here")]
    Unknown(String),
    /// The user: several models fit. Hint: give more of the id.
    #[error("`{text}` could be {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// What it could be.
        candidates: Vec<String>,
    },
    /// The user: another model has that name. Hint: `potluck model add --name`.
    #[error("the name `{0}` belongs to another model")]
    NameTaken(String),
    /// The user: a name is 1 to 128 characters without control characters, and does not start with `-`.
    #[error("`{0}` cannot be a model's name")]
    BadName(String),
    /// The user: nothing in that place is a model.
    #[error("{path}: {what}")]
    NoModel {
        /// Where it was looked for.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// The user: several models lie there. Hint: name one of the files.
    #[error("{path} holds {} models: {}", names.len(), names.join(", "))]
    Several {
        /// The folder.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// The file. Hint: download it again, or convert it again.
    #[error("{path}: {source}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: GgufError,
    },
    /// The file: see [`ModelError`].
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The user: the file is not what was added. Hint: `potluck model add` it again.
    #[error("{path} has changed since the model was added")]
    SourceChanged {
        /// The file.
        path: PathBuf,
    },
    /// The user: the file is gone. Hint: put it back, or `potluck model add` it from where it is now.
    #[error("{path} is gone; the model was added from there")]
    SourceMissing {
        /// The file.
        path: PathBuf,
    },
    /// The disk, or whoever wrote the file: its bytes are not those that were added. Hint: download it again.
    #[error("{path}: the tensor `{tensor}` is damaged: its bytes have another hash")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The user: of this model only some layers are here. Hint: `potluck model pull`.
    #[error("the tensor `{tensor}` of {model} is not here")]
    NotHere {
        /// The model's name.
        model: String,
        /// A tensor that was needed.
        tensor: String,
    },
    /// The user: what is to come finds no room. Nothing was removed. Hint: `potluck model remove`, or another `--disk`.
    #[error("{wanted} bytes are to come, and {short} of them find no room")]
    NoRoom {
        /// Bytes that are to come.
        wanted: u64,
        /// Bytes of them that find no room, after all that may be removed was.
        short: u64,
        /// The quota, where it is in the way; none: the disk is full.
        quota: Option<u64>,
        /// What is in use, and its bytes.
        in_use: Vec<(String, u64)>,
        /// What nobody uses and the user may remove, where we may not.
        removable: Vec<(String, u64)>,
    },
    /// The user: somebody uses the model. Hint: end what uses it: `potluck serve`, `run`, `up`, `gateway`, a pull.
    #[error("`{0}` is in use")]
    InUse(String),
    /// Whoever sent it: a piece whose hash is another one, or no piece of the model's.
    #[error("piece {number} of the tensor `{tensor}` is not the model's")]
    WrongPiece {
        /// The tensor.
        tensor: String,
        /// The piece's number.
        number: u64,
    },
    /// The catalogue's own file is damaged. Hint: `potluck model remove`, then add the model again.
    #[error("{path}: the catalogue's entry is damaged: {what}")]
    Catalogue {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another `potluck` holds the catalogue for too long. Retry.
    #[error("{path} is locked by another process")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The caller: see [`CutError`].
    #[error(transparent)]
    Cut(#[from] CutError),
    /// The caller: see [`RangeError`].
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The catalogue: see [`ManifestError`].
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl StoreError {
    /// An error of the system about `path`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::NoModel { path, what: "no such file or folder".into() },
            _ => Self::Io { path, source },
        }
    }

    /// What the user can type, where something helps.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unknown(_) => "potluck model list",
            Self::SourceChanged { .. } | Self::SourceMissing { .. } | Self::Damaged { .. } => "potluck model add",
            Self::NotHere { .. } => "potluck model pull",
            Self::NameTaken(_) => "potluck model add --name NAME",
            Self::Catalogue { .. } => "potluck model remove",
            Self::InUse(_) => "end the command that serves, asks or pulls it; then try again",
            _ => return None,
        })
    }
}
