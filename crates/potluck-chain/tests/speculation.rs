//! The controller of drafts, over made-up chains and texts in virtual time: never much slower than no drafts, and faster where there is
//! something to gain.

#[allow(dead_code, unreachable_pub, reason = "the example prints more of it")]
mod virtual_time;

use potluck_chain::draft::Controller;
use virtual_time::{
    Outcome, Policy, answer,
    machine::{Device, Setting},
    run,
    text::Kind,
};

const TOKENS: usize = 2_000;

/// Answers that follow one another in a conversation, and tokens of each.
const ANSWERS: u64 = 40;
const SHORT: usize = 48;

/// What may be lost before anything is known, in plain steps.
const START: f64 = 8.0;

/// Texts of which nothing may be lost that matters.
const KINDS: [Kind; 4] = [
    Kind::novel("novel 0.35", 0.35),
    Kind::novel("novel 0.92", 0.92),
    Kind::copying("mixed", 40.0, 80.0),
    Kind { boasts: true, ..Kind::novel("boaster 0.05", 0.05) },
];

/// Seconds on lines, and forwards of the draft model in plain steps.
const COSTS: [(f64, f64); 4] = [(0.0, 1.0), (0.0, 0.1), (0.05, 0.5), (0.2, 1.0)];

fn setting(device: Device, lines: f64, draft: f64) -> Setting {
    Setting { device, lines, draft, noise: 0.2, drift: 1.0 }
}

fn both(kind: Kind, setting: Setting, seed: u64) -> (Outcome, Outcome) {
    let outcome = |policy| run(kind, setting, policy, seed, TOKENS);
    (outcome(Policy::PLAIN), outcome(Policy::Controlled))
}

#[test]
fn never_more_than_two_per_cent_slower_than_none() {
    for kind in KINDS {
        for device in [Device::Cpu, Device::Gpu] {
            for (lines, draft) in COSTS {
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

/// What the controller may lose before it knows anything, in plain steps: as it says itself after the first.
fn allowance() -> f64 {
    let mut controller = Controller::default();
    controller.plan(&[], true);
    controller.traversed(1, 1.0);
    controller.allowance() / controller.plain_step()
}

#[test]
fn nor_are_short_answers_in_a_row_all_together() {
    // Once for all of them: the controller that one leaves behind goes on in the next, as in a conversation.
    let start = allowance();
    assert!((start - 6.0).abs() < 1e-6, "{start} plain steps");
    for kind in KINDS {
        for device in [Device::Cpu, Device::Gpu] {
            for (lines, draft) in COSTS {
                for row in 1..=3 {
                    let setting = setting(device, lines, draft);
                    let (mut controller, mut plain, mut spent, mut tokens) = (Controller::default(), 0.0, 0.0, 0);
                    for seed in (0..ANSWERS).map(|number| row * ANSWERS + number) {
                        let alone = run(kind, setting, Policy::PLAIN, seed, SHORT);
                        let drafted = answer(&mut controller, kind, setting, Policy::Controlled, seed, SHORT);
                        // The last step may bring more than was asked for.
                        plain += drafted.tokens as f64 / alone.rate();
                        spent += drafted.seconds;
                        tokens += drafted.tokens;
                    }
                    let most = 1.02 * plain + start * plain / tokens as f64;
                    let what = format!("{} {setting:?}, row {row}", kind.name);
                    assert!(spent <= most, "{what}: {spent} s instead of {plain}, for {tokens} tokens");
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
