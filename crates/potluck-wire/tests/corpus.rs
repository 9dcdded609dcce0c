//! What the fuzzers found worth keeping, replayed: `fuzz/corpus`, by the fuzzers' own checks.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../fuzz/checks/codec.rs"]
mod codec;
#[path = "../../../fuzz/checks/frame.rs"]
mod frame;
#[path = "../../../fuzz/checks/frame_reader.rs"]
mod frame_reader;
#[path = "../../../fuzz/checks/offer.rs"]
mod offer;
#[path = "../../../fuzz/replay.rs"]
mod replay;
#[path = "../../../fuzz/checks/tunnel.rs"]
mod tunnel;

use replay::replay;

#[test]
fn frame_corpus() {
    replay("frame", frame::check);
}

#[test]
fn frame_reader_corpus() {
    replay("frame_reader", frame_reader::check);
}

#[test]
fn codec_corpus() {
    replay("codec", codec::check);
}

#[test]
fn offer_corpus() {
    replay("offer", offer::check);
}

#[test]
fn tunnel_corpus() {
    replay("tunnel", tunnel::check);
}
