//! A machine is given back to its owner while others' sessions are under way on it: they go on elsewhere. `make prove-owner` does it twenty
//! times, and measures.

use std::{
    env, fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    machine::{Machine, Running, children, cpu_ticks, is_alive, model, wait_until},
    recovery::{join, serve, ticks},
};

/// After this it is measured what a machine computes that is given back.
const A_SECOND: Duration = Duration::from_secs(1);

/// How an owner takes a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `potluck pause`.
    Pauses,
    /// The process is told to end.
    Ends,
}

/// Four machines: one that lends the first half, two that lend the second, and one that asks.
struct Swarm {
    asking: Machine,
    lenders: Vec<Machine>,
    lending: Vec<(Running, String)>,
    _first: (Machine, Running),
}

impl Swarm {
    fn new() -> Self {
        let [owner, second, third, asking] = [(); 4].map(|()| Machine::new());
        owner.json(&["swarm", "create"]);
        let (first, _) = serve(&owner, "0..15");
        [&second, &third, &asking].into_iter().for_each(|machine| join(&owner, machine));
        let lenders = vec![second, third];
        let lending = lenders.iter().map(|machine| serve(machine, "15..30")).collect();
        Self { asking, lenders, lending, _first: (owner, first) }
    }

    fn wait_until_all_lend(&self) {
        wait_until("all offers are known", || {
            let (peers, _) = self.asking.json(&["peers"]);
            peers["peers"].as_array().is_some_and(|peers| peers.len() == 3)
        });
    }

    fn ask(&self) -> Running {
        let model = model();
        let ask = ["run", "--model", &model, "--temperature", "0", "--max-tokens", "300", "--threads", "1"];
        let over =
            ["--context", "512", "--exact", "--prefer", "swarm", "--ignore-eos", "--json", "Tell me of the sea."];
        self.asking.start(&[&ask[..], &over].concat())
    }

    /// An answer that is under way, and which of the two lenders it goes over.
    fn under_way(&self) -> (Running, usize) {
        let ticks = || self.lending.iter().map(|(serving, _)| ticks(serving)).collect::<Vec<_>>();
        let before = ticks();
        let answering = self.ask();
        let mut at = None;
        wait_until("the answer is under way", || {
            at = ticks().iter().zip(&before).position(|(now, before)| *now >= before + 10);
            at.is_some()
        });
        (answering, at.unwrap())
    }
}

#[test]
fn a_machine_that_its_owner_takes_hands_its_sessions_over() {
    let Some(out) = env::var_os("POTLUCK_PROVE_OWNER") else {
        for trial in taken(&[Way::Pauses, Way::Ends]) {
            println!("{trial}");
        }
        return;
    };
    let trials = taken(&[Way::Pauses; 20]);
    let commit = env::var("POTLUCK_COMMIT").unwrap_or_default();
    let report = json!({ "command": "make prove-owner", "commit": commit, "trials": trials });
    fs::write(Path::new(&out), format!("{report:#}\n")).unwrap();
    let is_quick = |trial: &Value| {
        let within = |name: &str| trial[name].as_u64().is_some_and(|ms| ms < 1_000);
        within("gave_back_ms") && within("engine_gone_ms") && trial["cpu_per_cent_then"].as_u64() < Some(5)
    };
    assert!(trials.iter().all(is_quick), "{report:#}");
}

/// What came of each.
fn taken(ways: &[Way]) -> Vec<Value> {
    let mut swarm = Swarm::new();
    swarm.wait_until_all_lend();
    let whole: Value = swarm.ask().object();
    assert_eq!(whole["tokens"].as_array().map(Vec::len), Some(300), "{whole}");
    let mut trials = Vec::new();
    for way in ways {
        let (mut answering, at) = swarm.under_way();
        let (machine, (serving, id)) = (&swarm.lenders[at], &mut swarm.lending[at]);
        let engines = children(serving.child.id());
        assert!(!engines.is_empty() && engines.iter().all(|engine| is_alive(*engine)));
        let begun = Instant::now();
        let mut trial = json!({});
        match way {
            Way::Pauses => {
                let (paused, code) = machine.json(&["pause"]);
                assert_eq!((code, &paused["paused"]), (0, &json!(true)), "{paused}");
                trial["gave_back_ms"] = paused["gave_back_ms"].clone();
                assert!(paused["gave_back_ms"].is_u64(), "{paused}");
            }
            Way::Ends => serving.signal("TERM"),
        }
        wait_until("the engine is gone, and its memory with it", || engines.iter().all(|engine| !is_alive(*engine)));
        trial["engine_gone_ms"] = json!(begun.elapsed().as_millis() as u64);
        if *way == Way::Pauses && env::var_os("POTLUCK_PROVE_OWNER").is_some() {
            let before = cpu_ticks(serving.child.id());
            thread::park_timeout(A_SECOND);
            trial["cpu_per_cent_then"] = json!(cpu_ticks(serving.child.id()) - before);
        }
        let answer = answering.object();
        assert_eq!(answer["tokens"], whole["tokens"], "{answer}");
        assert_ne!(answer["route"][1]["peer"], json!(id), "{answer}");
        let repairs = answer["repairs"].as_array().unwrap();
        assert!(repairs.len() == 1 && answer["resumed"].is_null(), "the rest kept what it held: {answer}");
        trial["handed_over"] = repairs[0]["stood_by"].clone();
        // There are five seconds for it, not half a one.
        assert!(*way == Way::Pauses || repairs[0]["stood_by"] == json!(true), "{answer}");
        trial["longest_pause_s"] = answer["longest_pause_s"].clone();
        match way {
            Way::Pauses => {
                let (terms, _) = machine.json(&["terms"]);
                assert_eq!(terms["lending"]["reason"]["code"], json!("paused"), "{terms}");
                machine.json(&["resume"]);
                // It is lent as before, and says so.
                assert_eq!(serving.object()["reason"], json!("paused"));
                assert_eq!(serving.object()["id"], json!(id));
            }
            Way::Ends => {
                assert_eq!(swarm.lending.remove(at).0.end().0, Some(0));
                swarm.lending.insert(at, serve(&swarm.lenders[at], "15..30"));
            }
        }
        swarm.wait_until_all_lend();
        trials.push(trial);
    }
    trials
}

#[test]
fn what_is_lent_and_on_which_terms_is_told() {
    let machine = Machine::new();
    machine.json(&["swarm", "create"]);
    let (terms, code) =
        machine.json(&["terms", "--idle", "1h", "--hours", "22-7", "--battery", "never", "--cores", "1"]);
    assert_eq!((code, &terms["lending"]), (0, &Value::Null), "{terms}");
    assert_eq!(terms["terms"]["hours"], json!(["22:00-07:00"]), "{terms}");
    // What is in no terms does not hinder.
    let (terms, _) = machine.json(&["terms", "--preset", "always"]);
    assert_eq!(terms["terms"]["idle_s"], Value::Null, "{terms}");
    let (paused, code) = machine.json(&["pause", "--for", "2h"]);
    assert_eq!((code, &paused["gave_back_ms"]), (0, &Value::Null), "{paused}");
    // It starts, and lends nothing until it is told to.
    let model = model();
    let lend = ["serve", "--model", &model, "--layers", "0..2", "--bind", "127.0.0.1:0", "--threads", "1", "--json"];
    let mut serving = machine.start(&lend);
    let first = serving.object();
    assert_eq!((&first["lends"], &first["reason"]), (&json!(false), &json!("paused")), "{first}");
    assert!(children(serving.child.id()).is_empty(), "nothing is loaded");
    let (resumed, code) = machine.json(&["resume"]);
    assert_eq!(code, 0, "{resumed}");
    assert!(serving.object()["id"].is_string());
    wait_until("it is said what is lent", || {
        let (terms, _) = machine.json(&["terms"]);
        terms["lending"]["lends"]["layers"] == json!([0, 2])
    });
    // Whoever ends what lends nothing has nothing to wait for, and did nothing wrong.
    machine.json(&["pause"]);
    assert_eq!(serving.object()["reason"], json!("paused"));
    serving.signal("TERM");
    assert_eq!(serving.end().0, Some(0));
}

#[test]
fn no_more_is_computed_and_sent_than_its_owner_allows() {
    let [owner, asking, pulling] = [(); 3].map(|()| Machine::new());
    owner.json(&["swarm", "create"]);
    let (terms, code) = owner.json(&["terms", "--share", "20", "--upload", "100Mbit"]);
    assert_eq!((code, &terms["terms"]["upload"]), (0, &json!(12_500_000)), "{terms}");
    let (lending, _) = serve(&owner, "0..30");
    [&asking, &pulling].into_iter().for_each(|machine| join(&owner, machine));
    wait_until("the offer is known", || {
        let (peers, _) = asking.json(&["peers"]);
        // Of eight caches it lends its share.
        peers["peers"].as_array().is_some_and(|peers| peers.len() == 1) && peers["peers"][0]["free_caches"] == 1
    });
    // What the engine computes takes a fifth of the time at most, whatever else the time goes on.
    let (before, begun) = (ticks(&lending), Instant::now());
    let more = ["--prefer", "swarm", "--context", "512", "--exact", "--ignore-eos"];
    let answer = asking.answer("Tell me of the sea.", 96, &more);
    let (computed, passed) = (Duration::from_millis(10 * (ticks(&lending) - before)), begun.elapsed());
    assert_eq!(answer["route"].as_array().map(Vec::len), Some(1), "{answer}");
    assert!(computed >= Duration::from_millis(200), "it has computed: {computed:?}");
    assert!(computed <= passed / 4, "{computed:?} of {passed:?}");
    // And what is sent takes as long as it must.
    let (models, _) = owner.json(&["model", "list"]);
    let begun = Instant::now();
    let (pulled, code) = pulling.json(&["model", "pull", models["models"][0]["name"].as_str().unwrap()]);
    assert_eq!((code, &pulled["held_bytes"]), (0, &pulled["bytes"]), "{pulled}");
    let received = pulled["received_bytes"].as_f64().unwrap();
    assert!(received > 5e7, "{pulled}");
    // All but what may go at once, a fiftieth of a second's.
    assert!(begun.elapsed().as_secs_f64() >= received / 12.5e6 - 0.02, "{:?}: {pulled}", begun.elapsed());
}
