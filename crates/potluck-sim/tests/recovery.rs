//! Sessions that outlive their peers: no token is lost, changed or given twice (the toy stages would tell), and only who took a lost
//! peer's place computes anything again.

use std::time::Duration;

use potluck_netem::link::Profile;
use potluck_sim::{Faults, Report, Scenario, World};

/// Seeds of a run.
const SEEDS: u64 = 200;

/// Three stages, two peers for each, and links slow enough that sessions are under way when something happens.
fn scenario(seed: u64, faults: Faults) -> Scenario {
    let delay = Duration::from_millis(60);
    let link = Profile { delay, jitter: delay / 2, ..Profile::default() };
    Scenario { peers: 6, recovers: true, link, faults, ..Scenario::calm(seed) }
}

/// Over all seeds, with guesses in flight or without.
fn total(faults: Faults, drafts: bool) -> Report {
    let mut total = Report::default();
    for seed in 0..SEEDS {
        let report = World::new(Scenario { drafts, ..scenario(seed, faults) }).run();
        total.finished += report.finished;
        total.tokens += report.tokens;
        total.repairs += report.repairs;
        total.computed_again += report.computed_again;
        total.failed_under_way += report.failed_under_way;
        report.failed.into_iter().for_each(|(code, count)| *total.failed.entry(code).or_default() += count);
    }
    println!("{total:?}");
    let ended = total.finished + total.failed.values().sum::<usize>();
    assert_eq!((ended, total.failed_under_way), (4 * SEEDS as usize, 0), "who was under way goes on: {total:?}");
    total
}

#[test]
fn a_killed_peer_costs_no_session() {
    let total = total(Faults { kills: 1, ..Faults::default() }, false);
    // Who loses a peer while the route is still opening is told so.
    assert!(total.failed.keys().all(|code| *code == "peer_lost") && total.computed_again > 0, "{total:?}");
    assert!(total.repairs > 80, "{total:?}");
}

#[test]
fn a_cut_connection_costs_no_session() {
    let total = total(Faults { cuts: 3, ..Faults::default() }, false);
    assert!(total.repairs > 80, "{total:?}");
}

#[test]
fn an_engine_that_is_lost_costs_no_session() {
    let total = total(Faults { engine_losses: 2, ..Faults::default() }, false);
    assert!(total.repairs > 80, "{total:?}");
}

#[test]
fn guesses_in_flight_are_lost_and_made_again_like_anything_else() {
    let faults = Faults { kills: 1, engine_losses: 1, cuts: 1, ..Faults::default() };
    let total = total(faults, true);
    assert!(total.repairs > 100, "{total:?}");
}

#[test]
fn storms_break_no_promise_while_sessions_recover() {
    let mut total = Report::default();
    for seed in 0..SEEDS {
        let report = World::new(Scenario { recovers: true, drafts: seed % 2 == 0, ..Scenario::stormy(seed) }).run();
        total.finished += report.finished;
        total.repairs += report.repairs;
        report.failed.into_iter().for_each(|(code, count)| *total.failed.entry(code).or_default() += count);
    }
    println!("{total:?}");
    assert!(total.repairs > 50, "{total:?}");
}
