//! Runs that once broke a promise, small ones by now, each kept under a name; and bugs that the simulator has to find, which
//! `make prove-sim` plants one by one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{fs, path::Path, process::Command};

use potluck_sim::{Scenario, tried};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a folder of this crate: their names and texts.
fn kept(folder: &str, ending: &str) -> Vec<(String, String)> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(here().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.ends_with(ending), "{name}");
        kept.push((name, fs::read_to_string(path).unwrap()));
    }
    kept.sort();
    kept
}

#[test]
fn runs_that_broke_a_promise_once_keep_it() {
    let runs = kept("seeds", ".json");
    assert!(!runs.is_empty());
    for (name, text) in runs {
        let scenario: Scenario = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        if let Err(failed) = tried(&scenario) {
            panic!("{name}: {}", failed.message);
        }
    }
}

#[test]
fn bugs_can_still_be_planted() {
    let bugs = kept("bugs", ".patch");
    assert!(bugs.len() >= 10, "{}", bugs.len());
    let root = here().join("../..");
    for (name, text) in bugs {
        assert!(text.lines().next().is_some_and(|what| what.ends_with('.')), "{name} says first what it does");
        let patch = here().join("bugs").join(&name);
        let applied = Command::new("git").args(["apply", "--check"]).arg(patch).current_dir(&root).output().unwrap();
        let told = String::from_utf8_lossy(&applied.stderr).into_owned();
        assert!(applied.status.success(), "{name} fits the sources no more: make it anew\n{told}");
    }
}
