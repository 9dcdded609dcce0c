//! What can go wrong for a program that has the client in it, and whose turn it is.

use std::borrow::Cow;

use potluck_core::PeerId;
use potluck_net::NetError;
use potluck_tunnel::TunnelError;
use potluck_wire::{FailureCode, MESSAGE_BYTES_MAX, NotReached};

use crate::failure::Failure;

/// What can go wrong, and whose turn it is. [`code`](Self::code) is for programs, the message and [`hint`](Self::hint)
/// are for people.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// This program: it has closed the client.
    #[error("the client is closed")]
    Closed,
    /// The peer, or the network: it was not reached. Nothing has arrived there.
    #[error("{message}")]
    Away {
        /// Whom.
        peer: PeerId,
        /// What was tried.
        message: String,
    },
    /// The swarm's owner: this key's grant does not allow it, has ended, or was taken back.
    #[error("{message}")]
    NotAllowed {
        /// What, and who says so.
        message: String,
    },
    /// The program there: nobody listens for that, or nothing is exposed at that port. Nothing has arrived.
    #[error("peer {}: nobody listens for that", .peer.short())]
    NotListening {
        /// Who.
        peer: PeerId,
    },
    /// The program there: it has not taken what waits already. What was refused has not arrived; later it may.
    #[error("peer {}: too much waits there already", .peer.short())]
    Busy {
        /// Who.
        peer: PeerId,
    },
    /// This program: the message is longer than a message may be. Nothing was sent.
    #[error("a message of {bytes} bytes; the limit is {MESSAGE_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The program there: it did not say in time that it has the message, or what it replies. The message may have
    /// arrived, once.
    #[error("peer {} did not answer within {seconds:.1} s", .peer.short())]
    Unconfirmed {
        /// Who.
        peer: PeerId,
        /// How long it was waited for.
        seconds: f32,
    },
    /// Anything else, as the command line tells it.
    #[error("{message}")]
    Other {
        /// A short word that programs can rely on.
        code: Cow<'static, str>,
        /// What happened, with its numbers.
        message: String,
        /// What can be done about it.
        hint: String,
    },
}

impl ClientError {
    /// A short word that programs can rely on. The same as the command line's, where that has one.
    pub fn code(&self) -> &str {
        match self {
            Self::Closed => "closed",
            Self::Away { .. } => "peer_lost",
            Self::NotAllowed { .. } => "not_allowed",
            Self::NotListening { .. } => "not_exposed",
            Self::Busy { .. } => "busy",
            Self::TooLong { .. } => "too_long",
            Self::Unconfirmed { .. } => "unconfirmed",
            Self::Other { code, .. } => code,
        }
    }

    /// What can be done about it.
    pub fn hint(&self) -> &str {
        match self {
            Self::Closed => "make another one",
            Self::Away { .. } => "check that it runs, and that a member that both know does",
            Self::NotAllowed { .. } => {
                "Client::whoami says what this key may; the swarm's owner allows more: potluck swarm grant"
            }
            Self::NotListening { .. } => "listen for the topic there, or expose the port: potluck tunnel --expose PORT",
            Self::Busy { .. } => "send it again in a moment",
            Self::TooLong { .. } => "send it by a stream: Client::dial",
            Self::Unconfirmed { .. } => {
                "give it more time with Settings::deadline, or send it again where it may arrive twice"
            }
            Self::Other { hint, .. } => hint,
        }
    }

    pub(super) fn other(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Other { code: code.into(), message: message.into(), hint: hint.into() }
    }

    pub(super) fn io(what: &str, error: &std::io::Error) -> Self {
        Failure::io(what, error).into()
    }
}

impl From<Failure> for ClientError {
    fn from(failure: Failure) -> Self {
        let Failure { code, message, hint } = failure;
        match code.as_ref() {
            "not_allowed" | "not_admitted" => Self::NotAllowed { message },
            _ => Self::Other { code, message, hint },
        }
    }
}

impl From<NetError> for ClientError {
    fn from(error: NetError) -> Self {
        match &error {
            // It takes no tunnels: nobody listens there for anything.
            NetError::Refused { peer, code: FailureCode::NotServed } => Self::NotListening { peer: *peer },
            NetError::Refused { peer, code: FailureCode::Busy } => Self::Busy { peer: *peer },
            NetError::Refused { code: FailureCode::NotAdmitted, .. } | NetError::NotMember { .. } => {
                Self::NotAllowed { message: error.to_string() }
            }
            NetError::Unreachable { peer, .. } | NetError::Lost { peer, .. } => {
                Self::Away { peer: *peer, message: error.to_string() }
            }
            _ => Self::other(error.code(), error.to_string(), error.hint()),
        }
    }
}

impl From<TunnelError> for ClientError {
    fn from(error: TunnelError) -> Self {
        match error {
            TunnelError::Net(error) => error.into(),
            TunnelError::NotReached { peer, why: NotReached::NotExposed } => Self::NotListening { peer },
            TunnelError::NotReached { peer, why: NotReached::Busy } => Self::Busy { peer },
            TunnelError::NotReached { why: NotReached::NotAllowed | NotReached::Spent, .. } => {
                Self::NotAllowed { message: error.to_string() }
            }
            TunnelError::TooLong(bytes) => Self::TooLong { bytes },
            TunnelError::Unconfirmed { peer, seconds } => Self::Unconfirmed { peer, seconds },
            TunnelError::Away { peer, .. } | TunnelError::Lost(peer) => Self::Away { peer, message: error.to_string() },
            error => Self::other(error.code(), error.to_string(), error.hint()),
        }
    }
}
