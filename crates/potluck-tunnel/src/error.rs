//! What can go wrong on the way to a service, and whose turn it is.

use potluck_core::PeerId;
use potluck_net::NetError;
use potluck_wire::{MESSAGE_BYTES_MAX, NotReached, TOPIC_BYTES_MAX, WireError};

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
    /// The user: this is no topic.
    #[error("a topic has 1 to {TOPIC_BYTES_MAX} characters of ASCII and no spaces")]
    Topic,
    /// The user: somebody listens for it here already.
    #[error("another part of this program listens for `{0}` already")]
    Listening(String),
    /// The user: longer than a message may be.
    #[error("a message of {0} bytes; the limit is {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// The application there: it did not say in time that it has the message. It may have it all the same.
    #[error("peer {} did not confirm the message within {seconds:.1} s", .peer.short())]
    Unconfirmed {
        /// Who.
        peer: PeerId,
        /// How long it was waited for.
        seconds: f32,
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
        NotReached::Busy => "it has too many of this machine's waiting already",
        NotReached::Spent => "the bytes that the grant allows in a day are used up",
        _ => "it was not reached",
    }
}

impl TunnelError {
    /// A short code for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Exposure(_) | Self::Topic => "usage",
            Self::Listening(_) => "listening",
            Self::TooLong(_) => "too_long",
            Self::Unconfirmed { .. } => "unconfirmed",
            Self::NotReached { why: NotReached::Busy, .. } => "busy",
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
            Self::Topic => "name it as news, or app.example/chat",
            Self::Listening(_) => "take another topic, or drop what listens for this one",
            Self::TooLong(_) => "send it by a stream",
            Self::Unconfirmed { .. } => "send it again where it may arrive twice, or give it more time",
            Self::NotReached { why: NotReached::Busy, .. } => "try again in a moment",
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
