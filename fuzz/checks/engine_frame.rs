//! What goes between a peer and its engine: however the stream is cut, both ends read the same frames; and what decodes
//! says the same once it is encoded.

use potluck_engine::fuzzing::{by_pieces, messages, waiting};

/// The first byte says how the rest is cut.
pub(crate) fn check(bytes: &[u8]) {
    let Some((&cut, stream)) = bytes.split_first() else { return };
    let frames = waiting(stream);
    assert_eq!(by_pieces(stream, usize::from(cut) + 1), frames, "cut every {} bytes", usize::from(cut) + 1);
    for content in &frames.contents {
        for (kind, once) in messages(content) {
            let twice = messages(&once).into_iter().find(|(other, _)| *other == kind);
            assert_eq!(twice, Some((kind, once)), "a {kind} changes on its way");
        }
    }
}
