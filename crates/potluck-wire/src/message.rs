//! The bodies that are not steps: how peers greet, how a session opens, and how it fails.

use std::fmt;

use potluck_core::{ModelId, PeerId, SessionId, SessionKey, SignedRevocation, StageSpec, StateKey};
use serde::{Deserialize, Serialize};

use crate::{
    ADDRESSES_MAX, CONTACTS_MAX, CodecSet, GRANT_BYTES_MAX, JOIN_KEYS_MAX, LENDER_GRANT_BYTES_MAX, MODELS_MAX,
    NAME_BYTES_MAX, REVOCATIONS_PAGE_MAX, TEXT_BYTES_MAX, WireError,
};

/// The dialer's first frame on a connection's first stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest version of the wire that the dialer speaks.
    pub version_min: u16,
    /// Newest version of the wire that the dialer speaks.
    pub version_max: u16,
    /// Features that it knows, a bit each: see [`FEATURES`](crate::FEATURES).
    pub features: u64,
    /// Codecs that it decodes.
    pub codecs: CodecSet,
    /// Its grant (a biscuit), bound to the key that it connects with.
    pub grant: Vec<u8>,
    /// Program and version, for logs.
    pub agent: String,
}

/// The answer to a [`Hello`] that is let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both speak from here on.
    pub version: u16,
    /// Features that both know.
    pub features: u64,
    /// Codecs that both decode.
    pub codecs: CodecSet,
    /// What the acceptor allows.
    pub bounds: Bounds,
    /// The acceptor's own grant: a dialer passes nothing to a peer that is no member.
    pub grant: Vec<u8>,
}

/// What an acceptor allows on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Positions in one step.
    pub step_positions: u16,
    /// Frames without credit.
    pub hop_frames: u32,
    /// Sessions of this client at once.
    pub sessions: u16,
}

/// The answer to a [`Hello`] that is not let in: the code is all that a stranger learns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why.
    pub code: FailureCode,
    /// Versions that the acceptor speaks.
    pub version_min: u16,
    /// Versions that the acceptor speaks.
    pub version_max: u16,
}

/// The dialer's first frame where it holds an invitation and no grant yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// What the invitation is known by: whoever knows it may use it.
    pub secret: [u8; 16],
    /// The keys that ask for a grant, at most [`JOIN_KEYS_MAX`]; a grant is of no use to another key.
    pub keys: Vec<PeerId>,
}

/// The answer to a [`Join`] whose invitation holds. Any other answer is a [`Refusal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// A grant (a biscuit) for each key that asked, in the same order.
    pub grants: Vec<Vec<u8>>,
    /// Members to ask for offers, at most [`CONTACTS_MAX`].
    pub contacts: Vec<PeerAddress>,
}

/// A model that a peer shares: all of it, or some of its layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedModel {
    /// Which.
    pub model: ModelId,
    /// What its holder calls it, at most [`NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Its layers.
    pub layers: u32,
    /// Bytes of all its tensors.
    pub bytes: u64,
    /// Bytes of those that this peer has.
    pub held_bytes: u64,
}

/// Asks for a part of a model. Each but [`Part::Held`] is answered with the bytes themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Which model.
    pub model: ModelId,
    /// Which part of it.
    pub part: Part,
}

/// A part of a model. Tensors are numbered in the manifest's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// What this peer has of it: answered with [`Held`].
    Held,
    /// The manifest, from this byte on: what is left of it, or as much as a part may be.
    Manifest(u32),
    /// Hashes of a tensor's pieces, from that number on: as many as there are, or [`PIECE_HASHES_MAX`](crate::PIECE_HASHES_MAX).
    Hashes(u32, u32),
    /// A piece of a tensor: tensor, number.
    Piece(u32, u32),
}

/// What a peer has of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Bytes of the manifest.
    pub manifest_bytes: u32,
    /// A bit for each tensor, the first one in the first byte's lowest bit; bits that are left over are 0.
    #[serde(with = "serde_bytes")]
    pub tensors: Vec<u8>,
}

impl Held {
    /// True where the peer has that tensor.
    pub fn has(&self, tensor: usize) -> bool {
        self.tensors.get(tensor / 8).is_some_and(|byte| byte >> (tensor % 8) & 1 == 1)
    }
}

/// Where a peer is reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerAddress {
    /// Its key.
    pub peer: PeerId,
    /// `ip:port` texts, at most [`ADDRESSES_MAX`].
    pub addresses: Vec<String>,
    /// URL of the relay that it listens at, if any.
    pub relay: Option<String>,
}

/// Whom a stage takes a session's steps from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PreviousHop {
    /// The client, on the stream that opened the session.
    Client,
    /// This peer, on a stream that it opens.
    Peer(PeerId),
}

/// Whom a stage passes a session's steps to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextHop {
    /// The client, on the stream that opened the session: hidden states, or logits at the tail.
    Client,
    /// This peer. Its grant is checked before it is dialled, so its key is a member's. Its addresses are the client's
    /// word: a client can still make a peer send handshakes to them.
    Peer {
        /// Where it is.
        address: PeerAddress,
        /// Its grant, as it showed it to the client.
        grant: Vec<u8>,
    },
    /// Nobody yet: a standby. It computes what the peer beside it computes, and keeps what it would pass on, until it is told to
    /// whom ([`Reroute`]).
    Nobody,
}

/// The client opens its session at one peer of the route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSession {
    /// The client's name for the session; its key is the connection's.
    pub session: SessionId,
    /// Which attempt at a route this is. Frames of an older epoch are stale and dropped; of a newer one, an error.
    pub epoch: u32,
    /// The stage to use.
    pub stage: StageSpec,
    /// Positions that the session may grow to.
    pub positions: u32,
    /// Whom to take steps from.
    pub previous: PreviousHop,
    /// Whom to pass them to.
    pub next: NextHop,
    /// The codec of hidden states that arrive.
    pub codec_in: crate::Codec,
    /// The codec of hidden states that leave.
    pub codec_out: crate::Codec,
    /// Start with positions of another session of the same client.
    pub prefix: Option<Prefix>,
    /// Milliseconds without a step after which the peer may end the session; it may end it sooner.
    pub idle_ms: u32,
}

/// Positions that a session takes over from another of the same client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// The other session.
    pub session: SessionId,
    /// How many of its positions.
    pub positions: u32,
}

/// The client, after it has opened a session: it is to outlive the loss of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// Milliseconds that the session waits for another neighbour in the place of one that is lost; the peer may wait less.
    pub grace_ms: u32,
    /// The client has what comes back from the last peer for the steps before this one: they are computed, and not sent again.
    pub answered: u32,
}

/// The client, to a peer that is still there: another neighbour takes the place of one that is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reroute {
    /// The epoch of the streams to and from the new neighbours. Who belongs to an earlier one is fenced off by it.
    pub epoch: u32,
    /// From whom steps come from now on; none: from whom they come.
    pub previous: Option<PreviousHop>,
    /// To whom they are passed from now on; none: to whom they are passed.
    pub next: Option<NextHop>,
    /// The client has what comes back from the last peer for the steps before this one: nobody needs to be sent that again.
    pub answered: u32,
    /// Those of the steps before it that the next peer has to be sent again may be merged.
    pub merges: bool,
}

/// The client, to a peer: what it passes on to the next peer it also sends to another, a standby, from the session's first step on.
/// One at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// The epoch of the stream to the standby.
    pub epoch: u32,
    /// Where it is; none: to no other any more.
    pub standby: Option<NextHop>,
    /// As in [`Reroute`].
    pub answered: u32,
    /// As in [`Reroute`].
    pub merges: bool,
}

/// The client, as the first frame of a stream: the one on which it had the session here broke off with its connection, and this
/// takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Return {
    /// The client's name for the session.
    pub session: SessionId,
    /// The epoch of the stream on which steps come here. With another, or another below, this is no longer the peer's place.
    pub previous: u32,
    /// The epoch of the stream on which they leave.
    pub next: u32,
    /// The client has what comes back from the last peer for the steps before this one.
    pub answered: u32,
}

/// The client, to a peer of the route, when no step is under way: keep what the session holds here, encrypted, and forget the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Save {
    /// What it is encrypted with: a new one each time.
    pub key: StateKey,
    /// For how long it is wanted. A peer keeps it for less where it has no room.
    pub seconds: u32,
}

/// The client, to a peer of the route, before the first step: begin with what you have kept of an earlier session of mine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// What that session was called.
    pub session: SessionId,
    /// What it was encrypted with.
    pub key: StateKey,
}

/// A peer, to the client: the session's stream from or to a neighbour ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourLost {
    /// The epoch of that stream.
    pub epoch: u32,
    /// Which neighbour, and how it was noticed.
    pub failure: Failure,
}

/// The first frame of a stream from one peer of a route to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopOpen {
    /// The session, by client and id.
    pub session: SessionKey,
    /// Its epoch.
    pub epoch: u32,
}

/// Why something ended, as far as the other side may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FailureCode {
    /// Nothing is wrong: the sender is done.
    Done,
    /// The receiver broke the protocol: it sent what may not be sent here.
    Protocol,
    /// No version of the wire that both speak.
    Version,
    /// No valid grant for this key in this swarm.
    NotAdmitted,
    /// The session is not known here.
    UnknownSession,
    /// A sequence number was left out.
    Gap,
    /// A frame of an epoch that the session has not reached.
    Epoch,
    /// The stage is not served here.
    NotServed,
    /// No room for another session.
    Busy,
    /// The session has grown beyond what was opened for it.
    ContextFull,
    /// The engine refused the step.
    Engine,
    /// The engine's process ended; it is restarting.
    EngineLost,
    /// The next peer of the route is lost or does not answer.
    PeerLost,
    /// Nothing was heard for longer than the session may be idle.
    Idle,
    /// A wait went on beyond its deadline.
    Deadline,
    /// A bound of memory or number was exceeded.
    OverBudget,
    /// The client ended the session.
    Cancelled,
    /// The peer is shutting down.
    Leaving,
    /// No such invitation, or not here.
    InvitationUnknown,
    /// The invitation's time is over.
    InvitationExpired,
    /// The invitation has been used as often as it may be.
    InvitationUsed,
    /// The grant admits, and does not allow this.
    NotAllowed,
    /// The grant's tokens of this day are used up here.
    Spent,
    /// What a substitute for a lost peer would have to be sent was let go of.
    Forgotten,
}

/// The last frame of a stream that did not end well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind.
    pub code: FailureCode,
    /// The peer that failed, where it is not the sender.
    pub peer: Option<PeerId>,
    /// In words, for the user and the log; at most [`TEXT_BYTES_MAX`] bytes.
    pub detail: String,
}

impl FailureCode {
    /// All of them, in order of their numbers.
    pub const ALL: [Self; 24] = [
        Self::Done,
        Self::Protocol,
        Self::Version,
        Self::NotAdmitted,
        Self::UnknownSession,
        Self::Gap,
        Self::Epoch,
        Self::NotServed,
        Self::Busy,
        Self::ContextFull,
        Self::Engine,
        Self::EngineLost,
        Self::PeerLost,
        Self::Idle,
        Self::Deadline,
        Self::OverBudget,
        Self::Cancelled,
        Self::Leaving,
        Self::InvitationUnknown,
        Self::InvitationExpired,
        Self::InvitationUsed,
        Self::NotAllowed,
        Self::Spent,
        Self::Forgotten,
    ];

    /// The number that closes a QUIC stream or connection for this reason.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The reason of that number, or none where a later version made it up.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|code| u64::from(code.number()) == number)
    }
}

impl fmt::Display for FailureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Protocol => "protocol broken",
            Self::Version => "no common version",
            Self::NotAdmitted => "not admitted",
            Self::UnknownSession => "unknown session",
            Self::Gap => "sequence gap",
            Self::Epoch => "wrong epoch",
            Self::NotServed => "stage not served",
            Self::Busy => "busy",
            Self::ContextFull => "context full",
            Self::Engine => "engine error",
            Self::EngineLost => "engine lost",
            Self::PeerLost => "peer lost",
            Self::Idle => "idle too long",
            Self::Deadline => "deadline passed",
            Self::OverBudget => "over budget",
            Self::Cancelled => "cancelled",
            Self::Leaving => "leaving",
            Self::InvitationUnknown => "no such invitation",
            Self::InvitationExpired => "the invitation has expired",
            Self::InvitationUsed => "the invitation was used already",
            Self::NotAllowed => "not allowed",
            Self::Spent => "the day's tokens are used up",
            Self::Forgotten => "let go of what a substitute needs",
        })
    }
}

impl Failure {
    /// A failure of the sender's own. The detail is cut to the bound.
    pub fn new(code: FailureCode, detail: impl fmt::Display) -> Self {
        let mut detail = detail.to_string();
        let end = (0..=TEXT_BYTES_MAX.min(detail.len())).rev().find(|&i| detail.is_char_boundary(i)).unwrap_or(0);
        detail.truncate(end);
        Self { code, peer: None, detail }
    }

    /// The same, about another peer.
    pub fn of(mut self, peer: PeerId) -> Self {
        self.peer = Some(peer);
        self
    }
}

/// A message whose parts have bounds of their own.
pub(crate) trait Bounded {
    /// Whether each part is within its bound.
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}

pub(crate) fn at_most(what: &'static str, len: usize, max: usize) -> Result<(), WireError> {
    if len <= max { Ok(()) } else { Err(WireError::Bound { what, len, max }) }
}

impl Bounded for Hello {
    fn check(&self) -> Result<(), WireError> {
        at_most("grant", self.grant.len(), GRANT_BYTES_MAX)?;
        at_most("agent", self.agent.len(), TEXT_BYTES_MAX)
    }
}

impl Bounded for Welcome {
    fn check(&self) -> Result<(), WireError> {
        at_most("grant", self.grant.len(), GRANT_BYTES_MAX)
    }
}

impl Bounded for OpenSession {
    fn check(&self) -> Result<(), WireError> {
        self.next.check()
    }
}

impl Bounded for Reroute {
    fn check(&self) -> Result<(), WireError> {
        self.next.as_ref().map_or(Ok(()), Bounded::check)
    }
}

impl Bounded for Mirror {
    fn check(&self) -> Result<(), WireError> {
        self.standby.as_ref().map_or(Ok(()), Bounded::check)
    }
}

impl Bounded for NextHop {
    fn check(&self) -> Result<(), WireError> {
        let Self::Peer { address, grant } = self else { return Ok(()) };
        address.check()?;
        at_most("grant", grant.len(), GRANT_BYTES_MAX)
    }
}

impl Bounded for NeighbourLost {
    fn check(&self) -> Result<(), WireError> {
        self.failure.check()
    }
}

impl Bounded for PeerAddress {
    fn check(&self) -> Result<(), WireError> {
        at_most("addresses", self.addresses.len(), ADDRESSES_MAX)?;
        self.addresses.iter().chain(&self.relay).try_for_each(|text| at_most("address", text.len(), TEXT_BYTES_MAX))
    }
}

impl Bounded for Join {
    fn check(&self) -> Result<(), WireError> {
        at_most("keys", self.keys.len(), JOIN_KEYS_MAX)
    }
}

impl Bounded for Joined {
    fn check(&self) -> Result<(), WireError> {
        at_most("grants", self.grants.len(), JOIN_KEYS_MAX)?;
        self.grants.iter().try_for_each(|grant| at_most("grant", grant.len(), GRANT_BYTES_MAX))?;
        at_most("contacts", self.contacts.len(), CONTACTS_MAX)?;
        self.contacts.iter().try_for_each(Bounded::check)
    }
}

impl Bounded for Vec<SharedModel> {
    fn check(&self) -> Result<(), WireError> {
        at_most("models", self.len(), MODELS_MAX)?;
        self.iter().try_for_each(|model| at_most("name", model.name.len(), NAME_BYTES_MAX))
    }
}

impl Bounded for Vec<SignedRevocation> {
    fn check(&self) -> Result<(), WireError> {
        at_most("revocations", self.len(), REVOCATIONS_PAGE_MAX)?;
        self.iter().try_for_each(|one| at_most("grant", one.beside.len(), LENDER_GRANT_BYTES_MAX))
    }
}

impl Bounded for Failure {
    fn check(&self) -> Result<(), WireError> {
        at_most("detail", self.detail.len(), TEXT_BYTES_MAX)
    }
}

impl Bounded for Refusal {}
impl Bounded for Fetch {}
// Its length is the frame's.
impl Bounded for Held {}
impl Bounded for HopOpen {}
impl Bounded for Keep {}

impl Bounded for Vec<potluck_core::SignedOffer> {
    fn check(&self) -> Result<(), WireError> {
        at_most("offers", self.len(), crate::OFFERS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_reasons_are_pinned() {
        let numbers: Vec<_> = FailureCode::ALL.iter().map(|code| code.number()).collect();
        assert_eq!(numbers, (0..24).collect::<Vec<_>>());
        assert_eq!(FailureCode::from_number(3), Some(FailureCode::NotAdmitted));
        assert_eq!(FailureCode::from_number(17), Some(FailureCode::Leaving));
        assert_eq!(FailureCode::from_number(20), Some(FailureCode::InvitationUsed));
        assert_eq!(FailureCode::from_number(24), None);
    }

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        let failure = Failure::new(FailureCode::Engine, "é".repeat(TEXT_BYTES_MAX));
        assert_eq!(failure.detail.len(), TEXT_BYTES_MAX);
        let failure = Failure::new(FailureCode::Engine, format!("a{}", "é".repeat(TEXT_BYTES_MAX)));
        assert_eq!(failure.detail.len(), TEXT_BYTES_MAX - 1);
        assert_eq!(failure.check(), Ok(()));
    }
}
