//! Fixed seeds in every run; more with `make sim`, one with `make sim SEED=0x5eed`.

use std::time::Duration;

use potluck_netem::link::Profile;
use potluck_sim::{Faults, Report, Scenario, World};

/// Seeds of a run that names none.
const SEEDS: u64 = 300;

fn seeds() -> Vec<u64> {
    let read = |name| std::env::var(name).ok().filter(|text: &String| !text.is_empty());
    let number = |text: String| match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).expect("a seed in hexadecimal"),
        None => text.parse().expect("a number"),
    };
    match (read("POTLUCK_SIM_SEED").map(number), read("POTLUCK_SIM_SEEDS").map(number)) {
        (Some(seed), _) => vec![seed],
        (None, count) => (0..count.unwrap_or(SEEDS)).collect(),
    }
}

fn run(scenario: Scenario) -> Report {
    World::new(scenario).run()
}

#[test]
fn calm_seas_finish_every_session() {
    for seed in seeds() {
        let report = run(Scenario::calm(seed));
        assert_eq!((report.finished, report.failed.len()), (4, 0), "seed {seed:#x}: {report:?}");
        assert!(report.tokens >= 4, "seed {seed:#x}");
    }
}

#[test]
fn storms_break_no_promise() {
    let mut total = Report::default();
    for seed in seeds() {
        let report = run(Scenario::stormy(seed));
        total.finished += report.finished;
        total.tokens += report.tokens;
        total.events += report.events;
        total.stale_frames += report.stale_frames;
        report.failed.into_iter().for_each(|(code, count)| *total.failed.entry(code).or_default() += count);
    }
    println!("{total:?}");
    if seeds().len() > 100 {
        // A storm in which nothing happens would prove nothing.
        assert!(total.finished > 100 && total.stale_frames > 10, "{total:?}");
        for code in ["peer_lost", "engine_lost", "busy", "peer_failed"] {
            assert!(total.failed.contains_key(code), "no session ended with {code}: {total:?}");
        }
    }
}

#[test]
fn guesses_change_no_token() {
    for seed in seeds().into_iter().take(100) {
        let report = run(Scenario { drafts: true, ..Scenario::calm(seed) });
        assert_eq!((report.finished, report.failed.len()), (4, 0), "seed {seed:#x}: {report:?}");
        run(Scenario { drafts: true, ..Scenario::stormy(seed) });
    }
}

#[test]
fn a_seed_repeats_everything() {
    for seed in seeds().into_iter().take(20) {
        assert_eq!(run(Scenario::stormy(seed)), run(Scenario::stormy(seed)), "seed {seed:#x}");
    }
}

#[test]
fn twins_are_dropped_and_nothing_else_happens() {
    for seed in seeds().into_iter().take(50) {
        let faults = Faults { twins: 0.3, ..Faults::default() };
        let report = run(Scenario { faults, ..Scenario::calm(seed) });
        assert_eq!((report.finished, report.failed.len()), (4, 0), "seed {seed:#x}: {report:?}");
        assert!(report.stale_frames > 0, "seed {seed:#x}");
    }
}

#[test]
fn a_killed_peer_is_a_loss_that_is_noticed_in_time() {
    let mut lost = 0;
    for seed in seeds().into_iter().take(100) {
        let faults = Faults { kills: 1, ..Faults::default() };
        // Sessions under way when the peer dies: long answers over slow links.
        let (delay, jitter) = (Duration::from_millis(100), Duration::from_millis(100));
        let link = Profile { delay, jitter, ..Profile::default() };
        let report = run(Scenario { faults, link, ..Scenario::calm(seed) });
        assert!(report.failed.keys().all(|code| *code == "peer_lost"), "seed {seed:#x}: {report:?}");
        lost += report.failed.values().sum::<usize>();
    }
    assert!(seeds().len() < 100 || lost > 50, "only {lost} sessions lost a peer: that proves little");
}

#[test]
fn a_peer_whose_engine_came_back_serves_as_before() {
    for seed in seeds().into_iter().take(100) {
        let faults = Faults { engine_losses: 3, freezes: 2, ..Faults::default() };
        let early = run(Scenario { faults, ..Scenario::calm(seed) });
        assert!(early.failed.keys().all(|code| *code == "engine_lost"), "seed {seed:#x}: {early:?}");
        let start = Duration::from_secs(20);
        let late = run(Scenario { faults, start, ..Scenario::calm(seed) });
        assert_eq!((late.finished, late.failed.len()), (4, 0), "seed {seed:#x}: {late:?}");
    }
}
