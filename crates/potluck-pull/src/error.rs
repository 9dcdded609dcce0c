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
    /// See [`NetError`].
    #[error(transparent)]
    Net(#[from] NetError),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn list(silent: &[String]) -> String {
    if silent.is_empty() { String::new() } else { format!(" ({})", silent.join("; ")) }
}
