//! What happens to a peer, and what it wants done.

use std::time::Duration;

use potluck_core::{Account, PeerId, StageCommand, StageReply};
use potluck_grant::Member;
use potluck_wire::{Failure, Frame, PeerAddress};

/// A stream, named by the driver; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// An attempt to reach the next peer, named by the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DialId(pub u64);

/// One of the peer's stages, in the order in which they were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageSlot(pub u16);

/// How a peer behaves.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// Its id.
    pub id: PeerId,
    /// Sessions that one client may have open here at once.
    pub sessions_per_client: u16,
    /// Longest that a session may go without a step; a client may ask for less.
    pub idle_max: Duration,
    /// Longest wait for the other half of a session to arrive, for the next peer to confirm, or for a dial.
    pub open_timeout: Duration,
}

impl PeerConfig {
    /// Sessions that one client may have of a stage with so many caches, where others are to find one, too: all but one.
    ///
    /// A session that waits for its user holds its cache for as long as it may be idle, so the limit holds also while
    /// nobody waits: who comes later finds a cache at once. It is a limit for a key. A machine has two in a swarm (it lends
    /// with one and asks with the other), and who may have more is decided by who grants.
    pub fn fair_share(caches: u16) -> u16 {
        caches.saturating_sub(1).max(1)
    }
}

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// A member opened a stream to us. Its frames follow.
    StreamOpened {
        /// The stream.
        stream: StreamId,
        /// Who, as its connection has proven.
        from: Member,
    },
    /// A frame came on a stream.
    Frame {
        /// The stream.
        stream: StreamId,
        /// The frame.
        frame: Frame,
    },
    /// A stream ended, or its connection did; nothing more can be sent on it. `Failure` says how it was noticed.
    Closed {
        /// The stream.
        stream: StreamId,
        /// `Done` where the other side finished it.
        failure: Failure,
    },
    /// A stream broke off with its connection: nothing more can be sent on it, and the other side has said nothing. Where it is a client's,
    /// its session waits for it to come back.
    Broken {
        /// The stream.
        stream: StreamId,
        /// How it was noticed.
        failure: Failure,
    },
    /// What came of [`Effect::Dial`]: a stream that we opened to that member, or why not.
    Dialed {
        /// Which attempt.
        dial: DialId,
        /// The new stream.
        result: Result<StreamId, Failure>,
    },
    /// A stage answered.
    Stage {
        /// Which one.
        stage: StageSlot,
        /// What.
        reply: StageReply,
    },
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// Something is to be done. Nothing is awaited: what comes of it is an [`Event`].
#[derive(Debug)]
pub enum Effect {
    /// Connect to this member (or use the connection that stands), check its welcome, open a stream: [`Event::Dialed`].
    Dial {
        /// Name of the attempt.
        dial: DialId,
        /// Whom: its grant has been checked.
        to: PeerAddress,
    },
    /// Send a frame.
    Send {
        /// On this stream.
        stream: StreamId,
        /// The frame.
        frame: Frame,
    },
    /// Send an account, and in it how long the way to the next peer and back takes, if there is one.
    Account {
        /// On this stream.
        stream: StreamId,
        /// The account, but for that time.
        account: Account,
        /// The next peer.
        next: Option<PeerId>,
    },
    /// Frames on this stream may be so long from now on (they start at `CONTROL_BYTES_MAX`).
    Limit {
        /// The stream.
        stream: StreamId,
        /// Bytes of the longest frame.
        frame_bytes_max: usize,
    },
    /// End a stream: send the failure (unless it is `Done`), then finish it and stop reading it. No `Closed` follows.
    Close {
        /// The stream.
        stream: StreamId,
        /// Why.
        failure: Failure,
    },
    /// Ask a stage.
    Stage {
        /// Which one.
        stage: StageSlot,
        /// What.
        command: StageCommand,
    },
}

/// The time, by both clocks: one that never jumps, for waits; one that others share, for grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For waits.
    pub instant: std::time::Instant,
    /// UTC seconds, for what is signed.
    pub utc: u64,
}
