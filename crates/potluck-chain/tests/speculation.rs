//! The controller of drafts, over made-up chains and texts in virtual time: never much slower than no drafts, and faster where there is
//! something to gain.

#[allow(dead_code, unreachable_pub, reason = "the example prints more of it")]
mod virtual_time;

use virtual_time::{
    Outcome, Policy,
    machine::{Device, Setting},
    run,
    text::Kind,
};

const TOKENS: usize = 2_000;

/// What may be lost before anything is known, in plain steps.
const START: f64 = 8.0;

fn setting(device: Device, lines: f64, draft: f64) -> Setting {
    Setting { device, lines, draft, noise: 0.2, drift: 1.0 }
}

fn both(kind: Kind, setting: Setting, seed: u64) -> (Outcome, Outcome) {
    let outcome = |policy| run(kind, setting, policy, seed, TOKENS);
    (outcome(Policy::PLAIN), outcome(Policy::Controlled))
}

#[test]
fn never_more_than_two_per_cent_slower_than_none() {
    let kinds = [
        Kind::novel("novel 0.35", 0.35),
        Kind::novel("novel 0.92", 0.92),
        Kind::copying("mixed", 40.0, 80.0),
        Kind { boasts: true, ..Kind::novel("boaster 0.05", 0.05) },
    ];
    for kind in kinds {
        for device in [Device::Cpu, Device::Gpu] {
            for (lines, draft) in [(0.0, 1.0), (0.0, 0.1), (0.05, 0.5), (0.2, 1.0)] {
                // Where all costs double while it runs, what a plain step takes is known late.
                for (drift, limit) in [(1.0, 1.02), (2.0, 1.06)] {
                    let setting = Setting { drift, ..setting(device, lines, draft) };
                    let (plain, controlled) = both(kind, setting, 7);
                    let step = plain.seconds / plain.tokens as f64;
                    let most = limit * plain.seconds + START * step;
                    let what = format!("{} {setting:?}", kind.name);
                    assert!(
                        controlled.seconds <= most,
                        "{what}: {} s instead of {}",
                        controlled.seconds,
                        plain.seconds
                    );
                }
            }
        }
    }
}

#[test]
fn what_there_is_to_gain_is_gained() {
    let gains = |kind, setting| {
        let (plain, controlled) = both(kind, setting, 11);
        controlled.rate() / plain.rate()
    };
    let copying = Kind::copying("copying", 160.0, 12.0);
    assert!(gains(copying, setting(Device::Cpu, 0.1, 0.1)) > 4.0);
    assert!(gains(copying, setting(Device::Gpu, 0.1, 0.1)) > 8.0);
    let (alike, unlike) = (Kind::novel("novel 0.92", 0.92), Kind::novel("novel 0.35", 0.35));
    assert!(gains(alike, setting(Device::Cpu, 0.1, 0.1)) > 2.0);
    assert!(gains(unlike, setting(Device::Gpu, 0.1, 0.05)) > 1.4);
    assert!(gains(alike, setting(Device::Gpu, 0.1, 0.1)) > gains(unlike, setting(Device::Gpu, 0.1, 0.1)));
}

#[test]
fn text_that_repeats_goes_deep_and_new_text_goes_wide() {
    let outcome = |kind| run(kind, setting(Device::Gpu, 0.1, 0.05), Policy::Controlled, 5, TOKENS);
    let (copied, new) = (outcome(Kind::copying("copying", 160.0, 12.0)), outcome(Kind::novel("novel 0.35", 0.35)));
    let of_rounds =
        |outcome: Outcome, count: usize| count as f64 / (outcome.plain + outcome.looked_up + outcome.modelled) as f64;
    let (deep, not) = (of_rounds(copied, copied.behind), of_rounds(new, new.behind));
    assert!(deep > 2.0 * not, "windows behind others, a round: {deep} and {not}");
    let (wide, not) = (of_rounds(new, new.trees), of_rounds(copied, copied.trees));
    assert!(wide > 1.5 * not, "trees, a round: {wide} and {not}");
}

#[test]
fn the_same_inputs_are_decided_alike() {
    let kind = Kind::copying("mixed", 40.0, 80.0);
    let outcome = |seed| run(kind, setting(Device::Cpu, 0.05, 0.3), Policy::Controlled, seed, 500);
    assert_eq!(outcome(3), outcome(3));
    assert_ne!(outcome(3), outcome(4));
}
