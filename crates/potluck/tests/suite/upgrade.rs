//! A swarm of two versions, and a machine that changes from one to the other while answers are under way. `make prove-upgrade` has another
//! commit's program for the second version; otherwise both are this one.

use std::{env, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    machine::{Machine, Running, model, wait_until},
    recovery::{join, serve, ticks},
};

const QUESTION: [&str; 11] =
    ["run", "--temperature", "0", "--max-tokens", "200", "--threads", "1", "--context", "512", "--prefer", "swarm"];

/// Starts to ask; the answer comes as an object.
fn ask(machine: &Machine) -> Running {
    let model = model();
    machine.start(
        &[&QUESTION[..], &["--model", &model, "--exact", "--ignore-eos", "--json", "Tell me of the sea."]].concat(),
    )
}

fn answer(machine: &Machine) -> Value {
    let answer = ask(machine).object();
    assert!(answer["tokens"].is_array(), "{answer}");
    answer
}

#[test]
fn a_swarm_of_two_versions_answers_while_a_machine_changes_from_one_to_the_other() {
    let other = env::var_os("POTLUCK_OTHER").map(PathBuf::from);
    if other.is_none() {
        println!("SKIPPED: another version (make prove-upgrade): both are this one");
    }
    let by_other = || other.clone().map_or_else(Machine::new, Machine::with);
    let [owner, asking, spare] = [(); 3].map(|()| Machine::new());
    let (mut old, asking_old) = (by_other(), by_other());
    owner.json(&["swarm", "create"]);
    let (_first, _) = serve(&owner, "0..15");
    [&old, &asking, &asking_old, &spare].into_iter().for_each(|machine| join(&owner, machine));
    let (lending, id) = serve(&old, "15..30");
    let known = |machine: &Machine, count: usize| {
        wait_until("all offers are known", || {
            let (peers, _) = machine.json(&["peers"]);
            peers["peers"].as_array().is_some_and(|peers| peers.len() == count)
        });
    };
    [&asking, &asking_old].into_iter().for_each(|machine| known(machine, 2));
    // Whoever asks, new or old: the same answer over the one and the other.
    let whole = answer(&asking);
    assert_eq!(whole["route"][1]["peer"], json!(id), "{whole}");
    assert_eq!(answer(&asking_old)["tokens"], whole["tokens"]);

    // The old one stops, with an answer under way; a new one is there.
    let (spared, _) = serve(&spare, "15..30");
    [&asking, &asking_old].into_iter().for_each(|machine| known(machine, 3));
    for asks in [&asking, &asking_old] {
        assert_eq!(answer(asks)["tokens"], whole["tokens"]);
    }
    let before = [ticks(&lending), ticks(&spared)];
    let mut under_way = ask(&asking);
    let mut at = None;
    wait_until("the answer is under way", || {
        at = [&lending, &spared].iter().zip(before).position(|(serving, before)| ticks(serving) >= before + 5);
        at.is_some()
    });
    // Whichever it goes over.
    let [used, unused] = if at == Some(0) { [lending, spared] } else { [spared, lending] };
    used.signal("TERM");
    let broken = under_way.object();
    assert_eq!(broken["tokens"], whole["tokens"], "{broken}");
    assert!(!broken["repairs"].is_null() || !broken["resumed"].is_null(), "it was hit: {broken}");
    assert_eq!(used.end().0, Some(0));

    // The machine comes back with this version, as whom it was.
    old.becomes_this_version();
    unused.signal("TERM");
    assert_eq!(unused.end().0, Some(0));
    let (_again, same) = serve(&old, "15..30");
    assert_eq!(same, id);
    for asks in [&asking, &asking_old] {
        wait_until("it is found again", || {
            let (peers, _) = asks.json(&["peers"]);
            peers["peers"].as_array().is_some_and(|peers| peers.iter().any(|peer| peer["peer"] == json!(id)))
        });
        assert_eq!(answer(asks)["tokens"], whole["tokens"]);
    }
}
