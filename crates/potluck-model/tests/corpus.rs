//! What the fuzzers found worth keeping, replayed: `fuzz/corpus`, by the fuzzers' own checks.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../fuzz/checks/gguf.rs"]
mod gguf;
#[path = "../../../fuzz/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn gguf_corpus() {
    replay("gguf", gguf::check);
}
