//! A machine of a swarm is killed in the midst of an answer: another takes its place, and whoever reads along sees a pause.

use std::{io::Write, process::Stdio};

use serde_json::Value;

use crate::machine::{Machine, Running, children, cpu_ticks, kill, model, wait_until};

/// Lends layers of the small model; returns its id once they are served.
pub(crate) fn serve(machine: &Machine, layers: &str) -> (Running, String) {
    serve_as(machine, layers, &[])
}

fn serve_as(machine: &Machine, layers: &str, more: &[&str]) -> (Running, String) {
    let model = model();
    let args = ["serve", "--model", &model, "--layers", layers, "--bind", "127.0.0.1:0", "--threads", "1", "--exact"];
    let mut serving = machine.start(&[&args[..], &["--context", "512", "--json"], more].concat());
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

/// A swarm in which one machine has the first layers and two have the rest, each all of it; and who asks.
struct Spare {
    _first: (Machine, Running),
    last: [(Machine, Running, String); 2],
    asking: Machine,
}

const OVER: [&str; 5] = ["--context", "512", "--exact", "--prefer", "swarm"];

impl Spare {
    /// `more`: how the two lend.
    fn new(more: &[&str]) -> Self {
        let [owner, second, third, asking] = [(); 4].map(|()| Machine::new());
        owner.json(&["swarm", "create"]);
        let (first, _) = serve(&owner, "0..15");
        [&second, &third, &asking].into_iter().for_each(|machine| join(&owner, machine));
        let last = [second, third].map(|machine| {
            let (serving, id) = serve_as(&machine, "15..30", more);
            (machine, serving, id)
        });
        wait_until("all offers are known", || {
            let (peers, _) = asking.json(&["peers"]);
            peers["peers"].as_array().is_some_and(|peers| peers.len() == 3)
        });
        Self { _first: (owner, first), last, asking }
    }

    fn ask(&self, tokens: &str) -> Running {
        let model = model();
        let ask = ["run", "--model", &model, "--temperature", "0", "--max-tokens", tokens, "--threads", "1"];
        self.asking.start(&[&ask[..], &OVER, &["--ignore-eos", "--json", "Tell me of the sea."]].concat())
    }

    fn signal_engines(&self, which: usize, signal: &str) {
        children(self.last[which].1.child.id()).into_iter().for_each(|engine| kill(engine, signal));
    }

    /// Both take a session, and do not get as far as to say so. Which of them has one.
    fn ask_stuck(&self, tokens: &str) -> (Running, usize) {
        (0..2).for_each(|which| self.signal_engines(which, "STOP"));
        let asking = self.ask(tokens);
        (asking, self.has_session())
    }

    /// Which of the two has a session, once one has.
    fn has_session(&self) -> usize {
        let mut at = None;
        wait_until("one of them has the session", || {
            at = self.last.iter().position(|(machine, ..)| {
                let (terms, _) = machine.json(&["terms"]);
                terms["lending"]["sessions"].as_array().is_some_and(|sessions| !sessions.is_empty())
            });
            at.is_some()
        });
        at.unwrap()
    }

    /// An answer of `tokens` tokens, all of them over this one of the two.
    fn check(&self, answer: &Value, tokens: usize, over: usize) {
        assert_eq!(answer["tokens"].as_array().map(Vec::len), Some(tokens), "{answer}");
        assert_eq!(answer["route"][1]["peer"].as_str(), Some(self.last[over].2.as_str()), "{answer}");
        // Nothing of it was computed before.
        assert!(answer["resumed"].is_null() && answer["repairs"].is_null(), "{answer}");
    }
}

#[test]
fn a_machine_that_is_killed_costs_a_pause_and_no_token() {
    let spare = Spare::new(&[]);
    let whole = spare.asking.answer("Tell me of the sea.", 160, &[&OVER[..], &["--ignore-eos"]].concat());
    let before: Vec<u64> = spare.last.iter().map(|(_, serving, _)| ticks(serving)).collect();
    let mut answering = spare.ask("160");
    let mut at = None;
    wait_until("the answer is under way", || {
        at = spare.last.iter().zip(&before).position(|((_, serving, _), before)| ticks(serving) >= before + 20);
        at.is_some()
    });
    // The one that it goes over.
    let (_, killed, id) = &spare.last[at.unwrap()];
    killed.signal("KILL");
    let answer: Value = answering.object();
    assert_eq!(answer["tokens"], whole["tokens"], "{answer}");
    assert!(answer["repairs"].as_array().is_some_and(|repairs| repairs.len() == 1), "{answer}");
    assert_ne!(answer["route"][1]["peer"].as_str(), Some(id.as_str()), "{answer}");
    assert!(answer["resumed"].is_null(), "the first machine kept what it held: {answer}");
}

#[test]
fn a_machine_that_is_killed_while_a_session_opens_is_not_the_end_of_it() {
    let spare = Spare::new(&[]);
    let (mut answering, at) = spare.ask_stuck("8");
    spare.last[at].1.signal("KILL");
    spare.signal_engines(1 - at, "CONT");
    spare.check(&answering.object(), 8, 1 - at);
}

#[test]
fn a_machine_that_is_stuck_when_a_session_opens_is_passed_over() {
    let spare = Spare::new(&[]);
    let (mut answering, at) = spare.ask_stuck("8");
    spare.signal_engines(1 - at, "CONT");
    spare.check(&answering.object(), 8, 1 - at);
    spare.signal_engines(at, "CONT");
}

#[test]
fn a_machine_that_is_full_is_passed_over() {
    let spare = Spare::new(&["--caches", "1"]);
    let mut sits = spare.ask("440");
    let full = spare.has_session();
    // Its offer still says that it is free.
    spare.check(&spare.ask("8").object(), 8, 1 - full);
    spare.check(&sits.object(), 440, full);
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
