//! Predictions and choices, against pipelines that are played through by other means.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use proptest::prelude::*;

use super::*;

/// What a choice may lose against the best chunk there is.
const REGRET: f64 = 0.05;

const ALL: RangeInclusive<usize> = 1..=STEP_POSITIONS_MAX;

pub(super) fn sizes(positions: usize, chunk: usize) -> Vec<usize> {
    (0..positions).step_by(chunk).map(|start| chunk.min(positions - start)).collect()
}

/// Each server takes a chunk when it has done the one before, and when the chunk is there: the recursion of a tandem queue. Only
/// where no two stages share a machine.
fn tandem(pipeline: &Pipeline, positions: usize, chunk: usize) -> f64 {
    let servers = pipeline.servers();
    let mut free = vec![0.0; servers.len()];
    let mut answers: Vec<f64> = Vec::new();
    for (number, size) in sizes(positions, chunk).into_iter().enumerate() {
        let mut at = number.checked_sub(pipeline.window(chunk)).map_or(0.0, |before| answers[before]);
        for (server, free) in servers.iter().zip(&mut free) {
            *free = f64::max(at, *free) + server.step.seconds(size);
            at = *free + server.delay;
        }
        answers.push(at + pipeline.back);
    }
    answers[answers.len() - 1]
}

/// A machine takes steps as they come, and each by itself: another way to share it, which no bound may forbid.
fn in_turn(pipeline: &Pipeline, positions: usize, chunk: usize) -> f64 {
    let window = pipeline.window(chunk);
    // As whole nanoseconds, which have an order.
    let nanoseconds = |seconds: f64| (seconds * 1e9).round() as u64;
    let (servers, sizes) = (pipeline.servers(), sizes(positions, chunk));
    let mut events: BinaryHeap<_> =
        (0..sizes.len().min(window)).map(|number| Reverse((0_u64, number, 0_usize))).collect();
    let (mut free, mut end) = (BTreeMap::<usize, u64>::new(), 0);
    while let Some(Reverse((at, number, place))) = events.pop() {
        let server = servers[place];
        let free = free.entry(server.resource).or_default();
        *free = at.max(*free) + nanoseconds(server.step.seconds(sizes[number]));
        let arrives = *free + nanoseconds(server.delay);
        if place + 1 < servers.len() {
            events.push(Reverse((arrives, number, place + 1)));
            continue;
        }
        end = arrives + nanoseconds(pipeline.back);
        if number + window < sizes.len() {
            events.push(Reverse((end, number + window, 0)));
        }
    }
    end as f64 / 1e9
}

/// The least that so many positions can take, in chunks of that size: the delays, the first chunk through every stage, and the
/// rest at the pace of whatever is slowest, a stage (with all that its machine has), or a link. What steps cost whatever their
/// size counts for the first chunk alone, so that a better chunk size is no way below it.
fn bound(pipeline: &Pipeline, positions: usize, chunk: usize) -> f64 {
    let servers = pipeline.servers();
    let first = chunk.clamp(1, positions.max(1));
    let last = positions.saturating_sub(1) % first + 1;
    let through = |part: &[Server], rows: usize| -> f64 {
        part.iter().map(|server| server.step.seconds(rows) + server.delay).sum()
    };
    // Whatever is slowest starts when the first chunk comes to it, and what the last has still before it comes after.
    let rest = servers.iter().map(|slowest| {
        let own = |server: &Server| server.resource == slowest.resource;
        let from = servers.iter().position(own).unwrap_or_default();
        let to = servers.iter().rposition(own).unwrap_or_default();
        let all = |server: &Server| server.step.fixed + server.step.per_row * positions as f64;
        let busy: f64 = servers.iter().filter(|server| own(server)).map(all).sum();
        through(&servers[..from], first) + busy + servers[to].delay + through(&servers[to + 1..], last)
    });
    rest.fold(through(&servers, first), f64::max) + pipeline.back
}

/// Evenly in orders of magnitude.
fn between(least: f64, most: f64) -> impl Strategy<Value = f64> {
    (least.ln()..most.ln()).prop_map(f64::exp)
}

fn link() -> impl Strategy<Value = LinkCost> {
    let delay = prop::sample::select(vec![0.0, 1e-4, 2.5e-3, 12e-3, 25e-3, 50e-3, 100e-3]);
    let bytes = prop::sample::select(vec![4.0, 300.0, 600.0, 1_200.0, 4_600.0, 16_384.0]);
    let remote = (bytes, between(1e5, 1e8), delay).prop_map(|(bytes_per_position, bytes_per_second, delay)| LinkCost {
        bytes_per_step: 64.0,
        bytes_per_position,
        bytes_per_second,
        delay,
    });
    prop_oneof![1 => Just(LinkCost::NONE), 4 => remote]
}

/// Routes of up to six stages; where machines are shared, up to three on one.
fn pipeline(shared: bool) -> impl Strategy<Value = Pipeline> {
    let stage = (link(), 0..3_usize, between(1e-5, 1e-1), between(2e-5, 1e-2));
    let most = (1..33_usize, 256..4_096_usize);
    (prop::collection::vec(stage, 1..7), 0.0..0.1, most).prop_map(move |(stages, back, most)| {
        let (in_flight, positions_in_flight) = most;
        let stage = |(at, (link, machine, fixed, per_row)): (usize, (LinkCost, usize, f64, f64))| {
            (link, StageCost { machine: if shared { machine } else { at }, step: Fit { fixed, per_row } })
        };
        Pipeline { stages: stages.into_iter().enumerate().map(stage).collect(), in_flight, positions_in_flight, back }
    })
}

/// By how much the chosen chunk is slower than the best constant one.
fn regret(pipeline: &Pipeline, positions: usize, truth: impl Fn(usize) -> f64) -> f64 {
    let chosen = best(pipeline, positions, ALL);
    let quickest = (1..=positions.min(STEP_POSITIONS_MAX)).map(&truth).fold(f64::INFINITY, f64::min);
    truth(chosen.chunk) / quickest - 1.0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_prediction_is_what_the_recursion_gives(pipeline in pipeline(false), positions in 1..3_000_usize, chunk in 1..513_usize) {
        let [predicted, truth] = [pipeline.seconds(positions, chunk), tandem(&pipeline, positions, chunk)];
        prop_assert!((predicted / truth - 1.0).abs() < 1e-6, "{predicted} {truth}");
    }

    #[test]
    fn the_chosen_chunk_is_as_good_as_any(pipeline in pipeline(false), positions in 1..3_000_usize) {
        let regret = regret(&pipeline, positions, |chunk| tandem(&pipeline, positions, chunk));
        prop_assert!(regret < REGRET, "{regret}");
    }

    #[test]
    fn so_it_is_where_stages_share_machines(pipeline in pipeline(true), positions in 1..1_000_usize) {
        let servers = pipeline.servers();
        let whole = |chunk: usize| play(&servers, &sizes(positions, chunk), pipeline.window(chunk), pipeline.back);
        let shared = regret(&pipeline, positions, whole);
        prop_assert!(shared < REGRET, "{shared}");
    }

    #[test]
    fn nothing_is_quicker_than_the_bound(pipeline in pipeline(true), positions in 1..2_000_usize, chunk in 1..513_usize) {
        let bound = bound(&pipeline, positions, chunk) * (1.0 - 1e-6);
        let [predicted, turns] = [pipeline.seconds(positions, chunk), in_turn(&pipeline, positions, chunk)];
        prop_assert!(bound <= predicted && bound <= turns, "{bound} {predicted} {turns}");
    }
}

/// Three stages of other people's machines, between own ends, over the internet: 576 values a position in 8 bits.
fn wan() -> Pipeline {
    let link = LinkCost { bytes_per_step: 64.0, bytes_per_position: 600.0, bytes_per_second: 2.5e6, delay: 0.025 };
    let stage = |machine, per_row| StageCost { machine, step: Fit { fixed: 2e-3, per_row } };
    let (own, remote) = (stage(0, 1e-4), |machine| (link, stage(machine, 4e-4)));
    Pipeline {
        stages: vec![(LinkCost::NONE, own), remote(1), remote(2), remote(3), (link, own)],
        in_flight: 16,
        positions_in_flight: PREFILL_POSITIONS_IN_FLIGHT,
        back: 0.0,
    }
}

#[test]
fn a_prompt_over_the_internet_comes_close_to_its_bound() {
    let (pipeline, positions) = (wan(), 2_048);
    let Choice { chunk, seconds } = best(&pipeline, positions, ALL);
    assert!((32..=128).contains(&chunk), "{chunk}");
    // By hand: four delays, a chunk through all, and the rest at 0.4 ms a position.
    let chunk_through_all = 4.0 * (64.0 + 64.0 * 600.0) / 2.5e6 + 5.0 * 2e-3 + 64.0 * (2.0 * 1e-4 + 3.0 * 4e-4);
    let by_hand = 0.1 + chunk_through_all + 4e-4 * (2_048.0 - 64.0);
    assert!((bound(&pipeline, positions, 64) - by_hand).abs() < 1e-9, "{by_hand}");
    let bound = bound(&pipeline, positions, chunk);
    assert!(bound / seconds > 0.9, "{bound} of {seconds}");
    assert!(pipeline.seconds(positions, 512) > 1.5 * seconds && pipeline.seconds(positions, 1) > 1.5 * seconds);
}

#[test]
fn what_pays_nothing_is_not_cut() {
    // One stage has nobody to work at the same time with.
    let alone = StageCost { machine: 0, step: Fit { fixed: 1e-3, per_row: 1e-3 } };
    let alone = Pipeline { stages: vec![(LinkCost::NONE, alone)], ..wan() };
    let choice = best(&alone, 512, ALL);
    assert_eq!(choice.chunk, 512);
    assert!((choice.seconds - 0.513).abs() < 1e-9);
    assert_eq!(best(&alone, 1, ALL).chunk, 1);
    // Nor have stages that share all that they have.
    let mut shared = wan();
    shared.stages.iter_mut().for_each(|(link, stage)| (*link, stage.machine) = (LinkCost::NONE, 0));
    assert_eq!(best(&shared, 512, ALL).chunk, 512);
    assert_eq!(best(&Pipeline { stages: Vec::new(), ..wan() }, 0, ALL), Choice { chunk: 1, seconds: 0.0 });
}

#[test]
fn a_long_prompt_is_planned_as_a_short_one_is() {
    let pipeline = wan();
    let [short, long] = [10_000, 1_000_000].map(|positions| best(&pipeline, positions, ALL));
    assert!(short.chunk <= long.chunk && long.chunk <= STEP_POSITIONS_MAX);
    let truth = tandem(&pipeline, 1_000_000, long.chunk);
    // Own ends share a machine here that is never busy at both for long.
    assert!((long.seconds / truth - 1.0).abs() < 0.01, "{} {truth}", long.seconds);
}
