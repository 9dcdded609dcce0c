//! What can go wrong on the way to a peer, and whose turn it is.

use potluck_core::PeerId;
use potluck_grant::GrantError;
use potluck_wire::{Failure, FailureCode, WireError};

/// What can go wrong on the way to a peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The user: no socket could be bound. Hint: another process may use the port; `--bind` chooses one.
    #[error("UDP {at} could not be bound: {reason}")]
    Bind {
        /// Where.
        at: String,
        /// Why.
        reason: String,
    },
    /// The user: this is no address.
    #[error("`{0}` is no address: expected `ip:port`")]
    Address(String),
    /// The user: this is no relay.
    #[error(
        "`{0}` is no address of a relay: expected `https://host`, perhaps with `#pin=...` as `potluck relay` prints it"
    )]
    Relay(String),
    /// The user: this is no place where records of peers lie.
    #[error("`{0}` is none of `dht`, `dht:HOST:PORT`, `https://...`")]
    PublicLookup(String),
    /// The network or the peer: it was not reached.
    #[error("peer {} was not reached: {reason}", .peer.short())]
    Unreachable {
        /// Whom.
        peer: PeerId,
        /// Why.
        reason: String,
    },
    /// The peer does not let us in. Hint: ask the swarm's owner for a grant.
    #[error("peer {} refused us: {code}", .peer.short())]
    Refused {
        /// Who.
        peer: PeerId,
        /// As it said.
        code: FailureCode,
    },
    /// The peer is no member of our swarm: nothing is passed to it.
    #[error("peer {} is no member of this swarm: {error}", .peer.short())]
    NotMember {
        /// Who.
        peer: PeerId,
        /// What is wrong with its grant.
        error: GrantError,
    },
    /// The peer broke the protocol.
    #[error("peer {} broke the protocol: {error}", .peer.short())]
    Protocol {
        /// Who.
        peer: PeerId,
        /// How.
        error: WireError,
    },
    /// The peer sent something else than what was due.
    #[error("peer {} sent a {got} frame where {expected} was due", .peer.short())]
    Unexpected {
        /// Who.
        peer: PeerId,
        /// What came.
        got: &'static str,
        /// What was due.
        expected: &'static str,
    },
    /// The connection was lost.
    #[error("the connection to peer {} was lost: {reason}", .peer.short())]
    Lost {
        /// Whose.
        peer: PeerId,
        /// How it was noticed.
        reason: String,
    },
    /// The peer did not do what it was asked for, and says why.
    #[error("peer {} answered: {}: {}", .peer.short(), .failure.code, .failure.detail)]
    Failed {
        /// Who.
        peer: PeerId,
        /// As it said.
        failure: Failure,
    },
}

impl NetError {
    /// The failure that a client learns of when this befell a peer on its route.
    pub(crate) fn failure(&self) -> potluck_wire::Failure {
        let code = match self {
            Self::Refused { code, .. } => *code,
            Self::NotMember { .. } => FailureCode::NotAdmitted,
            Self::Protocol { .. } | Self::Unexpected { .. } => FailureCode::Protocol,
            Self::Failed { failure, .. } => failure.code,
            _ => FailureCode::PeerLost,
        };
        potluck_wire::Failure::new(code, self)
    }

    /// A short code for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "bind",
            Self::Address(_) => "bad_address",
            Self::Relay(_) => "bad_relay",
            Self::PublicLookup(_) => "bad_discovery",
            Self::Unreachable { .. } | Self::Lost { .. } => "peer_lost",
            Self::Refused { code: FailureCode::InvitationUnknown, .. } => "invitation_unknown",
            Self::Refused { code: FailureCode::InvitationExpired, .. } => "invitation_expired",
            Self::Refused { code: FailureCode::InvitationUsed, .. } => "invitation_used",
            Self::Refused { code: FailureCode::Busy, .. } => "busy",
            Self::Refused { .. } | Self::NotMember { .. } => "not_admitted",
            Self::Protocol { .. } | Self::Unexpected { .. } => "protocol",
            Self::Failed { failure, .. } => match failure.code {
                FailureCode::NotServed => "not_served",
                FailureCode::Busy => "busy",
                _ => "peer_failed",
            },
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "another `potluck serve` may use the port; `--bind 0.0.0.0:0` takes any that is free",
            Self::Address(_) => "write it as ip:port, for example 192.168.1.7:7575",
            Self::Relay(_) => {
                "write it as `potluck relay` prints it, or https://relay.example, or https://relay.example:8443, or `none`"
            }
            Self::PublicLookup(_) => {
                "`--discovery dht` looks peers up in the BitTorrent DHT, `https://...` at a pkarr relay"
            }
            Self::Unreachable { .. } | Self::Lost { .. } => "check that the peer runs: `potluck peers`",
            Self::Refused { code, .. } => match code {
                FailureCode::InvitationUnknown | FailureCode::InvitationExpired | FailureCode::InvitationUsed => {
                    "ask for another line: `potluck swarm invite`, typed where the swarm was made"
                }
                FailureCode::Busy | FailureCode::Deadline => "try again in a moment",
                FailureCode::Version | FailureCode::Protocol => "compare both sides' versions: `potluck --version`",
                _ => "ask the swarm's owner for a grant: `potluck swarm grant`",
            },
            Self::Failed { .. } => "ask another peer, or try again in a moment",
            Self::NotMember { .. } => "ask the swarm's owner for a grant: `potluck swarm grant`",
            Self::Protocol { .. } | Self::Unexpected { .. } => "compare both sides' versions: `potluck --version`",
        }
    }
}
