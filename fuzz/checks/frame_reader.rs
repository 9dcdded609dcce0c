//! However a stream is cut, the same frames come out, and never more is kept than the limit and the last chunk.

use potluck_wire::{Frame, FrameReader, WireError};

const LIMIT: usize = 4_096;

/// The first byte says how the rest is cut.
pub(crate) fn check(bytes: &[u8]) {
    let Some((&cut, stream)) = bytes.split_first() else { return };
    let whole = read(stream, stream.len().max(1));
    let parts = read(stream, usize::from(cut) + 1);
    assert_eq!(parts, whole, "cut every {} bytes", usize::from(cut) + 1);
}

fn read(stream: &[u8], cut: usize) -> (Vec<Vec<u8>>, Option<WireError>) {
    let mut reader = FrameReader::new(LIMIT);
    let mut frames = Vec::new();
    for chunk in stream.chunks(cut) {
        reader.push(chunk);
        loop {
            match reader.next() {
                Ok(Some(frame)) => frames.push(encode(&frame)),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(reader.next(), Err(error.clone()), "an error stays");
                    return (frames, Some(error));
                }
            }
        }
    }
    (frames, reader.finish().err())
}

/// As bytes: a frame may hold a NaN, which equals nothing.
fn encode(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}
