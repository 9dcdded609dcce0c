//! What the fuzzers found worth keeping, replayed: `fuzz/corpus`, by the fuzzers' own checks.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../fuzz/checks/manifest.rs"]
mod manifest;
#[path = "../../../fuzz/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn manifest_corpus() {
    replay("manifest", manifest::check);
}
