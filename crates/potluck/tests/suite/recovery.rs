//! A machine of a swarm is killed in the midst of an answer: another takes its place, and whoever reads along sees a pause.

use serde_json::Value;

use crate::machine::{Machine, Running, children, cpu_ticks, model, wait_until};

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
