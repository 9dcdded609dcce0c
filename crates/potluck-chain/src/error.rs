//! How a session ends when it does not end well, and how long each wait may last.

use std::time::Duration;

use potluck_core::{PeerId, StageError};
use potluck_wire::{Failure, FailureCode};

/// How long each wait of a session may last. Beyond it the session ends with [`SessionError::Deadline`]: nothing hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From the first frame to a route that is ready, engines' caches included.
    pub open: Duration,
    /// From a step to its answer, per step in flight: a chunk through every stage.
    pub step: Duration,
    /// Without any step before a peer may end the session.
    pub idle: Duration,
    /// From the loss of a peer to another in its place: the others keep what they hold meanwhile. None: the session ends with the
    /// first peer that is lost.
    pub grace: Option<Duration>,
}

impl Default for Deadlines {
    fn default() -> Self {
        let [open, step, idle] = [20, 120, 600].map(Duration::from_secs);
        Self { open, step, idle, grace: None }
    }
}

/// Why a session ended. Says whose turn it is; nothing is retried behind the caller's back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// A peer of the route said why it cannot go on.
    #[error("peer {} of stage {layers}: {}{}", .peer.short(), .failure.code, detail(.failure))]
    Peer {
        /// Which peer.
        peer: PeerId,
        /// The layers that it held, as `a..b`.
        layers: String,
        /// What it said.
        failure: Failure,
    },
    /// A peer of the route is gone. Open the session again on another route.
    #[error("lost peer {} of stage {layers}{}", .peer.short(), detail(.failure))]
    PeerLost {
        /// Which peer.
        peer: PeerId,
        /// The layers that it held, as `a..b`.
        layers: String,
        /// How it was noticed.
        failure: Failure,
    },
    /// A peer broke the protocol: it is at fault, or speaks another version of it.
    #[error("peer {} broke the protocol: {reason}", .peer.short())]
    Protocol {
        /// Which peer.
        peer: PeerId,
        /// What it did.
        reason: String,
    },
    /// A wait lasted too long. Hint: the setting that names the deadline.
    #[error("no answer within {seconds} s while {waiting} (setting `{setting}`)")]
    Deadline {
        /// For what.
        waiting: String,
        /// How long.
        seconds: u64,
        /// The setting to raise.
        setting: &'static str,
    },
    /// The own stage failed.
    #[error("this machine's own stage {layers}: {error}")]
    Own {
        /// Its layers, as `a..b`.
        layers: String,
        /// What happened.
        error: StageError,
    },
    /// The caller: the step does not fit the session.
    #[error("{0}")]
    BadStep(String),
    /// The caller ended the session.
    #[error("the session was closed")]
    Closed,
}

fn detail(failure: &Failure) -> String {
    if failure.detail.is_empty() { String::new() } else { format!(" ({})", failure.detail) }
}

impl SessionError {
    /// True where a peer, the way to it, or an engine is gone: the same may go well over another route.
    pub fn is_loss(&self) -> bool {
        match self {
            Self::PeerLost { .. } => true,
            Self::Peer { failure, .. } => {
                // Who serves something else by now, has let go of a session at rest, or believes that we have left, is gone as well.
                matches!(
                    failure.code,
                    FailureCode::PeerLost
                        | FailureCode::EngineLost
                        | FailureCode::Leaving
                        | FailureCode::NotServed
                        | FailureCode::Idle
                        | FailureCode::Cancelled
                        | FailureCode::Forgotten
                )
            }
            Self::Own { error, .. } => matches!(error, StageError::Lost(_)),
            _ => false,
        }
    }

    /// A short code for machines: the `code` of an error object.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Peer { failure, .. } => match failure.code {
                FailureCode::ContextFull => "context_full",
                FailureCode::Busy => "busy",
                FailureCode::NotAdmitted => "not_admitted",
                FailureCode::NotServed => "not_served",
                FailureCode::Engine => "engine_error",
                FailureCode::EngineLost => "engine_lost",
                FailureCode::Idle => "idle",
                _ => "peer_failed",
            },
            Self::PeerLost { .. } => "peer_lost",
            Self::Protocol { .. } => "protocol",
            Self::Deadline { .. } => "deadline",
            Self::Own { error: StageError::ContextFull { .. }, .. } => "context_full",
            Self::Own { .. } => "engine_error",
            Self::BadStep(_) => "bad_step",
            Self::Closed => "cancelled",
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self.code() {
            "context_full" => "shorten the conversation, or ask for a larger context with --context",
            "busy" => "try again, or let another peer serve the same layers",
            "peer_lost" => "run it again: `potluck peers` shows who is there",
            "engine_lost" => "run it again: the peer restarts its engine by itself",
            "not_admitted" => "ask the swarm's owner for a grant: `potluck swarm join`",
            _ => "run it again with RUST_LOG=debug to see more",
        }
    }
}
