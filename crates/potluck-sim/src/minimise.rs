//! From a run that breaks a promise to a smaller one that breaks the same.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Faults, Line, Report, Scenario, World};

/// Runs that the search may take.
const RUNS_MAX: usize = 400;

/// Seeds that are tried of each smaller scenario: what is left of its chances falls differently.
const SEEDS: u64 = 4;

/// A run that broke a promise.
#[derive(Debug, Clone, PartialEq)]
pub struct Failed {
    /// What repeats it.
    pub scenario: Scenario,
    /// What was broken.
    pub message: String,
}

impl Failed {
    /// The promise, without what differs from run to run.
    fn promise(&self) -> &str {
        let promise = self.message.strip_prefix("broken promise: ").unwrap_or(&self.message);
        promise.split(|c: char| c.is_ascii_digit() || ":,".contains(c)).next().unwrap_or_default()
    }
}

/// Runs it, and catches the panic of a promise that is broken.
///
/// # Errors
/// What broke.
pub fn tried(scenario: &Scenario) -> Result<Report, Box<Failed>> {
    let run = || World::new(scenario.clone()).run();
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Box::new(Failed { scenario: scenario.clone(), message: text.unwrap_or_default() })
    })
}

/// The smallest run that was found to break the same promise: fewer faults, sessions, peers and stages, as long as that goes.
pub fn minimised(failed: Failed) -> Failed {
    let mut smallest = failed;
    let mut runs = 0;
    loop {
        let candidates = smaller(&smallest.scenario).into_iter();
        let seeded = candidates.flat_map(|scenario| {
            (0..SEEDS).map(move |more| Scenario { seed: scenario.seed + more, ..scenario.clone() })
        });
        let mut found = None;
        for scenario in seeded {
            runs += 1;
            if runs > RUNS_MAX {
                return smallest;
            }
            if let Err(failed) = tried(&scenario)
                && failed.promise() == smallest.promise()
            {
                found = Some(*failed);
                break;
            }
        }
        match found {
            Some(found) => smallest = found,
            None => return smallest,
        }
    }
}

/// Scenarios in each of which one thing is less. Those that take away most come first.
fn smaller(scenario: &Scenario) -> Vec<Scenario> {
    let mut out: Vec<Scenario> = Vec::new();
    let mut less = |change: &dyn Fn(&mut Scenario)| {
        let mut candidate = scenario.clone();
        change(&mut candidate);
        if candidate != *scenario && !out.contains(&candidate) {
            out.push(candidate);
        }
    };
    for sessions in [1, scenario.sessions / 2, scenario.sessions - 1] {
        less(&|s| s.sessions = sessions.max(1));
    }
    let counts: [fn(&mut Faults) -> &mut usize; 12] = [
        |f| &mut f.kills,
        |f| &mut f.restarts,
        |f| &mut f.drains,
        |f| &mut f.engine_losses,
        |f| &mut f.freezes,
        |f| &mut f.naps,
        |f| &mut f.slows,
        |f| &mut f.cuts,
        |f| &mut f.flaps,
        |f| &mut f.partitions,
        |f| &mut f.outages,
        |f| &mut f.leaves,
    ];
    for count in counts {
        less(&|s| *count(&mut s.faults) = 0);
        less(&|s| *count(&mut s.faults) /= 2);
        less(&|s| *count(&mut s.faults) = count(&mut s.faults).saturating_sub(1));
    }
    let chances: [fn(&mut Faults) -> &mut f64; 4] =
        [|f| &mut f.twins, |f| &mut f.drops, |f| &mut f.swaps, |f| &mut f.flips];
    for chance in chances {
        less(&|s| *chance(&mut s.faults) = 0.0);
    }
    less(&|s| s.faults.skew_s = 0);
    less(&|s| s.shares = false);
    less(&|s| s.parks = false);
    less(&|s| s.standbys = false);
    less(&|s| s.drafts = false);
    less(&|s| s.longest = (s.longest / 2).max(1));
    less(&|s| s.exact = s.exact.or(Some(true)));
    less(&|s| s.returns = 0);
    less(&|s| s.line = Line { jitter_lasts_ms: 0, rate: None, ..s.line });
    less(&|s| s.line = Line { jitter_ms: 0, ..s.line });
    // Where all are to survive, each stage has another peer.
    let each = scenario.peers / scenario.stages;
    let least = if scenario.survives { 2 } else { 1 };
    less(&|s| s.peers = s.stages * (each / 2).max(least).min(each));
    less(&|s| s.peers = s.stages * each.saturating_sub(1).max(least).min(each));
    for stages in [1, scenario.stages / 2, scenario.stages - 1] {
        less(&|s| {
            let stages = stages.max(1);
            (s.stages, s.peers, s.layers) = (stages, stages * each, s.layers.max(stages as u32));
        });
    }
    less(&|s| s.layers = s.stages as u32);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_smaller_is_no_other_kind_of_run() {
        let weather = Scenario { sessions: 1, ..Scenario::weather(3) };
        for scenario in smaller(&weather) {
            assert!(scenario.peers >= 2 * scenario.stages && scenario.peers.is_multiple_of(scenario.stages));
            assert!(scenario.layers as usize >= scenario.stages && scenario.sessions == 1);
        }
        let calm = Scenario { sessions: 1, stages: 1, peers: 1, layers: 1, ..Scenario::calm(3) };
        let calm = Scenario { line: Line { jitter_ms: 0, ..calm.line }, ..calm };
        let calm = Scenario { exact: Some(true), longest: 1, ..calm };
        assert_eq!(smaller(&calm), Vec::<Scenario>::new());
    }

    #[test]
    fn a_run_that_breaks_a_promise_becomes_a_small_one_that_does() {
        // One peer for each stage, none of which may be lost: that cannot be kept.
        let impossible = Scenario { survives: true, peers: 3, ..Scenario::stormy(0) };
        let faults = Faults { kills: 2, cuts: 3, twins: 0.01, ..Faults::default() };
        let impossible = Scenario { stages: 3, layers: 6, sessions: 6, line: Line::up_to(200), faults, ..impossible };
        let failed = (0..50).find_map(|seed| tried(&Scenario { seed, ..impossible.clone() }).err()).unwrap();
        let small = minimised(*failed.clone());
        assert!(small.message.contains("no session that is under way is lost"), "{}", small.message);
        assert_eq!((small.scenario.sessions, small.scenario.faults.twins), (1, 0.0), "{small:?}");
        let faults = small.scenario.faults;
        assert_eq!(faults.kills + faults.cuts, 1, "one fault is enough: {faults:?}");
        assert_eq!(tried(&small.scenario).unwrap_err().message, small.message);
    }
}
