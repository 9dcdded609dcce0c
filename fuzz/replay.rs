//! What the fuzzers found worth keeping, replayed: included by `tests/corpus.rs` of each crate that owns a decoder.

use std::path::Path;

/// Runs a check on every file of a target's corpus.
pub(crate) fn replay(target: &str, mut check: impl FnMut(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 3, "{}: no corpus", folder.display());
    for file in files {
        println!("{}", file.display());
        check(&std::fs::read(&file).unwrap());
    }
}
