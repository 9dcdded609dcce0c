//! What the fuzzers found worth keeping, replayed: `fuzz/corpus`, by the fuzzers' own checks.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../fuzz/checks/grant.rs"]
mod grant;
#[path = "../../../fuzz/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn grant_corpus() {
    replay("grant", grant::check);
}
