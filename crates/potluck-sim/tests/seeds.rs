//! Fixed seeds in every run; more with `make sim`, one with `make sim SEED=0x5eed`.

use potluck_sim::{Faults, Kind, Line, Report, Scenario, World};

/// Seeds of a run.
const SEEDS: u64 = 300;

fn run(scenario: Scenario) -> Report {
    World::new(scenario).run()
}

#[test]
fn calm_seas_finish_every_session() {
    for seed in 0..SEEDS {
        let report = run(Scenario::calm(seed));
        assert_eq!((report.finished, report.failed.len()), (4, 0), "seed {seed:#x}: {report:?}");
        assert!(report.tokens >= 4, "seed {seed:#x}");
    }
}

#[test]
fn storms_break_no_promise() {
    let mut total = Report::default();
    for seed in 0..SEEDS {
        total.add(run(Scenario::stormy(seed)));
    }
    println!("{total:?}");
    // A storm in which nothing happens would prove nothing.
    assert!(total.finished > 100 && total.left > 10 && total.stale_frames > 10, "{total:?}");
    for code in ["peer_lost", "engine_lost", "busy", "peer_failed"] {
        assert!(total.failed.contains_key(code), "no session ended with {code}: {total:?}");
    }
}

#[test]
fn guesses_change_no_token() {
    for seed in 0..100 {
        let report = run(Scenario { drafts: true, ..Scenario::calm(seed) });
        assert_eq!((report.finished, report.failed.len()), (4, 0), "seed {seed:#x}: {report:?}");
        run(Scenario { drafts: true, ..Scenario::stormy(seed) });
    }
}

#[test]
fn a_seed_repeats_everything() {
    for kind in Kind::ALL {
        let seeds = match kind {
            Kind::Crowd => 1,
            // Some hours of one are below.
            Kind::Day => 0,
            _ => 20,
        };
        for seed in 0..seeds {
            assert_eq!(run(kind.scenario(seed)), run(kind.scenario(seed)), "{} {seed:#x}", kind.name());
        }
    }
}

#[test]
fn twins_are_dropped_and_nothing_else_happens() {
    for seed in 0..50 {
        let faults = Faults { twins: 0.3, ..Faults::default() };
        let report = run(Scenario { faults, ..Scenario::calm(seed) });
        assert_eq!((report.finished, report.failed.len()), (4, 0), "seed {seed:#x}: {report:?}");
        assert!(report.stale_frames > 0, "seed {seed:#x}");
    }
}

#[test]
fn a_killed_peer_is_a_loss_that_is_noticed_in_time() {
    let mut lost = 0;
    for seed in 0..100 {
        let faults = Faults { kills: 1, ..Faults::default() };
        // Sessions under way when the peer dies: long answers over slow links.
        let report = run(Scenario { faults, line: Line::up_to(200), ..Scenario::calm(seed) });
        assert!(report.failed.keys().all(|code| *code == "peer_lost"), "seed {seed:#x}: {report:?}");
        lost += report.failed.values().sum::<usize>();
    }
    assert!(lost > 50, "only {lost} sessions lost a peer: that proves little");
}

#[test]
fn a_peer_whose_engine_came_back_serves_as_before() {
    for seed in 0..100 {
        let faults = Faults { engine_losses: 3, naps: 2, ..Faults::default() };
        let early = run(Scenario { faults, ..Scenario::calm(seed) });
        assert!(early.failed.keys().all(|code| *code == "engine_lost"), "seed {seed:#x}: {early:?}");
        let faults = Faults { restarts: 1, freezes: 2, partitions: 1, ..faults };
        let late = run(Scenario { faults, start_ms: 20_000, ..Scenario::calm(seed) });
        assert_eq!((late.finished, late.failed.len()), (4, 0), "seed {seed:#x}: {late:?}");
    }
}

#[test]
fn crowds_break_no_promise() {
    let report = run(Kind::Crowd.scenario(0));
    println!("{report:?}");
    assert!(report.finished > 700 && report.repairs > 30 && report.left > 10, "{report:?}");
    assert_eq!((report.ended(), report.failed_under_way), (1_000, 0), "{report:?}");
}

#[test]
fn a_day_leaves_nothing_behind() {
    let hours = 3;
    let faults = |faults: usize| faults * hours as usize / 24;
    let day = Kind::Day.scenario(0);
    let Faults { restarts, drains, engine_losses, freezes, slows, cuts, flaps, partitions, outages, leaves, .. } =
        day.faults;
    let [restarts, drains, engine_losses, freezes, slows] =
        [restarts, drains, engine_losses, freezes, slows].map(faults);
    let [cuts, flaps, partitions, outages, leaves] = [cuts, flaps, partitions, outages, leaves].map(faults);
    let all = Faults {
        restarts,
        drains,
        engine_losses,
        freezes,
        slows,
        cuts,
        flaps,
        partitions,
        outages,
        leaves,
        ..Faults::default()
    };
    let hours = || Scenario { hours, sessions: faults(day.sessions), faults: all, ..day.clone() };
    let report = run(hours());
    println!("{report:?}");
    assert_eq!(report, run(hours()));
    assert!(report.repairs > 50 && report.handed_over > 5 && report.finished > 100, "{report:?}");
}
