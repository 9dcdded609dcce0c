//! What the fuzzers found worth keeping, replayed: `fuzz/corpus`, by the fuzzers' own checks.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../fuzz/checks/grant.rs"]
mod grant;

use std::path::Path;

/// Every file of a corpus, by name.
fn replay(target: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 3, "{}: no corpus", folder.display());
    for file in files {
        println!("{}", file.display());
        check(&std::fs::read(&file).unwrap());
    }
}

#[test]
fn grant_corpus() {
    replay("grant", grant::check);
}
