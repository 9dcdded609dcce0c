//! The examples do what they say. (`hop.rs` tests itself.)

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::machine::{Machine, model};

#[test]
fn two_machines_share_a_model() {
    let machine = Machine::new();
    let script = example("two-machines.sh");
    fs::create_dir(machine.path("tmp")).unwrap();
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
    let left: Vec<_> = fs::read_dir(machine.path("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
}

#[test]
fn programs_in_three_languages_ask_a_gateway() {
    let machine = Machine::new();
    let model = model();
    let fixed = ["gateway", "--listen", "127.0.0.1:0", "--peers", "2", "--context", "1024", "--threads", "1", "--json"];
    let mut running = machine.start(&[&fixed[..], &["--model", &model]].concat());
    let url = running.object()["url"].as_str().unwrap().to_owned();
    let clients = std::env::home_dir().unwrap().join(".cache/potluck/clients");
    let clients = std::env::var_os("POTLUCK_TEST_CLIENTS").map_or(clients, PathBuf::from);
    assert!(clients.join("versions").is_file(), "no clients at {}: make clients", clients.display());

    let notes = machine.path("notes.txt");
    fs::write(&notes, "Bread is in the kitchen.\nThe train leaves at nine.\n").unwrap();
    // A program in JavaScript finds its packages beside itself.
    let folder = machine.path("js");
    fs::create_dir(&folder).unwrap();
    fs::copy(example("tools.mjs"), folder.join("tools.mjs")).unwrap();
    std::os::unix::fs::symlink(clients.join("node/node_modules"), folder.join("node_modules")).unwrap();

    let python = |name: &str| {
        let mut command = Command::new("python3");
        command.arg(example(name)).env("PYTHONPATH", clients.join("python"));
        command
    };
    let (mut chat, mut extract, mut search) = (python("chat.py"), python("extract.py"), python("search.py"));
    chat.args(["What is 2+2?", "And 3+3?"]);
    search.arg("Where is the bread?").arg(&notes);
    let mut tools = Command::new("node");
    tools.arg(folder.join("tools.mjs"));
    // Beside the command, where cargo builds examples.
    let mut rust = Command::new(Path::new(env!("CARGO_BIN_EXE_potluck")).with_file_name("examples").join("chat"));
    rust.arg("What is 2+2?");
    let programs = [
        ("chat.py", &mut chat, vec!["> What is 2+2?", "> And 3+3?"]),
        ("extract.py", &mut extract, vec![r#"{"name":""#, r#""age":"#, r#""city":""#]),
        ("search.py", &mut search, vec!["Bread is in the kitchen.", "The train leaves at nine."]),
        ("tools.mjs", &mut tools, vec![r#"weather({"city":"#, r#""celsius":14}"#]),
        ("chat.rs", &mut rust, vec!["4"]),
    ];
    for (name, command, expected) in programs {
        let output = command.env("POTLUCK_URL", &url).output().unwrap();
        let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}: {said}{why}");
        for text in expected {
            assert!(said.contains(text), "{name}: no `{text}` in:\n{said}{why}");
        }
    }
    running.signal("TERM");
    assert_eq!(running.end().0, Some(0));
}
