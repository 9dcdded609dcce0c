//! What the fuzzers found worth keeping, replayed: `fuzz/corpus`, by the fuzzers' own checks.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../fuzz/checks/engine_frame.rs"]
mod engine_frame;
#[path = "../../../fuzz/replay.rs"]
mod replay;

use std::collections::BTreeSet;

use potluck_engine::fuzzing::{messages, waiting};
use replay::replay;

#[test]
fn engine_frame_corpus() {
    let mut kinds = BTreeSet::new();
    replay("engine_frame", |bytes| {
        engine_frame::check(bytes);
        for content in bytes.get(1..).map(waiting).into_iter().flat_map(|frames| frames.contents) {
            kinds.extend(messages(&content).into_iter().map(|(kind, _)| kind));
        }
    });
    assert_eq!(kinds.len(), 6, "a seed for each kind of message: {kinds:?}");
}
