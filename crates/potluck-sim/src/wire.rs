//! The simulated network: streams of bytes, in order, over links with delays, and faults.

use potluck_netem::link::Link;
use potluck_wire::{CONTROL_BYTES_MAX, Failure, Frame, FrameReader};

use crate::scenario::{Faults, Line};

/// All that a row's frames have for a header.
const LENGTH_AND_KIND_BYTES: usize = 5;

/// Who holds one end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// A peer, by index.
    Peer(usize),
    /// A client, by index.
    Client(usize),
}

/// Somebody on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    Peer(usize),
    Client(usize),
}

impl End {
    pub(crate) fn node(self) -> Node {
        match self {
            Self::Peer(peer) => Node::Peer(peer),
            Self::Client(client) => Node::Client(client),
        }
    }
}

/// What is on its way to a side of a stream.
#[derive(Debug)]
pub(crate) enum Parcel {
    /// The other side has opened it.
    Opened,
    Bytes(Vec<u8>),
    /// The other side has nothing more to say.
    Closed(Failure),
}

impl Parcel {
    /// Bytes that it takes of a link.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Opened | Self::Closed(_) => 0,
        }
    }
}

/// A stream: side 0 opened it.
#[derive(Debug)]
pub(crate) struct SimStream {
    pub(crate) ends: [End; 2],
    pub(crate) readers: [FrameReader; 2],
    /// Whether that side still listens.
    pub(crate) open: [bool; 2],
    /// What brings bytes to that side. Later ones do not overtake.
    pub(crate) links: [Link<Parcel>; 2],
    /// A frame to that side that a swap holds back.
    held: [Option<Vec<u8>>; 2],
}

impl SimStream {
    pub(crate) fn new(from: End, to: End, line: Line, rng: &mut fastrand::Rng) -> Self {
        let reader = || FrameReader::new(CONTROL_BYTES_MAX);
        let mut link = || Link::new(line.profile(), rng.u64(..));
        let links = [link(), link()];
        Self { ends: [from, to], readers: [reader(), reader()], open: [true; 2], links, held: [None, None] }
    }

    /// The bytes that reach `side` for a frame that is sent to it now, faults included.
    pub(crate) fn transmit(&mut self, side: usize, frame: &Frame, faults: &Faults, rng: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let counted = matches!(frame, Frame::Step(_) | Frame::Replay { .. } | Frame::Answer(_));
        let mut out = Vec::new();
        if counted && rng.f64() < faults.drops {
            return out;
        }
        if rng.f64() < faults.flips {
            // Lengths, kinds and headers: a flipped payload is a peer's lie, which receipts and audits are for.
            // What a whole row says, and which one is asked for, is content.
            let head = match frame {
                Frame::Row { .. } | Frame::RowRequest { .. } => LENGTH_AND_KIND_BYTES,
                Frame::Replay { .. } => potluck_wire::REPLAY_HEADER_BYTES,
                _ => potluck_wire::HEADER_BYTES,
            };
            let end = bytes.len().min(head);
            let bit = rng.usize(..end * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let twin = counted && rng.f64() < faults.twins;
        if counted && self.held[side].is_none() && rng.f64() < faults.swaps {
            self.held[side] = Some(bytes);
            return out;
        }
        out.extend_from_slice(&bytes);
        if twin {
            out.extend_from_slice(&bytes);
        }
        out.extend(self.held[side].take().into_iter().flatten());
        out
    }
}
