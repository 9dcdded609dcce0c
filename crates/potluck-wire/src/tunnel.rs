//! What travels in a tunnel: a request to reach a service or an application, what became of it, and packets. Beside
//! these a stream carries a service's own bytes, as they are.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::{
    WireError,
    number::{NUMBER_BYTES_MAX, decode_number, encode_number},
};

/// The protocol's name in the TLS handshake: tunnels have connections of their own, never those of sessions.
pub const TUNNEL_ALPN: &[u8] = b"potluck/tunnel/1";

/// Bytes of a host's name, as DNS has it. A longer one is refused.
pub const HOST_BYTES_MAX: usize = 253;

/// Bytes of a frame, without its length. A longer one closes the stream, unallocated.
pub const TUNNEL_FRAME_BYTES_MAX: usize = HOST_BYTES_MAX + 16;

/// Bytes of a topic's name. A longer one is refused.
pub const TOPIC_BYTES_MAX: usize = 128;

/// Bytes of a message to an application, and of its reply. What is longer goes by a stream.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Bytes of a packet of UDP. A longer one closes the stream.
pub const PACKET_BYTES_MAX: usize = 65_507;

/// Bytes of a frame's length, and of a packet's.
pub const LENGTH_BYTES: usize = size_of::<u16>();

const _: () = assert!(TOPIC_BYTES_MAX < HOST_BYTES_MAX - size_of::<MessageId>(), "a call fits a frame");
const _: () = assert!(TUNNEL_FRAME_BYTES_MAX <= PACKET_BYTES_MAX && PACKET_BYTES_MAX <= u16::MAX as usize);

/// What is to be reached at a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Service {
    /// A TCP port.
    Tcp(u16),
    /// A UDP port.
    Udp(u16),
    /// Whether it is there: an ICMP echo.
    Echo,
}

/// Where a service is, as the far side sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Host {
    /// The peer itself: its loopback.
    Own,
    /// An IPv4 address.
    V4([u8; 4]),
    /// An IPv6 address.
    V6([u8; 16]),
    /// A name, which the far side resolves; at most [`HOST_BYTES_MAX`] bytes.
    Name(String),
}

/// The first frame of a stream, sent at once: what to reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Dial {
    /// What.
    pub service: Service,
    /// Where.
    pub host: Host,
}

/// What tells a message from others of its sender: one that comes again, its receipt lost, is taken once.
pub type MessageId = [u8; 16];

/// The first frame of a stream to an application of the peer, sent at once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Call {
    /// What the application listens for: [`is_topic`].
    pub topic: String,
    /// What comes.
    pub way: Way,
}

/// What comes by a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Way {
    /// A message, whose bytes follow at once.
    Message {
        /// Which.
        id: MessageId,
        /// Its length, at most [`MESSAGE_BYTES_MAX`].
        bytes: u32,
    },
    /// Bytes both ways, once the application has accepted.
    Stream,
}

/// Why a service was not reached. Numbers are on the wire and never change meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NotReached {
    /// The grant does not allow it.
    NotAllowed,
    /// The peer does not expose it.
    NotExposed,
    /// No such name.
    NoName,
    /// No way to the host.
    NoRoute,
    /// The host refuses.
    Refused,
    /// No answer in time.
    Late,
    /// Too many at once.
    Busy,
    /// What the grant allows in a day is used up.
    Spent,
}

/// A frame of a tunnel's stream: length `u16`, and its body in postcard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TunnelFrame {
    /// From whoever opened the stream, first.
    Dial(Dial),
    /// The answer: it is reached. What follows are the service's own bytes; of UDP, packets.
    Opened,
    /// The answer: it is not, and the stream ends.
    NotReached(NotReached),
    /// From whoever opened the stream, first, in place of a dial.
    Call(Call),
    /// The answer to a message: the application has it.
    Taken,
    /// Then, perhaps: what the application replies. So many bytes follow, at most [`MESSAGE_BYTES_MAX`].
    Reply(u32),
}

impl Service {
    /// The port; none of an echo.
    pub fn port(self) -> Option<u16> {
        match self {
            Self::Tcp(port) | Self::Udp(port) => Some(port),
            Self::Echo => None,
        }
    }
}

impl Host {
    /// The address, where it is one.
    pub fn address(&self) -> Option<IpAddr> {
        match *self {
            Self::V4(octets) => Some(IpAddr::V4(Ipv4Addr::from(octets))),
            Self::V6(octets) => Some(IpAddr::V6(Ipv6Addr::from(octets))),
            Self::Own | Self::Name(_) => None,
        }
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => Self::V6(address.octets()),
        }
    }
}

impl TunnelFrame {
    /// Its name, in messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dial(_) => "dial",
            Self::Opened => "opened",
            Self::NotReached(_) => "not-reached",
            Self::Call(_) => "call",
            Self::Taken => "taken",
            Self::Reply(_) => "reply",
        }
    }

    /// Appends the frame, its length first.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let body = self.body();
        out.extend_from_slice(&(body.len() as u16).to_le_bytes());
        out.extend_from_slice(&body);
    }

    #[expect(clippy::expect_used, reason = "a body has no part that could fail to encode")]
    fn body(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a body encodes")
    }

    /// Bytes of a body, as its length announces; which may come from anybody.
    ///
    /// # Errors
    /// `TooLong`.
    pub fn length(announced: [u8; LENGTH_BYTES]) -> Result<usize, WireError> {
        let len = usize::from(u16::from_le_bytes(announced));
        let max = TUNNEL_FRAME_BYTES_MAX;
        if len <= max { Ok(len) } else { Err(WireError::TooLong { len, max }) }
    }

    /// A frame from its body, which may come from anybody. A frame has one encoding: what would be written in other
    /// bytes is malformed.
    ///
    /// # Errors
    /// `Malformed`, `Bound`.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let malformed = |reason: String| WireError::Malformed { kind: "tunnel", reason };
        if body.len() > TUNNEL_FRAME_BYTES_MAX {
            return Err(WireError::TooLong { len: body.len(), max: TUNNEL_FRAME_BYTES_MAX });
        }
        let (frame, rest) = postcard::take_from_bytes::<Self>(body).map_err(|error| malformed(error.to_string()))?;
        if let Self::Dial(Dial { host: Host::Name(name), .. }) = &frame {
            let fits = !name.is_empty() && name.len() <= HOST_BYTES_MAX;
            if !fits || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(WireError::Bound { what: "name", len: name.len(), max: HOST_BYTES_MAX });
            }
        }
        if let Self::Call(Call { topic, .. }) = &frame
            && !is_topic(topic)
        {
            return Err(WireError::Bound { what: "topic", len: topic.len(), max: TOPIC_BYTES_MAX });
        }
        if let Self::Call(Call { way: Way::Message { bytes, .. }, .. }) | Self::Reply(bytes) = &frame
            && *bytes as usize > MESSAGE_BYTES_MAX
        {
            return Err(WireError::Bound { what: "message", len: *bytes as usize, max: MESSAGE_BYTES_MAX });
        }
        if !rest.is_empty() || frame.body() != body {
            return Err(malformed("another encoding of the same".into()));
        }
        Ok(frame)
    }
}

/// Whether an application can listen for that: 1 to [`TOPIC_BYTES_MAX`] bytes of ASCII without spaces.
pub fn is_topic(text: &str) -> bool {
    !text.is_empty() && text.len() <= TOPIC_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Appends a packet as a stream carries it: length `u16`, and its bytes. False where it is longer than any packet.
pub fn encode_packet(packet: &[u8], out: &mut Vec<u8>) -> bool {
    let fits = packet.len() <= PACKET_BYTES_MAX;
    if fits {
        out.extend_from_slice(&(packet.len() as u16).to_le_bytes());
        out.extend_from_slice(packet);
    }
    fits
}

/// Bytes of a packet, as its length on a stream announces.
///
/// # Errors
/// `TooLong`.
pub fn packet_length(announced: [u8; LENGTH_BYTES]) -> Result<usize, WireError> {
    let len = usize::from(u16::from_le_bytes(announced));
    if len <= PACKET_BYTES_MAX { Ok(len) } else { Err(WireError::TooLong { len, max: PACKET_BYTES_MAX }) }
}

/// A packet as a datagram carries it: the flow's number (7 bits a byte, lowest first), and its bytes.
pub fn encode_datagram(flow: u64, packet: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(NUMBER_BYTES_MAX + packet.len());
    encode_number(flow, &mut out);
    out.extend_from_slice(packet);
    out
}

/// The flow of a datagram, and where its packet begins; none where it is not one. It may come from anybody.
pub fn decode_datagram(datagram: &[u8]) -> Option<(u64, usize)> {
    decode_number(datagram)
}
