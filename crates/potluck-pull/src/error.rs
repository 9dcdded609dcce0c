//! What can go wrong with a pull, and whose turn it is.

use potluck_core::{ManifestError, PeerId};
use potluck_net::NetError;
use potluck_store::StoreError;

/// Why a model, or a part of it, did not come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The swarm: of those who were asked, nobody shares this model. Hint: `potluck peers`.
    #[error("nobody who was asked has the model {model}{}", list(.silent))]
    Nobody {
        /// Its name or id.
        model: String,
        /// Who did not answer, and why.
        silent: Vec<String>,
    },
    /// The swarm: nobody has what is left. Hint: try again once somebody who has it is back; what has come is kept.
    #[error("nobody has the tensor `{tensor}` any more; {left} bytes are missing{}", list(.silent))]
    Gone {
        /// A tensor that is missing.
        tensor: String,
        /// Bytes that are still to come.
        left: u64,
        /// What befell those who had it.
        silent: Vec<String>,
    },
    /// A peer: what it sent for a manifest is none, or another model's.
    #[error("peer {} sent something else than the manifest that was asked for", .0.short())]
    WrongManifest(PeerId),
    /// A peer: see [`ManifestError`].
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The network, or whoever is at that address. Hint: try again; what has come is kept.
    #[error("{address}: {what}")]
    Web {
        /// What was asked for.
        address: String,
        /// What happened.
        what: String,
    },
    /// The user: that is no address.
    #[error("`{address}` cannot be fetched: {what}")]
    Address {
        /// As it was written.
        address: String,
        /// What is wrong with it.
        what: String,
    },
    /// Whoever is at that address: its answer cannot be read.
    #[error("{address}: {what}")]
    Answer {
        /// What was asked for.
        address: String,
        /// What is wrong with it.
        what: String,
    },
    /// The user: there is nothing. Hint: look at the name again.
    #[error("there is nothing at {0}")]
    Missing(String),
    /// The user: a licence to accept, or a token to show. Hint: `HF_TOKEN`.
    #[error("{0} is not for everybody")]
    NotAllowed(String),
    /// The user: several models are there, or none. Hint: name one of them.
    #[error("{address} has {} models{}", names.len(), list(names))]
    Several {
        /// Where.
        address: String,
        /// Which.
        names: Vec<String>,
    },
    /// Whoever is at that address: what came is not what was announced. Nothing of it is kept.
    #[error("what came from {0} is not what was announced")]
    Digest(String),
    /// See [`NetError`].
    #[error(transparent)]
    Net(#[from] NetError),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PullError {
    pub(crate) fn web(address: impl std::fmt::Display, what: impl Into<String>) -> Self {
        Self::Web { address: address.to_string(), what: what.into() }
    }

    /// With all causes: the first one says only that something went wrong.
    pub(crate) fn http(address: impl std::fmt::Display, error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut what = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            what += &format!(": {error}");
            cause = error.source();
        }
        Self::web(address, what)
    }
}

fn list(silent: &[String]) -> String {
    if silent.is_empty() { String::new() } else { format!(" ({})", silent.join("; ")) }
}
