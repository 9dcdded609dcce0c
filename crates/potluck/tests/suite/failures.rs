//! What is killed, refused or broken ends in an error with a hint: never in a hang, never in something left behind.

use std::{
    io::{BufRead, Read, Write},
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::machine::{Machine, Running, children, is_alive, kill, model, wait_until};

/// The longest that a loss may go unnoticed.
const NOTICED_WITHIN: Duration = Duration::from_secs(5);

/// An answer that is under way and would take minutes: the command, and what it has started.
fn long_answer(machine: &Machine) -> (Running, Vec<u32>) {
    let model = model();
    let args = [
        "run",
        "--model",
        &model,
        "--peers",
        "3",
        "--max-tokens",
        "3000",
        "--threads",
        "1",
        "--ignore-eos",
        "--raw",
        "Once",
    ];
    let mut running = machine.start(&args);
    let mut byte = [0];
    running.stdout.read_exact(&mut byte).unwrap();
    let peers: Vec<u32> = children(running.child.id()).into_iter().filter(|&pid| !children(pid).is_empty()).collect();
    assert_eq!(peers.len(), 3, "each peer has an engine");
    (running, peers)
}

/// Reads what is left of its output, and waits for its end.
fn finish(mut running: Running) -> (Option<i32>, Duration) {
    let started = Instant::now();
    let mut rest = Vec::new();
    running.stdout.read_to_end(&mut rest).unwrap();
    let (code, _) = running.end();
    (code, started.elapsed())
}

#[test]
fn kill_9_of_a_peer_is_told_in_time() {
    let machine = Machine::new();
    let (running, peers) = long_answer(&machine);
    kill(peers[1], "KILL");
    let (code, after) = finish(running);
    assert_eq!(code, Some(1));
    assert!(after < NOTICED_WITHIN, "{after:?}");
    machine.wait_until_empty(&peers);
}

#[test]
fn a_lost_peer_is_an_error_object() {
    let machine = Machine::new();
    let model = model();
    let args = ["run", "--model", &model, "--peers", "2", "--max-tokens", "3000", "--ignore-eos", "--threads", "1"];
    let mut running = machine.start(&[&args[..], &["--json", "Once upon a time"]].concat());
    let id = running.child.id();
    let peers = || children(id).into_iter().filter(|&pid| !children(pid).is_empty()).collect::<Vec<_>>();
    wait_until("both peers have engines", || peers().len() == 2);
    kill(peers()[0], "KILL");
    let error = running.object();
    assert_eq!(error["error"]["code"], "peer_lost", "{error}");
    assert!(!error["error"]["hint"].as_str().unwrap().is_empty());
    assert_eq!(running.end().0, Some(1));
    machine.wait_until_empty(&[]);
}

#[test]
fn an_answer_outlives_an_engine() {
    let machine = Machine::new();
    let (mut running, peers) = long_answer(&machine);
    kill(children(peers[2])[0], "KILL");
    // More than can have been on its way.
    running.stdout.read_exact(&mut [0; 2_000]).unwrap();
    running.signal("INT");
    assert_eq!(finish(running).0, Some(0));
    machine.wait_until_empty(&peers);
}

#[test]
fn kill_9_of_the_command_leaves_nothing_behind() {
    let machine = Machine::new();
    let (running, peers) = long_answer(&machine);
    let engines: Vec<u32> = peers.iter().flat_map(|&peer| children(peer)).collect();
    running.signal("KILL");
    machine.wait_until_empty(&[peers, engines].concat());
}

#[test]
fn ctrl_c_ends_an_answer_and_reaps_all() {
    let machine = Machine::new();
    let (running, peers) = long_answer(&machine);
    running.signal("INT");
    let (code, _) = finish(running);
    assert_eq!(code, Some(0), "what there was of the answer is an answer");
    assert!(peers.iter().all(|&pid| !is_alive(pid)), "reaped before the command returned");
    machine.wait_until_empty(&peers);
}

#[test]
fn a_peer_outlives_its_engine_and_serves_the_next_request() {
    let machine = Machine::new();
    let model = model();
    let args = [
        "chat",
        "--model",
        &model,
        "--peers",
        "2",
        "--temperature",
        "0",
        "--max-tokens",
        "8",
        "--threads",
        "1",
        "--json",
    ];
    let mut chat = machine.start_with(&args, Stdio::piped());
    let mut stdin = chat.child.stdin.take().unwrap();
    let mut ask = |chat: &mut Running, text: &str| -> Value {
        writeln!(stdin, "{text}").unwrap();
        chat.object()
    };
    let first = ask(&mut chat, "Say hello.");
    assert!(first["answer"]["text"].is_string(), "{first}");
    let peers: Vec<u32> = children(chat.child.id()).into_iter().filter(|&pid| !children(pid).is_empty()).collect();
    kill(children(peers[0])[0], "KILL");
    let second = ask(&mut chat, "Say it again.");
    assert!(second["answer"]["text"].is_string(), "{second}");
    assert_eq!(
        second["answer"]["repairs"].as_array().map(Vec::len),
        Some(1),
        "the other peer kept what it held: {second}"
    );
    let third = ask(&mut chat, "And once more.");
    assert!(third["answer"]["text"].is_string(), "{third}");
    assert!(peers.iter().all(|&pid| is_alive(pid)), "the peers live");
    drop(stdin);
    assert_eq!(chat.end().0, Some(0));
    machine.wait_until_empty(&peers);
}

#[test]
fn an_error_object_has_code_message_and_hint() {
    let machine = Machine::new();
    let (error, code) = machine.json(&["run", "--model", "nonesuch", "hi"]);
    assert_eq!(code, 1);
    assert_eq!(error["error"]["code"], "no_model");
    for (args, expected) in [
        (vec!["run", "--peers", "0", "hi"], 2),
        (vec!["run", "--local", "--peers", "3", "hi"], 2),
        (vec!["frobnicate"], 2),
        (vec!["peers"], 1),
    ] {
        let (error, code) = machine.json(&args);
        assert_eq!(code, expected, "{args:?}");
        for field in ["code", "message", "hint"] {
            assert!(error["error"][field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {error}");
        }
    }
}

#[test]
fn a_hostile_model_file_is_refused_with_its_reason() {
    let machine = Machine::new();
    let path = machine.path("hostile.gguf");
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(u64::MAX.to_le_bytes());
    bytes.extend(u64::MAX.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let (error, code) = machine.json(&["model", "add", path.to_str().unwrap()]);
    assert_eq!((error["error"]["code"].as_str(), code), (Some("bad_model"), 1), "{error}");
}

#[test]
fn more_than_fits_is_refused_before_anything_starts() {
    let machine = Machine::new();
    let model = model();
    let (error, code) = machine.json(&["run", "--model", &model, "--peers", "31", "hi"]);
    assert_eq!((error["error"]["code"].as_str(), code), (Some("usage"), 2), "{error}");
    let (error, _) = machine.json(&["run", "--model", &model, "--local", "--context", "1048576", "hi"]);
    assert_eq!(error["error"]["code"], "no_memory", "{error}");
    machine.wait_until_empty(&[]);
}

#[test]
fn up_says_who_serves_what_and_leaves_nothing_behind() {
    let machine = Machine::new();
    let model = model();
    let mut up = machine.start(&["up", "--model", &model, "--peers", "3", "--json"]);
    let ready = up.object();
    assert!(ready["url"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{ready}");
    let peers = ready["peers"].as_array().unwrap();
    let layers: Vec<_> = peers.iter().map(|peer| peer["layers"].to_string()).collect();
    assert_eq!(layers, ["[0,10]", "[10,20]", "[20,30]"]);
    let pids: Vec<u32> = peers.iter().map(|peer| peer["pid"].as_u64().unwrap() as u32).collect();
    assert!(pids.iter().all(|&pid| is_alive(pid)));
    assert!(peers.iter().all(|peer| peer["id"].as_str().unwrap().len() == 64));
    up.signal("TERM");
    let mut rest = String::new();
    up.stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "one line is all");
    assert_eq!(up.end().0, Some(0));
    assert!(pids.iter().all(|&pid| !is_alive(pid)), "reaped before the command returned");
    machine.wait_until_empty(&pids);
}

#[test]
fn up_ends_with_an_error_when_a_peer_is_lost() {
    let machine = Machine::new();
    let model = model();
    let mut up = machine.start(&["up", "--model", &model, "--peers", "2", "--json"]);
    let ready = up.object();
    let pid = ready["peers"][1]["pid"].as_u64().unwrap() as u32;
    kill(pid, "KILL");
    let error = up.object();
    assert_eq!(error["error"]["code"], "peer_lost", "{error}");
    assert_eq!(up.end().0, Some(1));
    machine.wait_until_empty(&[pid]);
}

#[test]
fn secrets_are_in_no_argument() {
    let machine = Machine::new();
    let model = model();
    let mut up = machine.start(&["up", "--model", &model, "--peers", "1", "--json"]);
    let ready = up.object();
    let pid = ready["peers"][0]["pid"].as_u64().unwrap();
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let arguments: Vec<_> =
        arguments.split(|&byte| byte == 0).skip(1).filter(|argument| !argument.is_empty()).collect();
    assert_eq!(arguments, [&b"serve"[..], b"--embedded", b"--json"]);
    up.signal("TERM");
    wait_until("it has ended", || up.child.try_wait().unwrap().is_some());
    let _ = up.stdout.fill_buf();
}
