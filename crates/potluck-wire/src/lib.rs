//! What travels between peers: frames, codecs, and the bound of each.
//!
//! A [`Frame`] is a length, a kind and a body. [`Step`](StepFrame) and [`Answer`](AnswerFrame) frames carry a fixed
//! header of [`HEADER_BYTES`] bytes and a payload; all other bodies are postcard:
//! ```
//! use potluck_wire::{Frame, FrameReader};
//! let mut bytes = Vec::new();
//! Frame::Credit { frames: 3 }.encode(&mut bytes);
//! let mut reader = FrameReader::new(1024);
//! reader.push(&bytes);
//! assert_eq!(reader.next()?, Some(Frame::Credit { frames: 3 }));
//! assert_eq!(reader.next()?, None);
//! # Ok::<(), potluck_wire::WireError>(())
//! ```
//! Encode and decode only: who may send what, and when, is `potluck-chain`'s and `potluck-peer`'s business.
//! `docs/wire.md` draws the bytes.

mod bounds;
mod codec;
mod echo;
mod frame;
mod message;
mod number;
mod reader;
mod spare;
mod tunnel;
mod upstream;

pub use bounds::*;
pub use codec::{Codec, CodecError, CodecSet};
pub use echo::{ECHO_HEADER_BYTES_MAX, decode_echo, encode_echo};
pub use frame::{AnswerFrame, Frame, StepFrame, WireError};
pub use message::{
    Bounds, Failure, FailureCode, Fetch, Held, Hello, HopOpen, Join, Joined, Keep, Mirror, NeighbourLost, NextHop,
    OpenSession, Part, PeerAddress, Prefix, PreviousHop, Refusal, Reroute, Restore, Return, Save, SharedModel, Welcome,
};
pub use reader::FrameReader;
pub use tunnel::{
    Call, Dial, HOST_BYTES_MAX, Host, LENGTH_BYTES, MESSAGE_BYTES_MAX, MessageId, NotReached, PACKET_BYTES_MAX,
    Service, TOPIC_BYTES_MAX, TUNNEL_ALPN, TUNNEL_FRAME_BYTES_MAX, TunnelFrame, Way, decode_datagram, encode_datagram,
    encode_packet, is_topic, packet_length,
};
pub use upstream::{Ask, Head, Lender, Upstream, UpstreamModel, Upstreams};
