//! Frames: a length, a kind, a body.

use potluck_core::{
    Account, Hidden, Logits, Rows, SignedOffer, SignedOrder, SignedRevocation, Tree, bounds::TREE_ROWS_MAX,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Ask, Codec, CodecError, Failure, Fetch, HEADER_BYTES, Head, Held, Hello, HopOpen, Join, Joined, Keep, Lender,
    Mirror, NeighbourLost, OpenSession, PART_BYTES_MAX, REPLAY_HEADER_BYTES, Refusal, Reroute, Restore, Return, Save,
    SharedModel, Upstreams, Welcome, message::Bounded, padded_bytes, padded_positions, spare,
};

/// Whoever sent the bytes: they are no frame, or one that exceeds a bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Longer than this stream's frames may be.
    #[error("a frame of {len} bytes was announced; the limit here is {max}")]
    TooLong {
        /// As announced.
        len: usize,
        /// The stream's limit.
        max: usize,
    },
    /// A kind that version 1 does not know.
    #[error("frame kind {0} is not known")]
    Kind(u8),
    /// The body is not what its kind says.
    #[error("a {kind} frame is malformed: {reason}")]
    Malformed {
        /// Which kind.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A part is longer than it may be.
    #[error("{what}: {len}; the limit is {max}")]
    Bound {
        /// Which part.
        what: &'static str,
        /// Its length.
        len: usize,
        /// Its bound.
        max: usize,
    },
    /// The codec's payload is wrong.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The stream ended within a frame.
    #[error("the stream ended {missing} bytes before the end of a frame")]
    Truncated {
        /// Bytes that were still to come.
        missing: usize,
    },
}

/// Hidden states, or tokens, on their way down a route. The header is [`HEADER_BYTES`] bytes:
/// `length u32 | kind u8 | codec u8 | flags u16 | sequence u32 | epoch u32 | start u32 | count u16 | top u16`.
#[derive(Debug, Clone, PartialEq)]
pub struct StepFrame {
    /// Counts the session's steps from 0, whoever its peers are.
    pub sequence: u32,
    /// The session's epoch.
    pub epoch: u32,
    /// Position of the first row.
    pub start: u32,
    /// Positions.
    pub count: u16,
    /// For which positions the tail is to answer with logits.
    pub rows: Rows,
    /// How many of the largest logits it is to return; 0: the whole row.
    pub top: u16,
    /// How `payload` is encoded.
    pub codec: Codec,
    /// Hidden states or token ids.
    pub payload: Vec<u8>,
    /// As long as a step of the next power of two positions: zeros follow the payload. Whoever is sent a padded step pads
    /// what it sends on for it.
    pub pad: bool,
    /// How the rows hang together. The parents of a tree's rows come before the payload, a byte each.
    pub tree: Tree,
    /// Nobody wants the steps before this one that start where it does or later: whoever has not run them yet skips them.
    pub fence: bool,
    /// It was skipped: it carries nothing, and only keeps the count.
    pub skipped: bool,
}

/// The tail's answer to a step, sent to the client. Same header; each step has one, with no rows where none were asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerFrame {
    /// The step's sequence number.
    pub sequence: u32,
    /// The session's epoch.
    pub epoch: u32,
    /// The step's first position.
    pub start: u32,
    /// The step's positions.
    pub count: u16,
    /// One row for each position asked for.
    pub rows: Vec<Logits>,
    /// Zeros follow, up to [`padded_bytes`].
    pub pad: bool,
    /// The step was skipped somewhere on its way, since a later one had fenced it off: there are no rows.
    pub skipped: bool,
}

/// Everything that travels on a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Dialer to acceptor, first.
    Hello(Hello),
    /// Acceptor to dialer: let in.
    Welcome(Welcome),
    /// Acceptor to dialer: not let in.
    Refused(Refusal),
    /// Client to each peer of the route.
    Open(Box<OpenSession>),
    /// Peer to client: the session's cache is open, and the next peer has confirmed the session.
    Ready,
    /// Peer to the next peer.
    HopOpen(HopOpen),
    /// Next peer to peer: same session, same client, same epoch.
    HopReady,
    /// The same, of a session that was there before: it goes on with the step of this number.
    HopResumed {
        /// The step that the next peer has not had.
        expected: u32,
    },
    /// Client to a peer of the route, after [`Open`](Self::Open).
    Keep(Keep),
    /// Client to a peer of the route. Answered with [`Ready`](Self::Ready) once the new neighbours are there.
    Reroute(Box<Reroute>),
    /// What a peer passes on goes to a standby as well.
    Mirror(Box<Mirror>),
    /// Peer to client.
    NeighbourLost(NeighbourLost),
    /// Peer to client: it is about to go, and another should take its place while it is there.
    Leaving,
    /// Peer to client: who stands by for the next has had all that this peer has passed on.
    CaughtUp {
        /// The epoch of the [`Mirror`] that named it.
        epoch: u32,
    },
    /// Client to a peer of the route, first, on a new stream. Answered with [`Returned`](Self::Returned).
    Return(Return),
    /// Peer to client: the session is there, and goes on with the step of this number.
    Returned {
        /// The step that the peer has not had; of interest where steps come from the client.
        expected: u32,
    },
    /// Client to a peer of the route. Answered with [`Saved`](Self::Saved).
    Save(Save),
    /// Peer to client.
    Saved {
        /// Positions that are kept; 0: none, and that is no failure.
        positions: u32,
        /// Bytes that they take there.
        bytes: u64,
    },
    /// Client to a peer of the route. Answered with [`Restored`](Self::Restored).
    Restore(Restore),
    /// Peer to client.
    Restored {
        /// Positions that the session holds now; 0: none, and that is no failure.
        positions: u32,
    },
    /// Down the route.
    Step(StepFrame),
    /// Down the route once more, to a substitute for a peer that had had it: steps that were overwritten since are left out, and
    /// so are their numbers.
    Replay {
        /// The number behind that of the step before it on this stream, which says that none between them is missing.
        due: u32,
        /// The step.
        step: StepFrame,
        /// Whether the frame carries a check, the CRC-32 of all that follows it. Nobody behind a substitute computes these steps, so
        /// that none would notice a position that was changed on its way. Whoever has not agreed on
        /// [`FEATURE_CHECKS`](crate::FEATURE_CHECKS) is sent none.
        checked: bool,
    },
    /// Tail to client.
    Answer(AnswerFrame),
    /// Receiver to sender: so many more frames may come.
    Credit {
        /// How many.
        frames: u32,
    },
    /// Client to tail: the whole row, please.
    RowRequest {
        /// Of the step with this sequence number: the last one answered.
        sequence: u32,
        /// Which of its positions, counted from the step's start.
        row: u16,
    },
    /// Tail to client.
    Row {
        /// As asked.
        sequence: u32,
        /// As asked.
        row: u16,
        /// The whole row of logits.
        logits: Hidden,
    },
    /// The last frame of a stream that ended badly (or `Done`).
    Failed(Failure),
    /// Peer to peer: here is what I lend.
    Announce(SignedOffer),
    /// Ask for the offers that a peer knows.
    ListOffers,
    /// The answer, as many as fit.
    Offers(Vec<SignedOffer>),
    /// Dialer to acceptor, first, instead of a `Hello`: lets in who holds an invitation.
    Join(Join),
    /// Acceptor to dialer: the grants that the invitation was good for.
    Joined(Joined),
    /// Ask for the models that a peer shares.
    ListModels,
    /// The answer.
    Models(Vec<SharedModel>),
    /// Ask for a part of a model.
    Fetch(Fetch),
    /// The answer to a question for what a peer has of a model.
    Held(Held),
    /// The answer to any other [`Fetch`], or a piece of an [`Ask`]'s body or of its answer: the bytes, at most [`PART_BYTES_MAX`].
    Part(Vec<u8>),
    /// A piece of an [`Ask`]'s body or of its answer, and zeros up to [`padded_bytes`]. Whoever is asked in them answers in them.
    PaddedPart(Vec<u8>),
    /// The swarm's root to a peer; answered with `Failed`, `Done` where it is obeyed.
    Order(SignedOrder),
    /// Client to a peer of the route, on its session's stream: what have you done for this session?
    AskAccount,
    /// The answer.
    Account(Account),
    /// Ask for the models that a peer lends by an upstream, and who else lends so.
    ListUpstreams,
    /// The answer, a page of it; and the answer to a [`Lend`](Self::Lend), empty.
    Upstreams(Upstreams),
    /// A request to the peer's upstream; [`Part`](Self::Part)s follow.
    Ask(Ask),
    /// How the upstream's answer begins; [`Part`](Self::Part)s follow.
    Head(Head),
    /// Member to member: I lend by an upstream, and am reached here.
    Lend(Lender),
    /// Ask for the revocations that a peer knows, unless they are those whose digest this is.
    ListRevocations([u8; 32]),
    /// The answer, a page of it; or member to member, first: these have been made. Answered with an empty one.
    Revocations(Vec<SignedRevocation>),
}

/// In the flags of a step or an answer: zeros follow what it carries.
const FLAG_PADDED: u16 = 8;
/// In the flags of a step: the parents of its rows come before the payload.
const FLAG_TREE: u16 = 16;
/// In the flags of a step: see [`StepFrame::fence`].
const FLAG_FENCE: u16 = 32;
/// In the flags of a step or an answer: the step was skipped.
const FLAG_SKIPPED: u16 = 64;

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSED: u8 = 3;
const OPEN: u8 = 4;
const READY: u8 = 5;
const HOP_OPEN: u8 = 6;
const HOP_READY: u8 = 7;
const STEP: u8 = 8;
const ANSWER: u8 = 9;
const CREDIT: u8 = 10;
const ROW_REQUEST: u8 = 11;
const ROW: u8 = 12;
const FAILED: u8 = 13;
const ANNOUNCE: u8 = 14;
const LIST_OFFERS: u8 = 15;
const OFFERS: u8 = 16;
const JOIN: u8 = 17;
const JOINED: u8 = 18;
const LIST_MODELS: u8 = 19;
const MODELS: u8 = 20;
const FETCH: u8 = 21;
const HELD: u8 = 22;
const PART: u8 = 23;
const ORDER: u8 = 24;
const ASK_ACCOUNT: u8 = 25;
const ACCOUNT: u8 = 26;
const LIST_UPSTREAMS: u8 = 27;
const UPSTREAMS: u8 = 28;
const ASK: u8 = 29;
const HEAD: u8 = 30;
const LEND: u8 = 31;
const LIST_REVOCATIONS: u8 = 32;
const REVOCATIONS: u8 = 33;
const PADDED_PART: u8 = 34;
const KEEP: u8 = 35;
const REROUTE: u8 = 36;
const NEIGHBOUR_LOST: u8 = 37;
const HOP_RESUMED: u8 = 38;
const REPLAY: u8 = 39;
const MIRROR: u8 = 40;
const LEAVING: u8 = 41;
const CAUGHT_UP: u8 = 42;
const RETURN: u8 = 43;
const RETURNED: u8 = 44;
const CHECKED_REPLAY: u8 = 45;
const SAVE: u8 = 46;
const SAVED: u8 = 47;
const RESTORE: u8 = 48;
const RESTORED: u8 = 49;

/// Bytes that a replay has in front of a step's header.
const DUE_BYTES: usize = size_of::<u32>();
/// Bytes that one with a check has in front of that.
const CHECK_BYTES: usize = size_of::<u32>();

const _: () =
    assert!(REPLAY_HEADER_BYTES == CHECK_BYTES + DUE_BYTES + HEADER_BYTES, "a replay begins with all of these");
const _: () = assert!(
    CHECK_BYTES + DUE_BYTES <= TREE_ROWS_MAX,
    "the longest step has no tree: sent again, it is no longer than a step may be"
);

impl Frame {
    /// Its kind in words, for errors and logs.
    pub fn kind(&self) -> &'static str {
        kind_name(self.number())
    }

    fn number(&self) -> u8 {
        match self {
            Self::Hello(_) => HELLO,
            Self::Welcome(_) => WELCOME,
            Self::Refused(_) => REFUSED,
            Self::Open(_) => OPEN,
            Self::Ready => READY,
            Self::HopOpen(_) => HOP_OPEN,
            Self::HopReady => HOP_READY,
            Self::HopResumed { .. } => HOP_RESUMED,
            Self::Keep(_) => KEEP,
            Self::Reroute(_) => REROUTE,
            Self::Mirror(_) => MIRROR,
            Self::NeighbourLost(_) => NEIGHBOUR_LOST,
            Self::Leaving => LEAVING,
            Self::CaughtUp { .. } => CAUGHT_UP,
            Self::Return(_) => RETURN,
            Self::Returned { .. } => RETURNED,
            Self::Save(_) => SAVE,
            Self::Saved { .. } => SAVED,
            Self::Restore(_) => RESTORE,
            Self::Restored { .. } => RESTORED,
            Self::Step(_) => STEP,
            Self::Replay { checked: false, .. } => REPLAY,
            Self::Replay { checked: true, .. } => CHECKED_REPLAY,
            Self::Answer(_) => ANSWER,
            Self::Credit { .. } => CREDIT,
            Self::RowRequest { .. } => ROW_REQUEST,
            Self::Row { .. } => ROW,
            Self::Failed(_) => FAILED,
            Self::Announce(_) => ANNOUNCE,
            Self::ListOffers => LIST_OFFERS,
            Self::Offers(_) => OFFERS,
            Self::Join(_) => JOIN,
            Self::Joined(_) => JOINED,
            Self::ListModels => LIST_MODELS,
            Self::Models(_) => MODELS,
            Self::Fetch(_) => FETCH,
            Self::Held(_) => HELD,
            Self::Part(_) => PART,
            Self::PaddedPart(_) => PADDED_PART,
            Self::Order(_) => ORDER,
            Self::AskAccount => ASK_ACCOUNT,
            Self::Account(_) => ACCOUNT,
            Self::ListUpstreams => LIST_UPSTREAMS,
            Self::Upstreams(_) => UPSTREAMS,
            Self::Ask(_) => ASK,
            Self::Head(_) => HEAD,
            Self::Lend(_) => LEND,
            Self::ListRevocations(_) => LIST_REVOCATIONS,
            Self::Revocations(_) => REVOCATIONS,
        }
    }

    /// Appends the frame's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let at = out.len();
        if let Self::Step(step) | Self::Replay { step, .. } = self {
            out.reserve(step.bytes());
        }
        out.extend_from_slice(&[0, 0, 0, 0, self.number()]);
        if let Self::Replay { due, checked, .. } = self {
            out.resize(out.len() + if *checked { CHECK_BYTES } else { 0 }, 0);
            out.extend_from_slice(&due.to_le_bytes());
        }
        match self {
            Self::Hello(body) => encode_body(body, out),
            Self::Welcome(body) => encode_body(body, out),
            Self::Refused(body) => encode_body(body, out),
            Self::Open(body) => encode_body(body, out),
            Self::HopOpen(body) => encode_body(body, out),
            Self::Failed(body) => encode_body(body, out),
            Self::Announce(body) => encode_body(body, out),
            Self::Offers(body) => encode_body(body, out),
            Self::Join(body) => encode_body(body, out),
            Self::Joined(body) => encode_body(body, out),
            Self::Models(body) => encode_body(body, out),
            Self::Fetch(body) => encode_body(body, out),
            Self::Held(body) => encode_body(body, out),
            Self::Part(bytes) => out.extend_from_slice(bytes),
            Self::PaddedPart(bytes) => {
                out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                out.extend_from_slice(bytes);
                out.resize(at + padded_bytes(out.len() - at), 0);
            }
            Self::Order(body) => encode_body(body, out),
            Self::Account(body) => encode_body(body, out),
            Self::Upstreams(body) => encode_body(body, out),
            Self::Ask(body) => encode_body(body, out),
            Self::Head(body) => encode_body(body, out),
            Self::Lend(body) => encode_body(body, out),
            Self::ListRevocations(digest) => encode_body(digest, out),
            Self::Revocations(body) => encode_body(body, out),
            Self::Keep(body) => encode_body(body, out),
            Self::Reroute(body) => encode_body(body, out),
            Self::Mirror(body) => encode_body(body, out),
            Self::NeighbourLost(body) => encode_body(body, out),
            Self::HopResumed { expected } => encode_body(expected, out),
            Self::CaughtUp { epoch } => encode_body(epoch, out),
            Self::Return(body) => encode_body(body, out),
            Self::Returned { expected } => encode_body(expected, out),
            Self::Save(body) => encode_body(body, out),
            Self::Saved { positions, bytes } => encode_body(&(positions, bytes), out),
            Self::Restore(body) => encode_body(body, out),
            Self::Restored { positions } => encode_body(positions, out),
            Self::Credit { frames } => encode_body(frames, out),
            Self::RowRequest { sequence, row } => encode_body(&(sequence, row), out),
            Self::Row { sequence, row, logits } => encode_body(&(sequence, row, logits), out),
            Self::Step(step) | Self::Replay { step, .. } => {
                step.encode_header(out);
                out.extend_from_slice(step.tree.parents());
                out.resize(out.len() + step.tree_padding(), 0);
                out.extend_from_slice(&step.payload);
                out.resize(out.len() + step.padding(), 0);
            }
            Self::Answer(answer) => {
                answer.encode_header(out);
                encode_body(&answer.rows, out);
                if answer.pad {
                    out.resize(at + padded_bytes(out.len() - at), 0);
                }
            }
            Self::Ready
            | Self::HopReady
            | Self::Leaving
            | Self::ListOffers
            | Self::ListModels
            | Self::AskAccount
            | Self::ListUpstreams => {}
        }
        if let Self::Replay { checked: true, .. } = self {
            let check = at + 5..at + 5 + CHECK_BYTES;
            let sum = crc32fast::hash(&out[check.end..]);
            out[check].copy_from_slice(&sum.to_le_bytes());
        }
        let len = (out.len() - at - 4) as u32;
        out[at..at + 4].copy_from_slice(&len.to_le_bytes());
    }

    /// As [`encode`](Self::encode), for a frame that nobody needs afterwards: the room of a step's payload goes to a later
    /// one ([`StepFrame::buffer`]).
    pub fn encode_last(self, out: &mut Vec<u8>) {
        self.encode(out);
        if let Self::Step(step) | Self::Replay { step, .. } = self {
            spare::give(step.payload);
        }
    }

    /// Reads what follows a frame's length: kind and body, all of it.
    ///
    /// # Errors
    /// `Kind`, `Malformed`, `Bound` or `Codec`. The bytes may come from anybody.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (&kind, body) =
            bytes.split_first().ok_or(WireError::Malformed { kind: "empty", reason: "no kind".into() })?;
        Ok(match kind {
            HELLO => Self::Hello(decode_bounded(kind, body)?),
            WELCOME => Self::Welcome(decode_bounded(kind, body)?),
            REFUSED => Self::Refused(decode_bounded(kind, body)?),
            OPEN => Self::Open(Box::new(decode_bounded(kind, body)?)),
            READY => decode_empty(kind, body, Self::Ready)?,
            HOP_OPEN => Self::HopOpen(decode_bounded(kind, body)?),
            HOP_READY => decode_empty(kind, body, Self::HopReady)?,
            STEP | REPLAY | CHECKED_REPLAY => {
                let (lead, payload) = body.split_at(step_lead(kind, body).min(body.len()));
                Self::step(kind, lead, payload.to_vec())?
            }
            HOP_RESUMED => Self::HopResumed { expected: decode_body(kind, body)? },
            KEEP => Self::Keep(decode_bounded(kind, body)?),
            REROUTE => Self::Reroute(Box::new(decode_bounded(kind, body)?)),
            MIRROR => Self::Mirror(Box::new(decode_bounded(kind, body)?)),
            NEIGHBOUR_LOST => Self::NeighbourLost(decode_bounded(kind, body)?),
            LEAVING => decode_empty(kind, body, Self::Leaving)?,
            CAUGHT_UP => Self::CaughtUp { epoch: decode_body(kind, body)? },
            RETURN => Self::Return(decode_body(kind, body)?),
            RETURNED => Self::Returned { expected: decode_body(kind, body)? },
            SAVE => Self::Save(decode_body(kind, body)?),
            SAVED => {
                let (positions, bytes) = decode_body(kind, body)?;
                Self::Saved { positions, bytes }
            }
            RESTORE => Self::Restore(decode_body(kind, body)?),
            RESTORED => Self::Restored { positions: decode_body(kind, body)? },
            ANSWER => Self::Answer(AnswerFrame::decode(body)?),
            CREDIT => Self::Credit { frames: decode_body(kind, body)? },
            ROW_REQUEST => {
                let (sequence, row) = decode_body(kind, body)?;
                Self::RowRequest { sequence, row }
            }
            ROW => {
                let (sequence, row, logits) = decode_body(kind, body)?;
                Self::Row { sequence, row, logits }
            }
            FAILED => Self::Failed(decode_bounded(kind, body)?),
            ANNOUNCE => Self::Announce(decode_body(kind, body)?),
            LIST_OFFERS => decode_empty(kind, body, Self::ListOffers)?,
            OFFERS => Self::Offers(decode_bounded(kind, body)?),
            JOIN => Self::Join(decode_bounded(kind, body)?),
            JOINED => Self::Joined(decode_bounded(kind, body)?),
            LIST_MODELS => decode_empty(kind, body, Self::ListModels)?,
            MODELS => Self::Models(decode_bounded(kind, body)?),
            FETCH => Self::Fetch(decode_bounded(kind, body)?),
            HELD => Self::Held(decode_bounded(kind, body)?),
            PART if body.len() > PART_BYTES_MAX => {
                return Err(WireError::Bound { what: "part", len: body.len(), max: PART_BYTES_MAX });
            }
            PART => Self::Part(body.to_vec()),
            PADDED_PART => Self::PaddedPart(padded_part(body)?.to_vec()),
            ORDER => Self::Order(decode_body(kind, body)?),
            ASK_ACCOUNT => decode_empty(kind, body, Self::AskAccount)?,
            ACCOUNT => Self::Account(decode_body(kind, body)?),
            LIST_UPSTREAMS => decode_empty(kind, body, Self::ListUpstreams)?,
            UPSTREAMS => Self::Upstreams(decode_bounded(kind, body)?),
            ASK => Self::Ask(decode_bounded(kind, body)?),
            HEAD => Self::Head(decode_bounded(kind, body)?),
            LEND => Self::Lend(decode_bounded(kind, body)?),
            LIST_REVOCATIONS => Self::ListRevocations(decode_body(kind, body)?),
            REVOCATIONS => Self::Revocations(decode_bounded(kind, body)?),
            other => return Err(WireError::Kind(other)),
        })
    }

    /// Bytes of a frame, after its length, that come before what is kept as it came, as far as can be said of one that
    /// begins like this. A step's payload is kept, and of other frames nothing.
    pub(crate) fn lead(begun: &[u8]) -> usize {
        match begun.split_first() {
            None => 1,
            Some((&kind @ (STEP | REPLAY | CHECKED_REPLAY), body)) => 1 + step_lead(kind, body),
            Some(_) => usize::MAX,
        }
    }

    /// As [`decode`](Self::decode), of a frame that was cut in two after its [`lead`](Self::lead).
    pub(crate) fn decode_cut(lead: &[u8], payload: Vec<u8>) -> Result<Self, WireError> {
        match lead.split_first() {
            Some((&kind @ (STEP | REPLAY | CHECKED_REPLAY), lead)) => Self::step(kind, lead, payload),
            _ => Self::decode(lead),
        }
    }

    /// A step, for the first time or once more.
    fn step(kind: u8, lead: &[u8], payload: Vec<u8>) -> Result<Self, WireError> {
        if kind == STEP {
            return Ok(Self::Step(StepFrame::decode(lead, payload)?));
        }
        let number = |lead| split_number(lead).ok_or_else(|| malformed(kind, "shorter than its header"));
        let checked = kind == CHECKED_REPLAY;
        let mut lead = lead;
        if checked {
            let (check, rest) = number(lead)?;
            let mut sum = crc32fast::Hasher::new();
            sum.update(rest);
            sum.update(&payload);
            if sum.finalize() != check {
                return Err(malformed(kind, "its check says that it was changed"));
            }
            lead = rest;
        }
        let (due, lead) = number(lead)?;
        Ok(Self::Replay { due, step: StepFrame::decode(lead, payload)?, checked })
    }
}

/// Bytes of the body of a step before its payload, as far as can be said of one that begins like this.
fn step_lead(kind: u8, begun: &[u8]) -> usize {
    let before = match kind {
        REPLAY => DUE_BYTES,
        CHECKED_REPLAY => CHECK_BYTES + DUE_BYTES,
        _ => 0,
    };
    before + StepFrame::lead(begun.get(before..).unwrap_or_default())
}

fn split_number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk().map(|(number, rest)| (u32::from_le_bytes(*number), rest))
}

fn kind_name(kind: u8) -> &'static str {
    match kind {
        HELLO => "hello",
        WELCOME => "welcome",
        REFUSED => "refused",
        OPEN => "open",
        READY => "ready",
        HOP_OPEN => "hop-open",
        HOP_READY => "hop-ready",
        STEP => "step",
        ANSWER => "answer",
        CREDIT => "credit",
        ROW_REQUEST => "row-request",
        ROW => "row",
        FAILED => "failed",
        ANNOUNCE => "announce",
        LIST_OFFERS => "list-offers",
        OFFERS => "offers",
        JOIN => "join",
        JOINED => "joined",
        LIST_MODELS => "list-models",
        MODELS => "models",
        FETCH => "fetch",
        HELD => "held",
        PART => "part",
        ORDER => "order",
        ASK_ACCOUNT => "ask-account",
        ACCOUNT => "account",
        LIST_UPSTREAMS => "list-upstreams",
        UPSTREAMS => "upstreams",
        ASK => "ask",
        HEAD => "head",
        LEND => "lend",
        LIST_REVOCATIONS => "list-revocations",
        REVOCATIONS => "revocations",
        PADDED_PART => "padded-part",
        KEEP => "keep",
        REROUTE => "reroute",
        NEIGHBOUR_LOST => "neighbour-lost",
        HOP_RESUMED => "hop-resumed",
        REPLAY => "replay",
        CHECKED_REPLAY => "checked-replay",
        LEAVING => "leaving",
        CAUGHT_UP => "caught-up",
        RETURN => "return",
        SAVE => "save",
        SAVED => "saved",
        RESTORE => "restore",
        RESTORED => "restored",
        RETURNED => "returned",
        MIRROR => "mirror",
        _ => "unknown",
    }
}

fn malformed(kind: u8, reason: impl ToString) -> WireError {
    WireError::Malformed { kind: kind_name(kind), reason: reason.to_string() }
}

fn encode_body<T: Serialize>(body: &T, out: &mut Vec<u8>) {
    let taken = std::mem::take(out);
    #[expect(clippy::expect_used, reason = "writing to memory fails only where memory ends")]
    let filled = postcard::to_extend(body, taken).expect("a body encodes");
    *out = filled;
}

/// Bytes of a number: 7 bits each.
fn varint_bytes(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

/// One encoding of each body: what decodes must encode to the same bytes, or it is refused.
fn decode_body<T: Serialize + DeserializeOwned>(kind: u8, body: &[u8]) -> Result<T, WireError> {
    let value: T = postcard::from_bytes(body).map_err(|e| malformed(kind, e))?;
    let mut again = Vec::with_capacity(body.len());
    encode_body(&value, &mut again);
    if again == body { Ok(value) } else { Err(malformed(kind, "a second encoding")) }
}

/// A body that zeros follow: as many as there must be.
fn decode_padded<T: Serialize + DeserializeOwned>(kind: u8, padded: &[u8]) -> Result<T, WireError> {
    let (_, rest): (T, _) = postcard::take_from_bytes(padded).map_err(|e| malformed(kind, e))?;
    let body = &padded[..padded.len() - rest.len()];
    if HEADER_BYTES + padded.len() != padded_bytes(HEADER_BYTES + body.len()) || rest.iter().any(|&byte| byte != 0) {
        return Err(malformed(kind, "its padding is not what it must be"));
    }
    decode_body(kind, body)
}

/// Bytes of the parents of a tree of `count` rows.
fn tree_bytes(count: usize, pad: bool) -> usize {
    if pad { padded_positions(count) } else { count }
}

/// The tree of `count` rows.
fn decode_tree(bytes: &[u8], count: usize, pad: bool) -> Result<Tree, WireError> {
    let bad = || malformed(STEP, "its tree is cut off, or not what it must be");
    if bytes.len() != tree_bytes(count, pad) {
        return Err(bad());
    }
    let (parents, zeros) = bytes.split_at(count);
    if zeros.iter().any(|&byte| byte != 0) {
        return Err(bad());
    }
    Tree::new(parents.to_vec()).map_err(|error| malformed(STEP, error))
}

/// The payload of `count` positions in one that looks like more.
fn without_padding(padded: &[u8], count: usize) -> Result<&[u8], WireError> {
    let positions = padded_positions(count);
    let (payload, rest) = padded.split_at(padded.len() / positions * count);
    if !padded.len().is_multiple_of(positions) || rest.iter().any(|&byte| byte != 0) {
        return Err(malformed(STEP, "its padding is not what it must be"));
    }
    Ok(payload)
}

/// The bytes of a padded part.
fn padded_part(body: &[u8]) -> Result<&[u8], WireError> {
    if body.len() > PART_BYTES_MAX {
        return Err(WireError::Bound { what: "part", len: body.len(), max: PART_BYTES_MAX });
    }
    let bad = || malformed(PADDED_PART, "its padding is not what it must be");
    let (len, rest) = body.split_first_chunk::<4>().ok_or_else(bad)?;
    let (bytes, zeros) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(bad)?;
    // The frame's length and kind come before the body.
    if 5 + body.len() != padded_bytes(5 + len.len() + bytes.len()) || zeros.iter().any(|&byte| byte != 0) {
        return Err(bad());
    }
    Ok(bytes)
}

fn decode_bounded<T: Serialize + DeserializeOwned + Bounded>(kind: u8, body: &[u8]) -> Result<T, WireError> {
    let value: T = decode_body(kind, body)?;
    value.check()?;
    Ok(value)
}

fn decode_empty(kind: u8, body: &[u8], frame: Frame) -> Result<Frame, WireError> {
    if body.is_empty() { Ok(frame) } else { Err(malformed(kind, "a body where none belongs")) }
}

/// The header's fields after length and kind.
struct Header {
    codec: u8,
    flags: u16,
    sequence: u32,
    epoch: u32,
    start: u32,
    count: u16,
    top: u16,
}

impl Header {
    const BYTES: usize = HEADER_BYTES - 5;

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.codec);
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.start.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.top.to_le_bytes());
    }

    fn read(b: &[u8; Self::BYTES]) -> Self {
        let u16_at = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        let u32_at = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        Self {
            codec: b[0],
            flags: u16_at(1),
            sequence: u32_at(3),
            epoch: u32_at(7),
            start: u32_at(11),
            count: u16_at(15),
            top: u16_at(17),
        }
    }

    fn decode(kind: u8, body: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, payload) =
            body.split_first_chunk::<{ Self::BYTES }>().ok_or_else(|| malformed(kind, "shorter than its header"))?;
        let header = Self::read(b);
        if header.count == 0 || usize::from(header.count) > potluck_core::bounds::STEP_POSITIONS_MAX {
            return Err(malformed(kind, format!("{} positions", header.count)));
        }
        Ok((header, payload))
    }
}

impl StepFrame {
    /// Bytes of the whole frame.
    pub fn bytes(&self) -> usize {
        let tree = self.tree.parents().len() + self.tree_padding();
        HEADER_BYTES + tree + self.payload.len() + self.padding()
    }

    /// A step that was skipped, which only keeps the count.
    pub fn skipped(sequence: u32, epoch: u32, start: u32, count: u16) -> Self {
        let (rows, top, codec, payload) = (Rows::None, 0, Codec::Tokens, Vec::new());
        let (pad, tree, fence, skipped) = (false, Tree::chain(), false, true);
        Self { sequence, epoch, start, count, rows, top, codec, payload, pad, tree, fence, skipped }
    }

    /// An empty buffer to encode a payload into. It may have the room of one that was written by this thread
    /// ([`Frame::encode_last`]).
    pub fn buffer() -> Vec<u8> {
        spare::take()
    }

    /// Bytes after the parents of a tree's rows.
    fn tree_padding(&self) -> usize {
        let rows = self.tree.parents().len();
        if self.pad && rows > 0 { padded_positions(rows) - rows } else { 0 }
    }

    /// Bytes after the payload: each position takes as many as any other.
    fn padding(&self) -> usize {
        let count = usize::from(self.count).max(1);
        if self.pad { (padded_positions(count) - count) * (self.payload.len() / count) } else { 0 }
    }

    fn encode_header(&self, out: &mut Vec<u8>) {
        let flags = match self.rows {
            Rows::None => 0,
            Rows::Last => 1,
            Rows::All => 2,
            Rows::Mean => 3,
        };
        let Self { sequence, epoch, start, count, top, codec, pad, fence, skipped, .. } = *self;
        let set = |flag, is_set| if is_set { flag } else { 0 };
        let tree = set(FLAG_TREE, !self.tree.is_chain());
        let flags = flags | set(FLAG_PADDED, pad) | tree | set(FLAG_FENCE, fence) | set(FLAG_SKIPPED, skipped);
        Header { codec: codec.number(), flags, sequence, epoch, start, count, top }.encode(out);
    }

    /// Bytes of a step's body before its payload, as far as can be said of one that begins like this: its header, and its
    /// tree.
    fn lead(begun: &[u8]) -> usize {
        let Some(header) = begun.first_chunk::<{ Header::BYTES }>() else { return Header::BYTES };
        let Header { flags, count, .. } = Header::read(header);
        let (tree, pad) = (flags & FLAG_TREE != 0, flags & FLAG_PADDED != 0);
        Header::BYTES + if tree { tree_bytes(count.into(), pad) } else { 0 }
    }

    fn decode(lead: &[u8], mut payload: Vec<u8>) -> Result<Self, WireError> {
        let (header, tree) = Header::decode(STEP, lead)?;
        let is_set = |flag| header.flags & flag != 0;
        let (pad, fence, skipped) = (is_set(FLAG_PADDED), is_set(FLAG_FENCE), is_set(FLAG_SKIPPED));
        let rows = match header.flags & !(FLAG_PADDED | FLAG_TREE | FLAG_FENCE | FLAG_SKIPPED) {
            0 => Rows::None,
            1 => Rows::Last,
            2 => Rows::All,
            3 => Rows::Mean,
            flags => return Err(malformed(STEP, format!("flags {flags:#x} were not agreed"))),
        };
        let Header { sequence, epoch, start, count, top, codec, .. } = header;
        let codec = Codec::from_number(codec)?;
        if skipped {
            let bare = Self::skipped(sequence, epoch, start, count);
            let is_bare = header.flags == FLAG_SKIPPED && payload.is_empty() && (codec, top) == (bare.codec, bare.top);
            return if is_bare { Ok(bare) } else { Err(malformed(STEP, "a skipped step carries nothing")) };
        }
        let tree = if is_set(FLAG_TREE) { decode_tree(tree, count.into(), pad)? } else { Tree::chain() };
        if pad {
            let own = without_padding(&payload, count.into())?.len();
            payload.truncate(own);
        }
        Ok(Self { sequence, epoch, start, count, rows, top, codec, payload, pad, tree, fence, skipped })
    }
}

impl AnswerFrame {
    /// Bytes of the whole frame.
    pub fn bytes(&self) -> usize {
        let row = |row: &Logits| match row {
            Logits::Top { largest, .. } => {
                let tokens = largest.iter().map(|(token, _)| varint_bytes(u64::from(*token)) + 4);
                1 + varint_bytes(largest.len() as u64) + tokens.sum::<usize>() + 4
            }
            Logits::Whole(values) => 1 + varint_bytes(4 * values.0.len() as u64) + 4 * values.0.len(),
        };
        let bytes = HEADER_BYTES + varint_bytes(self.rows.len() as u64) + self.rows.iter().map(row).sum::<usize>();
        if self.pad { padded_bytes(bytes) } else { bytes }
    }

    fn encode_header(&self, out: &mut Vec<u8>) {
        let Self { sequence, epoch, start, count, pad, skipped, .. } = *self;
        let flags = if pad { FLAG_PADDED } else { 0 } | if skipped { FLAG_SKIPPED } else { 0 };
        Header { codec: 0, flags, sequence, epoch, start, count, top: 0 }.encode(out);
    }

    fn decode(body: &[u8]) -> Result<Self, WireError> {
        let (header, payload) = Header::decode(ANSWER, body)?;
        let (pad, skipped) = (header.flags & FLAG_PADDED != 0, header.flags & FLAG_SKIPPED != 0);
        if (header.codec, header.flags & !(FLAG_PADDED | FLAG_SKIPPED), header.top) != (0, 0, 0) {
            return Err(malformed(ANSWER, "fields set that answers do not have"));
        }
        let rows: Vec<Logits> = match pad {
            true => decode_padded(ANSWER, payload)?,
            false => decode_body(ANSWER, payload)?,
        };
        if rows.len() > usize::from(header.count) || skipped && !rows.is_empty() {
            return Err(malformed(ANSWER, format!("{} rows for {} positions", rows.len(), header.count)));
        }
        let Header { sequence, epoch, start, count, .. } = header;
        Ok(Self { sequence, epoch, start, count, rows, pad, skipped })
    }
}
