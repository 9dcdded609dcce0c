//! The examples do what they say. (Those in Rust test themselves: `crates/potluck-net` builds them.)
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

mod machine;

use std::{path::Path, process::Command};

use machine::{Machine, model};

#[test]
fn two_machines_share_a_model() {
    let machine = Machine::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/two-machines.sh");
    std::fs::create_dir(machine.path("tmp")).unwrap();
    let output = Command::new(script)
        .arg(model())
        .env("POTLUCK", env!("CARGO_BIN_EXE_potluck"))
        .env("TMPDIR", machine.path("tmp"))
        .output()
        .unwrap();
    let (said, why) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{why}");
    for expected in ["swarm ", "first lends 0..15", "second lends 15..30", "4."] {
        assert!(said.contains(expected), "no `{expected}` in:\n{said}{why}");
    }
    assert!(why.contains("\n  0..15  ") && why.contains("\n  15..30  "), "the route: {why}");
    machine.wait_until_empty(&[]);
    let left: Vec<_> = std::fs::read_dir(machine.path("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
