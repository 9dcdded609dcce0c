//! Echoes: what was written to a stream, once more, as datagrams.

use crate::number::{NUMBER_BYTES_MAX, decode_number, encode_number};

/// Bytes of the longest header of an echo: the stream's number, and the place in it.
pub const ECHO_HEADER_BYTES_MAX: usize = 2 * NUMBER_BYTES_MAX;

/// Bytes of a stream as a datagram repeats them: the stream's number in QUIC, where in the stream they begin (both 7 bits a byte, lowest
/// first), and the bytes.
pub fn encode_echo(stream: u64, begin: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ECHO_HEADER_BYTES_MAX + bytes.len());
    encode_number(stream, &mut out);
    encode_number(begin, &mut out);
    out.extend_from_slice(bytes);
    out
}

/// The stream of an echo, where in it its bytes begin, and where they begin in the datagram; none where it is no echo. It may come from
/// anybody.
pub fn decode_echo(datagram: &[u8]) -> Option<(u64, u64, usize)> {
    let (stream, at) = decode_number(datagram)?;
    let (begin, length) = decode_number(&datagram[at..])?;
    Some((stream, begin, at + length))
}
