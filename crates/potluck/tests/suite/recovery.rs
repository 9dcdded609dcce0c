//! A machine of a swarm is killed in the midst of an answer: another takes its place, and whoever reads along sees a pause.

use std::{io::Write, process::Stdio};

use serde_json::Value;

use crate::machine::{Machine, Running, children, cpu_ticks, kill, model, wait_until};

/// Lends layers of the small model; returns its id once they are served.
pub(crate) fn serve(machine: &Machine, layers: &str) -> (Running, String) {
    let model = model();
    let args = ["serve", "--model", &model, "--layers", layers, "--bind", "127.0.0.1:0", "--threads", "1", "--exact"];
    let mut serving = machine.start(&[&args[..], &["--context", "512", "--json"]].concat());
    let ready = serving.object();
    let id = ready["id"].as_str().unwrap_or_else(|| panic!("{ready}")).to_owned();
    (serving, id)
}

pub(crate) fn join(owner: &Machine, guest: &Machine) {
    let (invited, _) = owner.json(&["swarm", "invite"]);
    let (joined, code) = guest.json(&["swarm", "join", invited["invitation"].as_str().unwrap()]);
    assert_eq!(code, 0, "{joined}");
}

/// Hundredths of a second that its engine has computed for.
pub(crate) fn ticks(serving: &Running) -> u64 {
    children(serving.child.id()).into_iter().map(cpu_ticks).max().unwrap_or(0)
}

#[test]
fn a_machine_that_is_killed_costs_a_pause_and_no_token() {
    let [owner, second, third, asking] = [(); 4].map(|()| Machine::new());
    owner.json(&["swarm", "create"]);
    let (_first, _) = serve(&owner, "0..15");
    [&second, &third, &asking].into_iter().for_each(|machine| join(&owner, machine));
    let last: Vec<_> = [&second, &third].into_iter().map(|machine| serve(machine, "15..30")).collect();
    wait_until("all offers are known", || {
        let (peers, _) = asking.json(&["peers"]);
        peers["peers"].as_array().is_some_and(|peers| peers.len() == 3)
    });
    let over = ["--context", "512", "--exact", "--prefer", "swarm", "--ignore-eos"];
    let whole = asking.answer("Tell me of the sea.", 160, &over);
    let before: Vec<u64> = last.iter().map(|(serving, _)| ticks(serving)).collect();
    let model = model();
    let ask = ["run", "--model", &model, "--temperature", "0", "--max-tokens", "160", "--threads", "1"];
    let mut answering = asking.start(&[&ask[..], &over, &["--json", "Tell me of the sea."]].concat());
    let mut at = None;
    wait_until("the answer is under way", || {
        at = last.iter().zip(&before).position(|((serving, _), before)| ticks(serving) >= before + 20);
        at.is_some()
    });
    // The one that it goes over.
    let (killed, id) = &last[at.unwrap()];
    killed.signal("KILL");
    let answer: Value = answering.object();
    assert_eq!(answer["tokens"], whole["tokens"], "{answer}");
    assert!(answer["repairs"].as_array().is_some_and(|repairs| repairs.len() == 1), "{answer}");
    assert_ne!(answer["route"][1]["peer"].as_str(), Some(id.as_str()), "{answer}");
    assert!(answer["resumed"].is_null(), "the first machine kept what it held: {answer}");
}

#[test]
fn a_machine_that_is_killed_while_a_session_opens_is_not_the_end_of_it() {
    let [owner, second, third, asking] = [(); 4].map(|()| Machine::new());
    owner.json(&["swarm", "create"]);
    let (_first, _) = serve(&owner, "0..15");
    [&second, &third, &asking].into_iter().for_each(|machine| join(&owner, machine));
    let last: Vec<_> = [&second, &third].into_iter().map(|machine| serve(machine, "15..30")).collect();
    let free = |id: &str| {
        let (peers, _) = asking.json(&["peers"]);
        let offer = peers["peers"].as_array()?.iter().find(|offer| offer["peer"] == id)?.clone();
        offer["free_caches"].as_u64()
    };
    wait_until("all offers are known", || last.iter().all(|(_, id)| free(id).is_some()));
    let all = free(&last[0].1).unwrap();
    let signal = |which: usize, signal| {
        children(last[which].0.child.id()).into_iter().for_each(|engine| kill(engine, signal));
    };
    // They take the session, and do not get as far as to say so.
    (0..2).for_each(|which| signal(which, "STOP"));
    let model = model();
    let ask = ["run", "--model", &model, "--temperature", "0", "--max-tokens", "8", "--threads", "1"];
    let over = ["--context", "512", "--exact", "--prefer", "swarm", "--json", "Tell me of the sea."];
    let mut answering = asking.start(&[&ask[..], &over].concat());
    let mut at = None;
    wait_until("one of them has the session", || {
        at = last.iter().position(|(_, id)| free(id).is_some_and(|free| free < all));
        at.is_some()
    });
    let at = at.unwrap();
    last[at].0.signal("KILL");
    signal(1 - at, "CONT");
    let answer: Value = answering.object();
    assert_eq!(answer["tokens"].as_array().map(Vec::len), Some(8), "{answer}");
    assert_eq!(answer["route"][1]["peer"].as_str(), Some(last[1 - at].1.as_str()), "{answer}");
    // Nothing of it was computed before.
    assert!(answer["resumed"].is_null() && answer["repairs"].is_null(), "{answer}");
}

/// Lends what the swarm needs most.
fn serve_auto(machine: &Machine) -> Running {
    let model = model();
    let args = ["serve", "--auto", "--model", &model, "--bind", "127.0.0.1:0", "--threads", "1", "--exact"];
    machine.start(&[&args[..], &["--context", "512", "--memory", "4GB", "--json"]].concat())
}

/// Its id, once it lends these layers.
fn lends(serving: &mut Running, layers: [u32; 2]) -> String {
    let ready = serving.object();
    assert_eq!(ready["layers"], serde_json::json!(layers), "{ready}");
    ready["id"].as_str().unwrap_or_else(|| panic!("{ready}")).to_owned()
}

fn is_offered(asking: &Machine, id: &str) -> bool {
    let (peers, _) = asking.json(&["peers"]);
    peers["peers"].as_array().is_some_and(|peers| peers.iter().any(|peer| peer["peer"] == id))
}

/// Two questions of one conversation over the swarm, and what happens between them.
fn conversation(asking: &Machine, between: impl FnOnce()) -> [Value; 2] {
    let model = model();
    let args = ["chat", "--model", &model, "--prefer", "swarm", "--context", "512", "--exact", "--json"];
    let sampled = ["--temperature", "0", "--max-tokens", "60", "--ignore-eos", "--threads", "1"];
    let mut chat = asking.start_with(&[&args[..], &sampled].concat(), Stdio::piped());
    let mut stdin = chat.child.stdin.take().unwrap();
    writeln!(stdin, "Tell me of the sea.").unwrap();
    let first = chat.object();
    between();
    writeln!(stdin, "And of its ships?").unwrap();
    let second = chat.object();
    drop(stdin);
    assert_eq!(chat.end().0, Some(0), "{first} {second}");
    [first, second]
}

#[test]
fn a_machine_that_is_spare_loads_what_nobody_serves_any_more() {
    let [owner, second, third, fourth, fifth, asking] = [(); 6].map(|()| Machine::new());
    owner.json(&["swarm", "create"]);
    let (_first, _) = serve(&owner, "0..15");
    [&second, &third, &fourth, &fifth, &asking].into_iter().for_each(|machine| join(&owner, machine));
    let last = [&second, &third].map(|machine| serve(machine, "15..30"));
    wait_until("the offers are known", || last.iter().all(|(_, id)| is_offered(&asking, id)));
    let whole = conversation(&asking, || {});
    let mut spare = Vec::new();
    let answers = conversation(&asking, || {
        // They are on no route of this conversation: they come when it has begun. Nothing is missing: they take what the fewest serve.
        spare = [&fourth, &fifth].map(serve_auto).map(|mut serving| (lends(&mut serving, [0, 15]), serving)).into();
        wait_until("their offers are known", || spare.iter().all(|(id, _)| is_offered(&asking, id)));
        // They meet the others meanwhile: who was never there is not missed.
        let over = ["--context", "512", "--exact", "--prefer", "swarm"];
        for text in ["One.", "Two.", "Three.", "Four."] {
            asking.answer(text, 8, &over);
        }
        last.iter().for_each(|(serving, _)| serving.signal("KILL"));
    });
    let answer = &answers[1]["answer"];
    assert_eq!([0, 1].map(|n| &answers[n]["answer"]["tokens"]), [0, 1].map(|n| &whole[n]["answer"]["tokens"]));
    assert!(answer["resumed"].is_null(), "the first machine kept what it held: {answer}");
    let repair = &answer["repairs"][0];
    assert_eq!(repair["layers"], serde_json::json!([[15, 30]]), "{answer}");
    let [load, found] = ["load_s", "found_s"].map(|key| repair[key].as_f64().unwrap_or(0.0));
    assert!(load > 0.0 && load <= found, "it was waited for until it had them: {answer}");
    let taken = answers[1]["route"][1]["peer"].as_str().unwrap();
    let other = spare.iter().map(|(id, _)| id.as_str()).find(|id| *id != taken).unwrap();
    assert!(spare.iter().any(|(id, _)| id == taken), "{answer}");
    // One is enough: the other stays where it was.
    let (peers, _) = asking.json(&["peers"]);
    let offers = peers["peers"].as_array().unwrap().iter().filter(|offer| offer["peer"] == other);
    let layers: Vec<_> = offers.map(|offer| offer["layers"].clone()).collect();
    assert_eq!(layers, [serde_json::json!([0, 15])], "{peers}");
}

#[test]
fn a_machine_that_is_needed_takes_what_is_missing_beside_its_own() {
    let [owner, second, asking] = [(); 3].map(|()| Machine::new());
    owner.json(&["swarm", "create"]);
    let (first, id) = serve(&owner, "0..15");
    [&second, &asking].into_iter().for_each(|machine| join(&owner, machine));
    let mut taking = serve_auto(&second);
    let other = lends(&mut taking, [15, 30]);
    wait_until("the offers are known", || is_offered(&asking, &id) && is_offered(&asking, &other));
    let over = ["--context", "512", "--exact", "--prefer", "swarm", "--ignore-eos"];
    let whole = asking.answer("Tell me of the sea.", 300, &over);
    let before = ticks(&first);
    let model = model();
    let ask = ["run", "--model", &model, "--temperature", "0", "--max-tokens", "300", "--threads", "1"];
    let mut answering = asking.start(&[&ask[..], &over, &["--json", "Tell me of the sea."]].concat());
    wait_until("the answer is under way", || ticks(&first) >= before + 20);
    first.signal("KILL");
    let answer: Value = answering.object();
    assert_eq!(answer["tokens"], whole["tokens"], "{answer}");
    assert_eq!(answer["resumed"], 1, "all of it was computed anew: {answer}");
    assert_eq!(answer["route"].as_array().map(Vec::len), Some(1), "{answer}");
    assert_eq!(answer["route"][0]["peer"].as_str(), Some(other.as_str()), "{answer}");
}
