//! Tests of where pooling stops paying: predictions follow what they rest on, and what is faster alone runs alone.

use potluck_core::LayerRange;
use proptest::prelude::*;

use super::{
    tests::{instance, latency, machine, model, peer, serving, strict, text, wish},
    *,
};

const MIB: u64 = 1 << 20;

/// The least time of a token that a plan has seen, for any number of stages.
fn fastest(model: &ModelFacts, machines: &[Machine], wish: &Wish) -> Option<f64> {
    let preview = plan(model, machines, wish).ok()?;
    let others = preview.alternatives.iter().map(|other| other.decode_tokens_per_s);
    Some(1e6 / others.fold(preview.decode_tokens_per_s, f64::max))
}

fn slower(machine: &Machine, link: f64, stage: f64) -> Machine {
    let mut slower = machine.clone();
    slower.link.rtt_us += link;
    if let Some(speed) = &mut slower.speed {
        speed.decode_us_per_byte *= stage;
    }
    if let Some(loaded) = &mut slower.loaded {
        loaded.speed.decode_us = (loaded.speed.decode_us as f64 * stage).ceil() as u64;
    }
    slower
}

#[test]
fn a_plan_says_what_this_machine_would_do_alone() {
    let own = machine(Who::Own, 3, 1_000.0, 0.0);
    let machines = [own.clone(), peer(1, 8, 1_000.0, 40_000.0)];
    let preview = plan(&model(8), &machines, &latency()).unwrap();
    assert_eq!(text(&preview), "1 0..8");
    let alone = preview.alone.unwrap();
    assert!((alone.decode_tokens_per_s - 125.0).abs() < 1e-6 && alone.measured, "{alone:?}");
    assert!((alone.prefill_tokens_per_s - 1_250.0).abs() < 1e-6, "{alone:?}");
    let needed_bytes = 800 * MIB;
    assert_eq!(alone.hindrance, Some(Hindrance::TooSmall { needed_bytes, free_bytes: 300 * MIB }));
    assert_eq!(preview.faster_alone(), Some(alone), "40 ms there and back cost more than 8 ms of arithmetic");
    let split = [own.clone(), peer(1, 5, 1_000.0, 40_000.0)];
    let reason = plan(&model(8), &split, &latency()).unwrap().verdict.reason;
    assert!(
        reason.ends_with("this machine alone would make 125.0, but it takes 0.84 GB, and this machine gives 0.31 GB"),
        "{reason}"
    );
    // With room it runs there, and nothing is left to say.
    let roomy = [machine(Who::Own, 8, 1_000.0, 0.0), machines[1].clone()];
    let preview = plan(&model(8), &roomy, &latency()).unwrap();
    assert_eq!(text(&preview), "own 0..8");
    assert_eq!(preview.faster_alone(), None);
    // Where pooling pays there is nothing to say, either.
    let near = [own, peer(1, 8, 100.0, 1_000.0)];
    assert_eq!(plan(&model(8), &near, &latency()).unwrap().faster_alone(), None);
    assert_eq!(
        plan(&model(8), &near[1..], &latency()).unwrap().alone,
        None,
        "who has no machine in it is told nothing"
    );
}

#[test]
fn layers_that_are_not_here_keep_a_machine_from_running_alone_now() {
    let own = Machine { missing: (2..6).collect(), ..machine(Who::Own, 8, 10.0, 0.0) };
    let run = Wish { may_load: false, ..latency() };
    let preview = plan(&model(8), &[own.clone(), serving(1, 0, 8, 8)], &run).unwrap();
    assert_eq!(preview.faster_alone().unwrap().hindrance, Some(Hindrance::NotHere { layers: 4 }));
    assert_eq!(alone(&model(8), &own, &latency()).unwrap().hindrance, None, "a preview may fetch them");
    let three = Wish { own_sessions: 3, ..latency() };
    let mut caching = model(8);
    caching.layers.iter_mut().for_each(|layer| layer.cache_bytes_per_position = 25 * MIB / 1024);
    let caches = alone(&caching, &machine(Who::Own, 12, 10.0, 0.0), &three).unwrap().hindrance;
    assert!(matches!(caches, Some(Hindrance::TooSmall { .. })), "three conversations do not fit: {caches:?}");
    let unknown = Machine { speed: None, ..own };
    assert_eq!(alone(&model(8), &unknown, &latency()), None);
}

#[test]
fn peers_of_one_machine_are_never_faster_than_one_engine_there() {
    let here = |rtt_us| {
        let own = machine(Who::Own, 8, 1_000.0, 0.0);
        let link = Link { rtt_us, bytes_per_second: 500e6 };
        Here { memory_bytes: own.memory_bytes, speed: own.speed.unwrap(), link }
    };
    let range = |start, end| LayerRange::new(start, end).unwrap();
    let stages = [(Who::Started(1), range(0, 4)), (Who::Started(2), range(4, 8))];
    let near = placed(&model(8), &here(150.0), &stages, &wish(None)).unwrap();
    let far = placed(&model(8), &here(5_000.0), &stages, &wish(None)).unwrap();
    assert!(near.faster_alone().unwrap().decode_tokens_per_s > near.decode_tokens_per_s);
    assert!(near.decode_tokens_per_s > far.decode_tokens_per_s && near.chunk_ms < far.chunk_ms);
    // Eight layers at 1 ms a token, a tenth of it a position of a chunk: 512 of them, and three hops.
    assert!((409.6 + 3.0 * 0.075..415.0).contains(&near.chunk_ms), "{}", near.chunk_ms);
    let whole = placed(&model(8), &here(150.0), &[(Who::Own, range(0, 8))], &wish(None)).unwrap();
    assert_eq!(whole.faster_alone(), None, "it is that");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    /// A longer way or a slower machine makes no plan faster.
    #[test]
    fn predictions_follow_distance_and_stage_time(
        (model, machines, private) in instance(),
        which in 0usize..5,
        link in prop_oneof![Just(0.0), 1f64..100_000.0],
        stage in prop_oneof![Just(1.0), 1f64..20.0],
    ) {
        let preference = if private { Preference::Private } else { Preference::Latency };
        let wish = wish(Some(preference));
        let before = fastest(&model, &machines, &wish);
        let mut worse = machines.clone();
        worse[which] = slower(&machines[which], link, stage);
        let after = fastest(&model, &worse, &wish);
        prop_assert_eq!(before.is_some(), after.is_some());
        if let (Some(before), Some(after)) = (before, after) {
            prop_assert!(after >= before * (1.0 - 1e-9), "{} {}", before, after);
        }
    }

    /// Where this machine is predicted faster alone, and may and can, it is the plan, whatever is wished.
    #[test]
    fn what_is_faster_alone_runs_alone((model, mut machines, private) in instance(), strict in strict(), room in 0u64..10) {
        let (hide_layers, trusted_layers, may_load, trusted, missing) = strict;
        machines[0].memory_bytes += room * 100 * MIB;
        machines.iter_mut().enumerate().skip(1).for_each(|(i, machine)| machine.trusted = trusted >> i & 1 == 1);
        machines[0].missing = (0..model.layers.len() as u32).filter(|layer| missing >> layer & 1 == 1).collect();
        let preference = if private { Preference::Private } else { Preference::Latency };
        let wish = Wish { hide_layers, trusted_layers, may_load, ..wish(Some(preference)) };
        let own = alone(&model, &machines[0], &wish).unwrap();
        let Ok(preview) = plan(&model, &machines, &wish) else {
            prop_assert!(own.hindrance.is_some(), "there is a plan where one machine is enough");
            return Ok(());
        };
        prop_assert_eq!(preview.alone, Some(own));
        if let Some(faster) = preview.faster_alone() {
            prop_assert!(faster.hindrance.is_some(), "{}: {:?}", text(&preview), faster);
        }
        if own.hindrance.is_none() && (private || hide_layers > 0) {
            prop_assert_eq!(text(&preview), format!("own 0..{}", model.layers.len()));
        }
    }
}
