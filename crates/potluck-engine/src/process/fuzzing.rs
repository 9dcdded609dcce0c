//! The decoders between a peer and its engine, for the fuzzer and the test that replays its corpus. The messages
//! themselves stay private: a child is another program only where it was replaced on disk.

use serde::{Serialize, de::DeserializeOwned};

use super::{
    frame::{Inbox, decode, encode, read},
    wire::{Loading, Request},
};
use crate::vocabulary::{Command, Reply};

/// The contents of a stream's frames.
#[derive(Debug, PartialEq, Eq)]
pub struct Frames {
    /// Those that are whole.
    pub contents: Vec<Vec<u8>>,
    /// True where the next announces more than a frame may hold.
    pub refused: bool,
}

/// As the peer reads a stream that arrives in pieces of `piece` bytes.
pub fn by_pieces(stream: &[u8], piece: usize) -> Frames {
    let (mut inbox, mut contents) = (Inbox::default(), Vec::new());
    for piece in stream.chunks(piece.clamp(1, super::frame::READ_BYTES)) {
        let filled = inbox.fill(|space| {
            space[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        });
        if filled.is_err() {
            break;
        }
        loop {
            match inbox.next() {
                Ok(Some(content)) => contents.push(content.to_vec()),
                Ok(None) => break,
                Err(_) => return Frames { contents, refused: true },
            }
        }
    }
    Frames { contents, refused: false }
}

/// As the child reads a stream: one frame after the other, waiting for each.
pub fn waiting(mut stream: &[u8]) -> Frames {
    let (mut buffer, mut contents) = (Vec::new(), Vec::new());
    loop {
        match read(&mut stream, &mut buffer) {
            Ok(Some(content)) => contents.push(content.to_vec()),
            Ok(None) => return Frames { contents, refused: false },
            Err(why) => return Frames { contents, refused: why.kind() == std::io::ErrorKind::InvalidData },
        }
    }
}

/// Every message that `content` decodes as: its kind, and its own encoding.
pub fn messages(content: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let kinds: [(&'static str, Option<Vec<u8>>); 6] = [
        ("request", again::<Request>(content)),
        ("loading", again::<Loading>(content)),
        ("stage command", again::<potluck_core::StageCommand>(content)),
        ("stage reply", again::<potluck_core::StageReply>(content)),
        ("vocabulary command", again::<Command>(content)),
        ("vocabulary reply", again::<Reply>(content)),
    ];
    kinds.into_iter().filter_map(|(kind, bytes)| Some((kind, bytes?))).collect()
}

fn again<M: Serialize + DeserializeOwned>(content: &[u8]) -> Option<Vec<u8>> {
    let mut frame = Vec::new();
    encode(&decode::<M>(content).ok()?, &mut frame).ok()?;
    frame.get(super::frame::LENGTH_BYTES..).map(<[u8]>::to_vec)
}
