//! What can go wrong on the way to a service, and whose turn it is.

use potluck_core::PeerId;
use potluck_net::NetError;
use potluck_wire::{NotReached, WireError};

/// What can go wrong on the way to a service.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The user: this is nothing that can be exposed.
    #[error("`{0}` cannot be exposed")]
    Exposure(String),
    /// The peer or the network: it was not reached in time.
    #[error("peer {} was not reached within {seconds} s", .peer.short())]
    Away {
        /// Whom.
        peer: PeerId,
        /// How long it was tried.
        seconds: u64,
    },
    /// The peer or the network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The peer was reached, and the service was not.
    #[error("peer {}: {}", .peer.short(), words(*.why))]
    NotReached {
        /// Through whom.
        peer: PeerId,
        /// Why.
        why: NotReached,
    },
    /// The peer broke the protocol.
    #[error("peer {} broke the protocol: {error}", .peer.short())]
    Protocol {
        /// Who.
        peer: PeerId,
        /// How.
        error: WireError,
    },
    /// The connection ended before the answer.
    #[error("the connection to peer {} was lost", .0.short())]
    Lost(PeerId),
}

/// Why a service was not reached, in words.
fn words(why: NotReached) -> &'static str {
    match why {
        NotReached::NotAllowed => "this machine's grant does not allow to reach that",
        NotReached::NotExposed => "it does not expose that",
        NotReached::NoName => "it knows no host of that name",
        NotReached::NoRoute => "it has no way to that host",
        NotReached::Refused => "nothing listens there",
        NotReached::Late => "no answer from there in time",
        NotReached::Busy => "too many connections of this machine at once",
        NotReached::Spent => "the bytes that the grant allows in a day are used up",
        _ => "it was not reached",
    }
}

impl TunnelError {
    /// A short code for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Exposure(_) => "usage",
            Self::Away { .. } | Self::Lost(_) => "peer_lost",
            Self::Net(error) => error.code(),
            Self::NotReached { why: NotReached::NotAllowed | NotReached::Spent, .. } => "not_allowed",
            Self::NotReached { why: NotReached::NotExposed, .. } => "not_exposed",
            Self::NotReached { .. } => "not_reached",
            Self::Protocol { .. } => "protocol",
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Exposure(_) => "write it as 22, udp:53, 192.168.1.10:5432, 10.0.0.0/8:* or [fd00::1]:22",
            Self::Away { .. } | Self::Lost(_) => {
                "check that it exposes something: `potluck tunnel --expose PORT` there"
            }
            Self::Net(error) => error.hint(),
            Self::NotReached { why: NotReached::NotAllowed | NotReached::Spent, .. } => {
                "`potluck swarm whoami` says what this machine may; its owner allows more with `potluck swarm grant`"
            }
            Self::NotReached { why: NotReached::NotExposed, .. } => "expose it there: `potluck tunnel --expose PORT`",
            Self::NotReached { .. } => "check the service there",
            Self::Protocol { .. } => "compare both sides' versions: `potluck --version`",
        }
    }
}
