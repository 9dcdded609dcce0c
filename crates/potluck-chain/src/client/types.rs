//! What a session is opened with, what happens to it, and what it wants done.

use potluck_core::{
    Account, CacheId, Hidden, LayerRange, Logits, PeerId, Rows, SessionKey, StageCommand, StageReply, StageSpec,
    StageSpeed, Tree,
};
use potluck_wire::{Codec, Failure, Frame, PeerAddress, Prefix};

use crate::{Deadlines, SessionError};

/// Steps that a client may have in flight. The next is refused with `BadStep`: await an answer first.
pub const STEPS_IN_FLIGHT_MAX: usize = 64;

/// A stage on the client's own machine: the first of a route, the last, or all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnStage {
    /// Which part of which model.
    pub spec: StageSpec,
    /// The cache to use in it.
    pub cache: CacheId,
}

/// A stage at a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteStage {
    /// Which part of which model.
    pub spec: StageSpec,
    /// Where.
    pub address: PeerAddress,
    /// The peer's own grant, as it showed it: the previous peer checks it before it dials.
    pub grant: Vec<u8>,
    /// How fast the peer says that it is, where it has offered the stage: prompts are cut for it until it is measured.
    pub speed: Option<StageSpeed>,
}

/// One stage of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hop {
    /// On the client's own machine.
    Own(OwnStage),
    /// At a peer.
    Remote(RemoteStage),
}

/// What a session is opened with.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The client's key and its name for the session.
    pub key: SessionKey,
    /// Counts the attempts at a route, from 0.
    pub epoch: u32,
    /// Positions that the session may grow to.
    pub positions: u32,
    /// Values in one hidden state.
    pub width: u32,
    /// Tokens of the vocabulary.
    pub vocabulary: u32,
    /// How hidden states travel.
    pub codec: Codec,
    /// How they travel instead where a peer of the route does not know that codec; none: such a route is refused. Whoever opens
    /// the session settles it, before a [`ClientSession`](crate::ClientSession) is made.
    pub codec_otherwise: Option<Codec>,
    /// The stages, in order, over all layers.
    pub route: Vec<Hop>,
    /// Start with positions of another session of this client on the same route.
    pub prefix: Option<SharedPrefix>,
    /// Steps and answers come in a few sizes. Every peer of the route must know how ([`potluck_wire::FEATURE_PADDING`]).
    pub pad: bool,
    /// What another peer has to be sent in a lost one's place goes as it went before, step by step. Otherwise many steps may be merged,
    /// which rounds otherwise: what follows may differ at near-ties.
    pub exact: bool,
    /// How long each wait may last.
    pub deadlines: Deadlines,
}

/// Positions that a session takes over from another of the same client, on the same route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedPrefix {
    /// At the peers: the other session, and how many of its positions.
    pub prefix: Prefix,
    /// At the client's own stages: the place on the route, and the other session's cache there.
    pub own: Vec<(usize, CacheId)>,
}

/// Tokens to send down a route, and what is wanted of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// Position of the first row. What the caches hold there or later is dropped first.
    pub start: u32,
    /// A token for each row.
    pub tokens: Vec<u32>,
    /// For which rows the tail is to answer with logits.
    pub rows: Rows,
    /// With how many of the largest; 0: the whole row.
    pub top: u16,
    /// How the rows hang together. The caches keep the first path of a tree.
    pub tree: Tree,
    /// The steps in flight that start here or later are not wanted any more: whoever has not run them yet skips them. Needs
    /// [`FEATURE_DRAFTS`](potluck_wire::FEATURE_DRAFTS) of all peers, as trees do.
    pub fence: bool,
}

impl Submission {
    /// Consecutive positions.
    pub fn chain(start: u32, tokens: Vec<u32>, rows: Rows, top: u16) -> Self {
        Self { start, tokens, rows, top, tree: Tree::chain(), fence: false }
    }
}

/// The logits of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The step's number, as [`ClientSession::submit`] gave it.
    pub sequence: u32,
    /// Its first position.
    pub start: u32,
    /// Its positions.
    pub count: u16,
    /// A row for each position that was asked for.
    pub rows: Vec<Logits>,
    /// It was fenced off by a later step before it had run everywhere, and has no rows.
    pub skipped: bool,
}

/// Something happened. `hop` counts the route's stages.
#[derive(Debug)]
pub enum Event {
    /// A frame came on the stream to that peer.
    Frame {
        /// Which stage of the route.
        hop: usize,
        /// The frame.
        frame: Frame,
    },
    /// The stream to that peer ended, or could not be opened.
    Closed {
        /// Which stage of the route.
        hop: usize,
        /// How it was noticed.
        failure: Failure,
    },
    /// The stream to that peer broke off with its connection. The peer may be there still.
    Broken {
        /// Which stage of the route.
        hop: usize,
        /// How it was noticed.
        failure: Failure,
    },
    /// The own stage answered.
    Own {
        /// Which stage of the route.
        hop: usize,
        /// What.
        reply: StageReply,
    },
    /// The peer's machine has acknowledged something since it was [asked whether it hears](crate::ClientSession::doubted).
    Heard {
        /// Which stage of the route.
        hop: usize,
    },
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// Something is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Send a frame on the stream to that peer; the first opens the stream.
    Send {
        /// Which stage of the route.
        hop: usize,
        /// The frame.
        frame: Frame,
    },
    /// Frames on the stream from that peer may be so long.
    Limit {
        /// Which stage of the route.
        hop: usize,
        /// Bytes of the longest frame.
        frame_bytes_max: usize,
    },
    /// End the stream to that peer: send the failure unless it is `Done`. No `Closed` follows.
    Close {
        /// Which stage of the route.
        hop: usize,
        /// Why.
        failure: Failure,
    },
    /// Ask the own stage.
    Own {
        /// Which stage of the route.
        hop: usize,
        /// What.
        command: StageCommand,
    },
    /// End the stream to that peer, and send what follows on another, to the peer that has its place now. No `Closed` follows for the old
    /// one, nor any frame of it.
    Reopen {
        /// Which stage of the route.
        hop: usize,
    },
    /// Tell the caller: steps may be submitted.
    Ready,
    /// Tell the caller: a peer is lost, and the session waits for another in its place ([`ClientSession::replace`]), or for the same one
    /// where only the connection was lost ([`ClientSession::come_back`]). Steps may be submitted meanwhile; they are answered afterwards.
    Lost {
        /// Which stage of the route.
        hop: usize,
        /// How the session would have ended.
        error: SessionError,
    },
    /// Tell the caller: a peer is about to go. Where another stands by for it ([`ClientSession::stand_by`]), that one takes its place as
    /// soon as it is as far.
    Leaving {
        /// Which stage of the route.
        hop: usize,
    },
    /// Tell the caller: every stage of the route is there again.
    Repaired,
    /// The standby of that stage is its peer now: its stream, which was that of `hop` and the route's length more, is the stage's. The old
    /// one ends; no `Closed` follows for it, nor any frame.
    Promoted {
        /// Which stage of the route.
        hop: usize,
    },
    /// Tell the caller: a peer stands by for that stage, and is ready.
    StandsBy {
        /// Which stage of the route.
        hop: usize,
    },
    /// Tell the caller: nobody stands by for that stage any more. The session goes on as before.
    StandbyLost {
        /// Which stage of the route.
        hop: usize,
        /// Why.
        error: SessionError,
    },
    /// Tell the caller: a step's answer, in order.
    Answer(Answer),
    /// Tell the caller: the whole row that it asked for.
    Row {
        /// The step.
        sequence: u32,
        /// The row.
        row: u16,
        /// All logits, in order of token id.
        logits: Hidden,
    },
    /// Tell the caller: what each stage of the route has done for the session, in the route's order.
    Accounts(Vec<Account>),
    /// Tell the caller: every stage keeps so many positions, which are all that the session holds; or 0, where one does not.
    Saved {
        /// Positions.
        positions: u32,
        /// Bytes that they take, over all stages.
        bytes: u64,
    },
    /// Tell the caller: every stage holds so many positions of the earlier session; or 0, where one does not.
    Restored {
        /// Positions.
        positions: u32,
    },
    /// Tell the caller: the session is over. Nothing follows but `Close` effects.
    Failed(SessionError),
}

impl Hop {
    /// Which part of which model.
    pub fn spec(&self) -> StageSpec {
        match self {
            Self::Own(own) => own.spec,
            Self::Remote(remote) => remote.spec,
        }
    }

    /// Its layers.
    pub fn layers(&self) -> LayerRange {
        self.spec().layers
    }

    /// The peer, unless it is the client's own machine.
    pub fn peer(&self) -> Option<PeerId> {
        match self {
            Self::Own(_) => None,
            Self::Remote(remote) => Some(remote.address.peer),
        }
    }
}
