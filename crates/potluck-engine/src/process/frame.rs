//! Frames between a peer and its engine: a length of four bytes, little endian, then postcard.

use std::io::Read;

use potluck_core::bounds::STEP_BYTES_MAX;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use crate::EngineError;

/// Bytes of one frame. A longer one ends the engine's process, unallocated; a longer reply is an error instead.
pub const FRAME_BYTES_MAX: usize = 2 * STEP_BYTES_MAX;

pub(super) const LENGTH_BYTES: usize = 4;

/// Bytes that are asked of the socket at a time.
pub(super) const READ_BYTES: usize = 64 << 10;

/// Bytes of an inbox that is kept once it is empty. A larger one is given back.
const INBOX_BYTES_KEPT: usize = 4 * READ_BYTES;

const _: () = assert!(FRAME_BYTES_MAX <= u32::MAX as usize, "a frame's length fits its field");

/// Appends the frame of `message` to `out`; appends nothing where it would be too long.
pub(crate) fn encode(message: &impl Serialize, out: &mut Vec<u8>) -> Result<(), EngineError> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    let broken = |why: String| EngineError::Protocol(why);
    let written = postcard::to_extend(message, Appender(out)).map(|_| ()).map_err(|e| broken(e.to_string()));
    let len = out.len() - start - LENGTH_BYTES;
    let fits = match written {
        Ok(()) if len <= FRAME_BYTES_MAX => Ok(()),
        Ok(()) => Err(broken(format!("a frame of {len} bytes; the limit is {FRAME_BYTES_MAX}"))),
        Err(error) => Err(error),
    };
    match fits {
        Ok(()) => out[start..start + LENGTH_BYTES].copy_from_slice(&(len as u32).to_le_bytes()),
        Err(_) => out.truncate(start),
    }
    fits
}

/// Appends to a vector that is lent: postcard's own wants to own it.
struct Appender<'a>(&'a mut Vec<u8>);

impl Extend<u8> for Appender<'_> {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        self.0.extend(bytes);
    }
}

/// Decodes a frame's content.
pub(crate) fn decode<'a, M: Deserialize<'a>>(content: &'a [u8]) -> Result<M, EngineError> {
    let broken = |why: String| EngineError::Protocol(why);
    match postcard::take_from_bytes(content).map_err(|e| broken(e.to_string()))? {
        (message, []) => Ok(message),
        (_, rest) => Err(broken(format!("{} bytes after a message", rest.len()))),
    }
}

/// Reads one frame, waiting for it; its content, or none where the other end closed between frames.
pub(crate) fn read<'a>(stream: &mut impl Read, buffer: &'a mut Vec<u8>) -> Result<Option<&'a [u8]>, std::io::Error> {
    let mut length = [0; LENGTH_BYTES];
    let mut got = 0;
    while got < LENGTH_BYTES {
        match stream.read(&mut length[got..]) {
            Ok(0) if got == 0 => return Ok(None),
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => got += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    read_content(stream, length, buffer).map(Some)
}

/// Reads the content of a frame whose length has arrived. Memory grows with what comes, not with what is announced.
pub(crate) fn read_content<'a>(
    stream: &mut impl Read,
    length: [u8; LENGTH_BYTES],
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], std::io::Error> {
    let len = u32::from_le_bytes(length) as usize;
    if len > FRAME_BYTES_MAX {
        let why = format!("a frame of {len} bytes; the limit is {FRAME_BYTES_MAX}");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
    }
    buffer.clear();
    match stream.by_ref().take(len as u64).read_to_end(buffer)? {
        n if n == len => Ok(buffer),
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Frames that arrive in pieces.
#[derive(Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
}

impl Inbox {
    /// Takes what `read` puts into the free space it is given: the result of `read`.
    pub(crate) fn fill(&mut self, read: impl FnOnce(&mut [u8]) -> std::io::Result<usize>) -> std::io::Result<usize> {
        self.forget();
        if self.start < self.bytes.len() {
            self.bytes.drain(..self.start);
        } else if self.bytes.capacity() > INBOX_BYTES_KEPT {
            self.bytes = Vec::new();
        } else {
            self.bytes.clear();
        }
        self.start = 0;
        let end = self.bytes.len();
        self.bytes.resize(end + READ_BYTES, 0);
        let result = read(&mut self.bytes[end..]);
        self.bytes.truncate(end + result.as_ref().copied().unwrap_or(0));
        result
    }

    /// Overwrites the frames that were taken: none else may come for long.
    pub(crate) fn forget(&mut self) {
        self.bytes[..self.start].zeroize();
    }

    /// The content of the next frame, if all of it is here.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, EngineError> {
        let rest = &self.bytes[self.start..];
        let Some((length, content)) = rest.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let len = u32::from_le_bytes(*length) as usize;
        if len > FRAME_BYTES_MAX {
            return Err(EngineError::Protocol(format!("a frame of {len} bytes; the limit is {FRAME_BYTES_MAX}")));
        }
        if content.len() < len {
            return Ok(None);
        }
        self.start += LENGTH_BYTES + len;
        Ok(Some(&content[..len]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_whole_however_they_are_cut() {
        let mut wire = Vec::new();
        for message in ["a", "", "a longer message"] {
            encode(&message.to_owned(), &mut wire).unwrap();
        }
        for step in 1..=wire.len() {
            let (mut inbox, mut got) = (Inbox::default(), Vec::new());
            for piece in wire.chunks(step) {
                inbox
                    .fill(|space| {
                        space[..piece.len()].copy_from_slice(piece);
                        Ok(piece.len())
                    })
                    .unwrap();
                while let Some(content) = inbox.next().unwrap() {
                    got.push(decode::<String>(content).unwrap());
                }
            }
            assert_eq!(got, ["a", "", "a longer message"], "in pieces of {step}");
        }
    }

    #[test]
    fn an_announced_length_costs_nothing_until_it_arrives() {
        let mut buffer = Vec::new();
        let oversized = u32::MAX.to_le_bytes();
        let error = read(&mut oversized.as_slice(), &mut buffer).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        let mut short = (FRAME_BYTES_MAX as u32).to_le_bytes().to_vec();
        short.extend([7; 100]);
        assert_eq!(read(&mut short.as_slice(), &mut buffer).unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        assert!(buffer.capacity() < 1 << 20, "{} bytes for a frame of which 100 came", buffer.capacity());
        assert!(read(&mut [].as_slice(), &mut buffer).unwrap().is_none(), "closed between frames");
        assert!(read(&mut [1, 0].as_slice(), &mut buffer).is_err(), "closed within a length");
    }

    #[test]
    fn bytes_after_a_message_are_refused() {
        assert!(decode::<u8>(&[1, 2]).is_err());
        assert_eq!(decode::<u8>(&[1]), Ok(1));
    }

    proptest::proptest! {
        #[test]
        fn hostile_bytes(bytes: Vec<u8>) {
            let _ = decode::<potluck_core::StageReply>(&bytes);
            let _ = decode::<potluck_core::StageCommand>(&bytes);
            let _ = decode::<super::super::wire::Request>(&bytes);
        }
    }
}
