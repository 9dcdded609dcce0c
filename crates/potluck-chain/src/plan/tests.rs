//! Plans: small ones against every possibility, and the reasons given.

use std::collections::{BTreeMap, BTreeSet};

use potluck_core::{LayerRange, ModelId, PeerId, StageSpec, StageSpeed};
use potluck_wire::Codec;
use proptest::prelude::*;

use super::{
    stage::{Piece, pieces},
    *,
};

const MODEL: ModelId = ModelId::from_bytes([7; 32]);
const MIB: u64 = 1 << 20;

pub(super) fn model(layers: usize) -> ModelFacts {
    let layer = LayerFacts { weight_bytes: 100 * MIB, cache_bytes_per_position: 0 };
    let cuts = (1..layers as u32).collect();
    ModelFacts {
        model: MODEL,
        layers: vec![layer; layers],
        head_bytes: 0,
        tail_bytes: 0,
        tied: true,
        width: 1024,
        cuts,
    }
}

fn peer_id(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

/// A machine with room for so many layers of [`model`], that takes so many microseconds for each.
pub(super) fn machine(who: Who, layers: u64, us: f64, rtt_us: f64) -> Machine {
    let per_byte = us / (100 * MIB) as f64;
    let speed = Some(Speed { decode_us_per_byte: per_byte, prefill_us_per_byte: per_byte / 10.0, measured: true });
    let link = Link { rtt_us, bytes_per_second: 1e8 };
    let trusted = who == Who::Own;
    Machine { who, memory_bytes: layers * 100 * MIB, speed, link, loaded: None, trusted, missing: BTreeSet::new() }
}

pub(super) fn peer(n: u8, layers: u64, us: f64, rtt_us: f64) -> Machine {
    machine(Who::Peer(peer_id(n)), layers, us, rtt_us)
}

pub(super) fn serving(n: u8, start: u32, end: u32, of: u32) -> Machine {
    let spec =
        StageSpec { model: MODEL, layers: LayerRange::new(start, end).unwrap(), head: start == 0, tail: end == of };
    let speed = StageSpeed { decode_us: 1_000, prefill_position_us: 100 };
    let loaded = Loaded { spec, speed, weight_bytes: MIB, cache_bytes_per_position: 1, context: 4096, free_caches: 1 };
    Machine { loaded: Some(loaded), ..peer(n, 0, 100.0, 1_000.0) }
}

pub(super) fn wish(preference: Option<Preference>) -> Wish {
    Wish {
        positions: 4096,
        chunk: 512,
        codec: Codec::F16,
        preference,
        may_load: true,
        hide_layers: 0,
        trusted_layers: 0,
        own_sessions: 1,
    }
}

pub(super) fn latency() -> Wish {
    wish(Some(Preference::Latency))
}

pub(super) fn text(preview: &Preview) -> String {
    let stage = |stage: &PlannedStage| match stage.who {
        Who::Own => format!("own {}", stage.layers),
        Who::Peer(peer) => format!("{} {}", peer.as_bytes()[0], stage.layers),
        Who::Started(number) => format!("started {number} {}", stage.layers),
    };
    preview.stages.iter().map(stage).collect::<Vec<_>>().join(" | ")
}

#[test]
fn a_model_that_fits_one_machine_runs_there() {
    let machines = [peer(1, 8, 500.0, 10_000.0), peer(2, 4, 100.0, 100.0), peer(3, 4, 100.0, 100.0)];
    let preview = plan(&model(8), &machines, &latency()).unwrap();
    assert_eq!(text(&preview), "1 0..8");
    assert_eq!(preview.verdict.kind, VerdictKind::Single);
    assert!(preview.verdict.reason.contains("2 stages are predicted at"), "{}", preview.verdict.reason);
    assert_eq!(preview.bytes_per_position, 24.0 + 4.0 + 1_064.0, "a token there, the largest logits back");
}

#[test]
fn of_machines_that_hold_it_all_the_fastest_is_taken_distance_included() {
    let far = [peer(1, 8, 100.0, 200_000.0), peer(2, 8, 300.0, 1_000.0)];
    assert_eq!(text(&plan(&model(8), &far, &latency()).unwrap()), "2 0..8");
    let own = machine(Who::Own, 8, 400.0, 0.0);
    let near = [peer(1, 8, 200.0, 1_000.0), own];
    assert_eq!(text(&plan(&model(8), &near, &wish(None)).unwrap()), "own 0..8", "private, where it fits");
    assert_eq!(text(&plan(&model(8), &near, &latency()).unwrap()), "1 0..8");
}

#[test]
fn otherwise_the_fewest_stages_that_fit_and_the_fastest_of_those() {
    let machines = [
        peer(1, 5, 100.0, 1_000.0),
        peer(2, 3, 200.0, 1_000.0),
        peer(3, 3, 150.0, 1_000.0),
        peer(4, 2, 140.0, 1_000.0),
    ];
    let preview = plan(&model(8), &machines, &latency()).unwrap();
    assert_eq!(preview.stages.len(), 2);
    assert!(text(&preview).contains("1 ") && text(&preview).contains("3 "), "{}", text(&preview));
    let covered: u32 = preview.stages.iter().map(|stage| stage.layers.count()).sum();
    assert_eq!(covered, 8);
    assert_eq!(preview.weight_bytes, 800 * MIB);
}

#[test]
fn further_stages_are_taken_only_where_they_are_much_faster() {
    let slow = [peer(1, 4, 10_000.0, 100.0), peer(2, 4, 10_000.0, 100.0)];
    let fast = [peer(3, 3, 100.0, 100.0), peer(4, 3, 100.0, 100.0), peer(5, 2, 100.0, 100.0)];
    let all = [slow.to_vec(), fast.to_vec()].concat();
    assert_eq!(plan(&model(8), &all, &latency()).unwrap().stages.len(), 3);
    let alike = [slow.to_vec(), vec![peer(3, 7, 10_000.0, 100.0)]].concat();
    assert_eq!(plan(&model(8), &alike, &latency()).unwrap().stages.len(), 2);
}

#[test]
fn a_placement_that_was_asked_for_is_shown_with_what_it_costs() {
    let per_byte = 500.0 / (100 * MIB) as f64;
    let speed = Speed { decode_us_per_byte: per_byte, prefill_us_per_byte: per_byte / 10.0, measured: true };
    let link = Link { rtt_us: 200.0, bytes_per_second: 1e9 };
    let here = Here { memory_bytes: 700 * MIB, speed, link };
    let range = |start, end| LayerRange::new(start, end).unwrap();
    let stages = [(Who::Started(1), range(0, 4)), (Who::Started(2), range(4, 8))];
    let preview = placed(&model(8), &here, &stages, &latency()).unwrap();
    assert_eq!(text(&preview), "started 1 0..4 | started 2 4..8");
    assert_eq!(preview.stages[1].memory_bytes, 400 * MIB);
    // Eight layers of half a millisecond, and three hops of a tenth and what they carry.
    assert!((230.0..233.0).contains(&preview.decode_tokens_per_s), "{}", preview.decode_tokens_per_s);
    // The stages share the processor: a prompt takes as long as on one engine.
    assert!((2_499.0..2_501.0).contains(&preview.prefill_tokens_per_s), "{}", preview.prefill_tokens_per_s);
    let reason = &preview.verdict.reason;
    assert!(reason.contains("fewer would be faster: one engine (--local) is predicted at 250.0"), "{reason}");
    assert!(reason.contains("more than this machine gives (0.73 GB)"), "{reason}");
    let ends = [(Who::Own, range(0, 1)), (Who::Started(1), range(1, 7)), (Who::Own, range(7, 8))];
    let private = placed(&model(8), &here, &ends, &latency()).unwrap();
    assert_eq!((private.preference, private.stages[0].hop_ms), (Preference::Private, 0.0));
    assert!(
        private.verdict.reason.contains("over 1 peer of this machine, with both ends"),
        "{}",
        private.verdict.reason
    );
    assert_eq!(placed(&model(8), &here, &[], &latency()), Err(PlanError::NoLayers));
}

#[test]
fn private_keeps_both_ends_and_says_what_that_costs() {
    let machines = [machine(Who::Own, 3, 2_000.0, 0.0), peer(1, 8, 100.0, 1_000.0), peer(2, 8, 100.0, 50_000.0)];
    let preview = plan(&model(8), &machines, &wish(None)).unwrap();
    assert_eq!(preview.preference, Preference::Private);
    assert!(["own 0..1 | 1 1..7 | own 7..8"].contains(&text(&preview).as_str()), "{}", text(&preview));
    assert!(preview.verdict.reason.contains("one machine alone is predicted at"), "{}", preview.verdict.reason);
    assert!(preview.stages.iter().all(|stage| stage.who == Who::Own || !(stage.head || stage.tail)));
    let own_too_small = [machine(Who::Own, 1, 2_000.0, 0.0), machines[1].clone()];
    let refused = plan(&model(8), &own_too_small, &wish(Some(Preference::Private))).unwrap_err();
    assert_eq!(refused, PlanError::NotPrivate { needed_bytes: 200 * MIB, memory_bytes: 100 * MIB });
    assert_eq!(
        text(&plan(&model(8), &own_too_small, &wish(None)).unwrap()),
        "1 0..8",
        "it does not fit, so not private"
    );
}

#[test]
fn hidden_layers_stay_here_or_it_says_why_not() {
    let own = |layers| machine(Who::Own, layers, 2_000.0, 0.0);
    let peers = [peer(1, 8, 100.0, 1_000.0), peer(2, 8, 100.0, 50_000.0)];
    let hide = |hide_layers| Wish { hide_layers, ..wish(None) };
    let with = |own: Machine| [vec![own], peers.to_vec()].concat();
    let preview = plan(&model(8), &with(own(5)), &hide(2)).unwrap();
    assert_eq!((text(&preview), preview.preference), ("own 0..2 | 1 2..6 | own 6..8".into(), Preference::Private));
    let reason = &preview.verdict.reason;
    assert!(reason.contains("this machine keeps the first and the last 2 layers, as asked for"), "{reason}");
    assert!(reason.contains("one machine alone is predicted at"), "what it costs: {reason}");
    assert_eq!(
        preview.stages.iter().map(|stage| stage.sees).collect::<Vec<_>>(),
        [Sees::Own, Sees::HiddenStates, Sees::Own]
    );
    assert_eq!(text(&plan(&model(8), &with(own(8)), &hide(3)).unwrap()), "own 0..8", "all of it here hides all");
    let latency = Wish { preference: Some(Preference::Latency), ..hide(2) };
    assert!(
        text(&plan(&model(8), &with(own(5)), &latency).unwrap()).starts_with("own 0..2"),
        "whatever else is wished"
    );
    let refused = plan(&model(8), &with(own(3)), &hide(2)).unwrap_err();
    assert_eq!(
        refused,
        PlanError::NotHidden { layers: 2, needed_bytes: 400 * MIB, memory_bytes: 300 * MIB, missing: 0 }
    );
    assert!(refused.to_string().contains("they need 0.42 GB, it gives 0.31 GB"), "{refused}");
    let half = Machine { missing: (6..8).collect(), ..own(8) };
    let run = Wish { may_load: false, ..hide(2) };
    let refused = plan(&model(8), &[half, serving(1, 2, 6, 8)], &run).unwrap_err();
    assert!(refused.to_string().ends_with("the weights of 2 of them are not here"), "{refused}");
    let part = Machine { missing: (3..5).collect(), ..own(8) };
    let preview = plan(&model(8), &[part.clone(), serving(1, 2, 6, 8)], &run).unwrap();
    assert_eq!(text(&preview), "own 0..2 | 1 2..6 | own 6..8", "the ends are here, the middle is not");
    let none = plan(&model(8), &[part, serving(1, 1, 6, 8)], &run).unwrap_err();
    assert!(none.to_string().ends_with("no peers fill the middle"), "{none}");
    let absent = plan(&model(8), &[serving(1, 0, 8, 8)], &run).unwrap_err();
    assert!(matches!(absent, PlanError::NotHidden { missing: 4, .. }), "{absent}");
}

#[test]
fn sensitive_layers_are_for_trusted_machines_alone() {
    let trusted = |machine| Machine { trusted: true, ..machine };
    let run = |trusted_layers| Wish { may_load: false, trusted_layers, ..latency() };
    let all = |machines: &[Machine], layers| plan(&model(8), machines, &run(layers)).map(|preview| text(&preview));
    let whole = [serving(1, 0, 8, 8), trusted(serving(2, 0, 3, 8)), serving(3, 3, 5, 8), trusted(serving(4, 5, 8, 8))];
    assert_eq!(all(&whole, 0).unwrap(), "1 0..8");
    assert_eq!(all(&whole, 3).unwrap(), "2 0..3 | 3 3..5 | 4 5..8", "a stranger in the middle only");
    let preview = plan(&model(8), &whole, &run(3)).unwrap();
    assert_eq!(preview.left_out[0].reason, Reason::NotTrusted { layers: 3 });
    let reason = &preview.verdict.reason;
    assert!(reason.contains("only trusted machines may hold the first and the last 3 layers"), "{reason}");
    assert!(reason.contains("one machine alone is predicted at"), "{reason}");
    let refused = plan(&model(8), &whole, &run(4)).unwrap_err();
    assert_eq!(refused, PlanError::NotTrusted { layers: 4, machines: 4, trusted: 2, reached: 3 });
    let nobody = plan(&model(8), &whole, &run(u32::MAX)).unwrap_err();
    assert!(nobody.to_string().contains("its first and last 8 layers: 2 of the 4 peers"), "{nobody}");
    let friends = whole.clone().map(|machine| Machine { trusted: true, ..machine });
    assert_eq!(all(&friends, u32::MAX).unwrap(), "1 0..8");
    let own = machine(Who::Own, 8, 1.0, 0.0);
    assert_eq!(all(&[own, whole[0].clone()], u32::MAX).unwrap(), "own 0..8", "one's own machine is trusted");
}

#[test]
fn routes_go_over_stages_that_run() {
    let machines = [serving(1, 0, 4, 8), serving(2, 4, 8, 8), serving(3, 2, 8, 8), serving(4, 3, 4, 8)];
    let run = Wish { may_load: false, ..latency() };
    let preview = plan(&model(8), &machines, &run).unwrap();
    assert_eq!(text(&preview), "1 0..4 | 2 4..8");
    assert!(preview.stages.iter().all(|stage| stage.loaded));
    let why: Vec<String> = preview.left_out.iter().map(|out| out.reason.to_string()).collect();
    assert_eq!(why, ["no route over all layers passes its stage"; 2]);
    let refused = plan(&model(8), &machines[1..], &run).unwrap_err();
    assert!(matches!(refused, PlanError::NoRoute { reached: 0, machines: 3, .. }), "{refused}");
}

#[test]
fn each_machine_that_is_left_out_has_its_reason() {
    let other = ModelId::from_bytes([8; 32]);
    let change = |n: u8, change: fn(&mut Loaded)| {
        let mut machine = serving(n, 0, 8, 8);
        machine.loaded.iter_mut().for_each(change);
        machine
    };
    let mut of_another = serving(4, 0, 8, 8);
    of_another.loaded.iter_mut().for_each(|loaded| loaded.spec.model = other);
    let machines = [
        serving(1, 0, 8, 8),
        change(2, |loaded| loaded.free_caches = 0),
        change(3, |loaded| loaded.context = 512),
        of_another,
        change(5, |loaded| loaded.speed = StageSpeed { decode_us: 0, prefill_position_us: 0 }),
        change(6, |loaded| loaded.speed.decode_us = 2_000),
        serving(7, 0, 4, 8),
    ];
    let preview = plan(&model(8), &machines, &Wish { may_load: false, ..latency() }).unwrap();
    let reasons: Vec<&Reason> = preview.left_out.iter().map(|out| &out.reason).collect();
    assert_eq!(*reasons[0], Reason::NoFreeCache);
    assert_eq!(*reasons[1], Reason::ContextTooShort { holds: 512, needed: 4096 });
    assert_eq!(*reasons[2], Reason::OtherModel { model: other.to_string() });
    assert_eq!(*reasons[3], Reason::SpeedUnknown);
    assert!(
        matches!(reasons[4], Reason::NoFreeCache | Reason::NotNeeded | Reason::NotBetter { .. }),
        "{:?}",
        reasons[4]
    );
    assert_eq!(*reasons[5], Reason::NotNeeded);
    let small = [peer(1, 8, 1.0, 1.0), machine(Who::Peer(peer_id(2)), 0, 1.0, 1.0)];
    let preview = plan(&model(8), &small, &latency()).unwrap();
    assert_eq!(preview.left_out[0].reason, Reason::TooSmall { needed_bytes: 100 * MIB, free_bytes: 0 });
}

#[test]
fn caches_count_and_cuts_are_kept() {
    let mut model = model(4);
    model.layers.iter_mut().for_each(|layer| layer.cache_bytes_per_position = 25 * MIB / 1024);
    let machines = [peer(1, 5, 1.0, 1.0), peer(2, 5, 1.0, 1.0)];
    let preview = plan(&model, &machines, &latency()).unwrap();
    assert_eq!(preview.stages.len(), 2, "four layers of 100 MiB and 100 MiB of cache each");
    assert_eq!(preview.cache_bytes, 4 * 25 * MIB / 1024 * 4096);
    let own = |sessions| {
        let wish = Wish { own_sessions: sessions, ..wish(None) };
        plan(&model, &[machine(Who::Own, 8, 1.0, 0.0), peer(1, 1, 1.0, 1.0)], &wish).map(|preview| text(&preview))
    };
    assert_eq!(own(1).unwrap(), "own 0..4");
    assert!(own(2).is_err(), "four more caches of 100 MiB do not fit");
    model.cuts = vec![1];
    assert!(matches!(plan(&model, &machines, &latency()), Err(PlanError::NoRoute { .. })), "1 + 3 does not fit");
    model.cuts = vec![2];
    assert_eq!(plan(&model, &machines, &latency()).unwrap().stages[0].layers, LayerRange::new(0, 2).unwrap());
}

#[test]
fn a_preview_is_json_that_names_everything() {
    let machines = [machine(Who::Own, 3, 2_000.0, 0.0), peer(1, 8, 100.0, 1_000.0), peer(2, 0, 1.0, 1.0)];
    let preview = plan(&model(8), &machines, &wish(None)).unwrap();
    let json = serde_json::to_value(&preview).unwrap();
    assert_eq!(json["stages"][0]["who"], "own");
    assert_eq!(json["stages"][1]["who"]["peer"], peer_id(1).to_string());
    assert_eq!(json["stages"][1]["layers"], serde_json::json!([1, 7]));
    assert_eq!(json["left_out"][0]["reason"], "too_small");
    assert_eq!(json["verdict"]["kind"], "pooled");
    for number in ["prefill_tokens_per_s", "decode_tokens_per_s", "bytes_per_position", "weight_bytes"] {
        assert!(json[number].as_f64().unwrap() > 0.0, "{number}");
    }
}

#[test]
fn a_large_swarm_is_planned() {
    let machines: Vec<Machine> =
        (0..120).map(|n| peer(n, 3 + u64::from(n % 7), 100.0 + f64::from(n), f64::from(n) * 300.0)).collect();
    let preview = plan(&model(80), &machines, &latency()).unwrap();
    let stages = preview.alternatives.iter().map(|other| other.stages).chain([preview.stages.len()]);
    assert_eq!(stages.min(), Some(9), "80 layers over machines that hold 9 at most");
    let most: Vec<Machine> = [machines.clone(), machines].concat();
    let preview = plan(&model(80), &most, &latency()).unwrap();
    assert!(preview.left_out.iter().any(|out| out.reason == Reason::TooMany));
}

/// The stages that a machine has room for, whatever anybody wishes.
fn every_piece(model: &ModelFacts, open: &Wish, machines: &[Machine], i: usize) -> Vec<Piece> {
    let mut machines = machines.to_vec();
    machines[i].missing.clear();
    pieces(model, open, &machines, i)
}

/// Every route there is, by brute force: the least time of a token for each number of stages.
fn every_route(model: &ModelFacts, machines: &[Machine], wish: &Wish, private: bool) -> BTreeMap<usize, f64> {
    fn extend(
        costs: &Costs<'_>,
        all: &[Piece],
        private: bool,
        route: &mut Vec<Piece>,
        best: &mut BTreeMap<usize, f64>,
    ) {
        let layers = costs.model.layers.len() as u32;
        let at = route.last().map_or(0, |piece| piece.layers.end());
        if at == layers {
            if legal(costs, route, private) {
                let us = costs.decode_us(route);
                let entry = best.entry(route.len()).or_insert(us);
                *entry = entry.min(us);
            }
            return;
        }
        for piece in all.iter().filter(|piece| piece.layers.start() == at) {
            route.push(*piece);
            extend(costs, all, private, route, best);
            route.pop();
        }
    }
    fn legal(costs: &Costs<'_>, route: &[Piece], private: bool) -> bool {
        let own = |piece: &Piece| costs.machines[piece.machine].who == Who::Own;
        let ends = |i: usize| i == 0 || i + 1 == route.len();
        let own_bytes: u64 = route.iter().filter(|p| own(p)).map(Piece::new_bytes).sum();
        let memory = costs.machines.iter().find(|m| m.who == Who::Own).map_or(0, |m| m.memory_bytes);
        let twice =
            (0..route.len()).any(|i| !own(&route[i]) && route[..i].iter().any(|p| p.machine == route[i].machine));
        let own_well_placed = route.iter().enumerate().all(|(i, p)| !own(p) || ends(i));
        let own_pair = route.len() == 2 && route.iter().all(own);
        let private_ends = !private || own(&route[0]) && own(&route[route.len() - 1]);
        // Layer by layer: whoever holds it is allowed to.
        let layers = costs.model.layers.len() as u32;
        let within = |layer: u32, ends: u32| layer < ends || layer + ends >= layers;
        let allowed = route.iter().all(|piece| {
            let machine = &costs.machines[piece.machine];
            (piece.layers.start()..piece.layers.end()).all(|layer| {
                let hidden = within(layer, costs.wish.hide_layers) && !own(piece);
                let untrusted = within(layer, costs.wish.trusted_layers) && !machine.trusted;
                let missing = own(piece) && !costs.wish.may_load && machine.missing.contains(&layer);
                !hidden && !untrusted && !missing
            })
        });
        !twice && own_well_placed && !own_pair && own_bytes <= memory && private_ends && allowed
    }
    let open = wish.open();
    let all: Vec<Piece> = (0..machines.len()).flat_map(|i| every_piece(model, &open, machines, i)).collect();
    let mut best = BTreeMap::new();
    extend(&Costs { model, machines, wish }, &all, private, &mut Vec::new(), &mut best);
    best
}

fn any_machine(n: u8, layers: u32) -> impl Strategy<Value = Machine> {
    let free = (0u64..6, 1f64..500.0, 0f64..5_000.0).prop_map(move |(room, us, rtt)| peer(n, room, us, rtt));
    let runs = (0..layers).prop_flat_map(move |start| (Just(start), start + 1..=layers));
    let loaded = (runs, 1u64..3_000).prop_map(move |((start, end), us)| {
        let mut machine = serving(n, start, end, layers);
        machine.loaded.iter_mut().for_each(|loaded| loaded.speed.decode_us = us);
        machine
    });
    prop_oneof![2 => free, 1 => loaded]
}

/// Layers to hide, layers for trusted machines, whether machines may load; and whom to trust, and what is not here, as bits.
pub(super) type Strict = (u32, u32, bool, u8, u8);

pub(super) fn strict() -> impl Strategy<Value = Strict> {
    prop_oneof![
        2 => Just((0, 0, true, 0, 0)),
        3 => (0u32..4, 0u32..7, any::<bool>(), any::<u8>(), prop_oneof![Just(0), any::<u8>()]),
    ]
}

pub(super) fn instance() -> impl Strategy<Value = (ModelFacts, Vec<Machine>, bool)> {
    (2u32..6).prop_flat_map(|layers| {
        let machines = (any_machine(1, layers), any_machine(2, layers), any_machine(3, layers), any_machine(4, layers));
        let own = (0u64..4, 1f64..500.0).prop_map(|(room, us)| machine(Who::Own, room, us, 0.0));
        let sizes = prop::collection::vec(50u64..150, layers as usize);
        (machines, own, sizes, any::<u8>(), any::<bool>()).prop_map(move |((a, b, c, d), own, sizes, mask, private)| {
            let mut model = model(layers as usize);
            model.layers.iter_mut().zip(sizes).for_each(|(layer, mib)| layer.weight_bytes = mib * MIB);
            model.cuts.retain(|cut| mask >> cut & 1 == 1);
            (model, vec![own, a, b, c, d], private)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// No route of as few stages is faster than the one that is found, and none is missed; none breaks a wish.
    #[test]
    fn small_swarms_are_searched_completely((model, mut machines, private) in instance(), strict in strict()) {
        let (hide_layers, trusted_layers, may_load, trusted, missing) = strict;
        machines.iter_mut().enumerate().skip(1).for_each(|(i, machine)| machine.trusted = trusted >> i & 1 == 1);
        machines[0].missing = (0..model.layers.len() as u32).filter(|layer| missing >> layer & 1 == 1).collect();
        let private = private || hide_layers > 0;
        let preference = if private { Preference::Private } else { Preference::Latency };
        let wish = Wish { hide_layers, trusted_layers, may_load, ..wish(Some(preference)) };
        let every = every_route(&model, &machines, &wish, private);
        let result = plan(&model, &machines, &wish);
        let Some((&fewest, &best)) = every.iter().next() else {
            prop_assert!(result.is_err());
            return Ok(());
        };
        let preview = result.unwrap();
        let us = 1e6 / preview.decode_tokens_per_s;
        let stages = preview.stages.len();
        prop_assert!((us - every[&stages].max(1.0)).abs() < 1e-6 * us.max(1.0), "{us} {every:?}");
        if private || fewest == 1 {
            prop_assert_eq!(stages, fewest);
        } else {
            prop_assert!(stages == fewest || us * FURTHER_STAGE_GAIN < best, "{stages} {us} {every:?}");
        }
        let mut at = 0;
        for stage in &preview.stages {
            prop_assert_eq!(stage.layers.start(), at);
            at = stage.layers.end();
            prop_assert!(at as usize == model.layers.len() || model.cuts.contains(&at) || stage.loaded);
        }
        prop_assert_eq!(preview.left_out.len() + preview.stages.iter().map(|s| s.who).collect::<std::collections::BTreeSet<_>>().len(), machines.len());
    }
}
