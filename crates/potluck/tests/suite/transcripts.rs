//! What the documentation shows is what happens: transcripts, the README's included.

use std::path::Path;

use crate::machine::{Machine, model};

#[test]
fn transcripts() {
    let machine = Machine::new();
    trycmd::TestCases::new().env("POTLUCK_HOME", machine.path("home").display().to_string()).case("tests/cmd/*.md");
}

#[test]
fn the_readme_tells_the_truth() {
    let machine = Machine::new();
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md").canonicalize().unwrap();
    // The README's model lies in the reader's own folder: the transcript runs where ours lies.
    std::env::set_current_dir(Path::new(&model()).parent().unwrap()).unwrap();
    trycmd::TestCases::new().env("POTLUCK_HOME", machine.path("home").display().to_string()).case(readme);
}
