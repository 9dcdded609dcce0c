//! What goes wrong when a network is made.

use std::io;

/// Why a network, or a part of it, could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetemError {
    /// Who runs the test. Hint: as root, with `iproute2`, `nftables` and `conntrack` installed (`scripts/setup`).
    #[error("no network namespaces here: {0}")]
    Unavailable(String),
    /// Who wrote the test, or the kernel: a program refused what it was asked for.
    #[error("`{program}` in {namespace}: {reason}")]
    Refused {
        /// The program.
        program: &'static str,
        /// Where it ran.
        namespace: String,
        /// What it said.
        reason: String,
    },
    /// The system.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl NetemError {
    /// The system refused to do that.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl From<io::Error> for NetemError {
    fn from(source: io::Error) -> Self {
        Self::Io { what: "in a namespace".into(), source }
    }
}
