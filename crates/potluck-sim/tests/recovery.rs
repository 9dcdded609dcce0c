//! Sessions that outlive their peers: no token is lost, changed or given twice (the toy stages would tell), and only who took a lost
//! peer's place computes anything again.

use potluck_sim::{Faults, Kind, Line, Report, Scenario, World};

/// Seeds of a run.
const SEEDS: u64 = 200;

/// Three stages, two peers for each, and links slow enough that sessions are under way when something happens.
fn scenario(seed: u64, faults: Faults) -> Scenario {
    let line = Line { delay_ms: 60, jitter_ms: 30, ..Line::default() };
    Scenario { peers: 6, recovers: true, line, faults, ..Scenario::calm(seed) }
}

/// Over all seeds, with guesses in flight or without.
fn total(faults: Faults, drafts: bool) -> Report {
    let mut total = Report::default();
    for seed in 0..SEEDS {
        total.add(World::new(Scenario { drafts, ..scenario(seed, faults) }).run());
    }
    println!("{total:?}");
    assert_eq!(
        (total.ended(), total.failed_under_way),
        (4 * SEEDS as usize, 0),
        "who was under way goes on: {total:?}"
    );
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
fn a_client_that_was_cut_off_goes_on_where_it_was() {
    // Those who guess ahead are done sooner.
    for (drafts, returned) in [(false, 150), (true, 60)] {
        let total = total(Faults { outages: 4, ..Faults::default() }, drafts);
        assert!(total.returned > returned, "{total:?}");
    }
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
    (0..SEEDS).for_each(|seed| total.add(World::new(Kind::Recovery.scenario(seed)).run()));
    println!("{total:?}");
    assert!(total.repairs > 50, "{total:?}");
}

#[test]
fn what_need_not_be_exact_is_merged_when_it_is_sent_again() {
    let total = |exact: bool| {
        let faults = Faults { kills: 1, ..Faults::default() };
        let mut total = Report::default();
        for seed in 0..SEEDS {
            let kept = Scenario { exact: Some(exact), longest: 120, ..scenario(seed, faults) };
            total.add(World::new(Scenario { line: Line::up_to(30), ..kept }).run());
        }
        println!("{total:?}");
        assert_eq!(total.failed_under_way, 0, "{total:?}");
        total.replayed
    };
    let (steps, positions) = total(true);
    let (merged, same) = total(false);
    assert!(merged * 3 < steps * 2, "{merged} steps instead of {steps}");
    // Of what users took back nothing is sent.
    assert!(same > 0 && same <= positions, "{same} positions instead of {positions}");
}

#[test]
fn whoever_stands_by_takes_a_lost_peers_place() {
    let mut total = Report::default();
    for seed in 0..SEEDS {
        let faults = Faults { kills: 1, cuts: 1, ..Faults::default() };
        let longest = if seed % 2 == 0 { 24 } else { 120 };
        let scenario = Scenario { peers: 9, caches: 8, standbys: true, longest, ..scenario(seed, faults) };
        total.add(World::new(Scenario { drafts: seed % 3 == 0, ..scenario }).run());
    }
    println!("{total:?}");
    assert_eq!((total.ended(), total.failed_under_way), (4 * SEEDS as usize, 0), "{total:?}");
    assert!(total.standbys > 800 && total.promoted > 80, "{total:?}");
}

#[test]
fn whoever_leaves_with_a_word_is_followed_while_it_is_there() {
    let mut total = Report::default();
    for seed in 0..SEEDS {
        let faults = Faults { drains: 1, ..Faults::default() };
        let scenario = Scenario { caches: 8, longest: 120, drafts: seed % 2 == 0, ..scenario(seed, faults) };
        total.add(World::new(scenario).run());
    }
    println!("{total:?}");
    assert_eq!((total.ended(), total.failed_under_way), (4 * SEEDS as usize, 0), "{total:?}");
    // Some go sooner than another can be found, and are lost like anybody.
    assert!(total.handed_over > 100 && total.left_behind * 5 < total.handed_over, "{total:?}");
}

#[test]
fn weather_costs_no_session_that_is_under_way() {
    let mut total = Report::default();
    (0..SEEDS).for_each(|seed| total.add(World::new(Kind::Weather.scenario(seed)).run()));
    println!("{total:?}");
    assert!(total.repairs > 150 && total.failed_under_way == 0, "{total:?}");
}

#[test]
fn a_session_that_was_put_aside_goes_on_with_what_was_kept_or_without() {
    let faults = Faults { restarts: 1, engine_losses: 1, cuts: 1, ..Faults::default() };
    for drafts in [false, true] {
        let mut total = Report::default();
        for seed in 0..SEEDS {
            let parks = Scenario { parks: true, longest: 60, drafts, ..scenario(seed, faults) };
            total.add(World::new(parks).run());
        }
        println!("{total:?}");
        assert!(total.parked > 200 && total.taken_up > 100, "{total:?}");
        assert!(total.taken_up < total.parked, "now and then a disk fails, or a machine: {total:?}");
    }
}
