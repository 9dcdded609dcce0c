//! Peers behind every kind of NAT: each pair connects, and directly where that can be.
//!
//! `make prove-nat` runs all pairs in both roles, and writes `bench/results/nat-matrix.json`; the ordinary tests run one of each class.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

mod child;
mod pair;
#[path = "../swarm/mod.rs"]
#[allow(dead_code, reason = "peers on loopback are of other tests")]
mod swarm;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
    time::{Duration, Instant},
};

use pair::{First, Pair};
use potluck_netem::{Nat, World, link::Profile};
use serde_json::{Value, json};

/// Longest wait for a direct path where there must be one.
const DIRECT_WITHIN: Duration = Duration::from_secs(30);

/// So long is a pair watched that must not find one.
const RELAYED_FOR: Duration = Duration::from_secs(7);

/// Longest wait for a better path than the one that works: iroh looks for one every minute, or when it learns of an address.
const UPGRADED_WITHIN: Duration = Duration::from_secs(120);

/// How often routers forget in one test.
const FORGETFUL_ROUNDS: usize = 4;

/// Pairs at once, each in a world of its own. They wait more than they compute.
const AT_ONCE: usize = 4;

/// One of each class, and what is a class of its own in some way.
const SHORT: [Nat; 5] = [Nat::FullCone, Nat::AddressRestricted, Nat::PortRestricted, Nat::Symmetric, Nat::UdpBlocked];

#[test]
fn child() {
    child::run();
}

/// A cell of the matrix: who dials, who is dialled, and who was there first.
type Cell = (Nat, Nat, First);

/// What became of a pair, as it is written down; none where there is no network.
fn measure((guest, host, first): Cell) -> Option<Value> {
    let mut pair = Pair::connect(guest, host, first)?;
    let expected = guest.meets(host);
    let (direct, settled) = pair.settles(if expected { DIRECT_WITHIN } else { RELAYED_FOR });
    let path = |direct| if direct { "direct" } else { "relay" };
    let mut cell = json!({
        "guest": guest.to_string(), "host": host.to_string(),
        "classes": format!("{}{}", guest.class(), host.class()),
        "first": if first == First::Host { "host" } else { "guest" },
        "expected": path(expected), "began": pair.connected["path"], "became": path(direct),
        "connected_ms": pair.connected["ms"], "direct_ms": settled["ms"],
    });
    assert_eq!(direct, expected, "{cell:#}");
    assert_eq!(pair.guest.asks("settled")["more"]["survived"], true, "{cell:#}");
    let sides = [(guest, pair.guest_side), (host, pair.host_side)];
    for (_, side) in sides.into_iter().filter(|(nat, _)| *nat == Nat::Changing) {
        pair.world.change_address(side).unwrap();
        let answered = pair.guest.asks("moved");
        cell["moved"] = json!({
            "answered_ms": answered["ms"], "questions": answered["more"]["answered"],
            "survived": answered["more"]["survived"], "lost": answered["lost"], "path": answered["path"],
        });
    }
    Some(cell)
}

/// Measures cells, some at once: all that there are, and what is wrong with them.
fn measure_all(cells: Vec<Cell>) -> Vec<Value> {
    let (left, done, failed) = (Mutex::new(cells), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let Some(cell) = left.lock().unwrap().pop() else { return };
            match catch_unwind(AssertUnwindSafe(|| measure(cell))) {
                Ok(measured) => done.lock().unwrap().extend(measured),
                Err(_) => failed.lock().unwrap().push(format!("{} to {}, {:?} first", cell.0, cell.1, cell.2)),
            }
        }
    };
    std::thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work))));
    let mut cells = done.into_inner().unwrap();
    cells.sort_by_key(|cell| (cell["guest"].to_string(), cell["host"].to_string(), cell["first"].to_string()));
    println!("{}", table(&cells));
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} failed: {failed:#?}", failed.len(), failed.len() + cells.len());
    cells
}

/// Who dials downwards, who is dialled across: milliseconds until the path was direct, or that it was relayed.
fn table(cells: &[Value]) -> String {
    let name = |value: &Value| value.as_str().unwrap().to_owned();
    let mut rows: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for cell in cells {
        let text = match cell["direct_ms"].as_u64() {
            Some(ms) => format!("{ms} ms"),
            None => "relay".to_owned(),
        };
        rows.entry(name(&cell["guest"])).or_default().insert(name(&cell["host"]), text);
    }
    let order = Nat::ALL.map(|nat| nat.to_string()).into_iter().filter(|nat| rows.contains_key(nat));
    let order: Vec<_> = order.collect();
    let mut text = format!("{:<20}", "from \\ to");
    order.iter().for_each(|host| write!(text, "{host:>19}").unwrap());
    for guest in &order {
        write!(text, "\n{guest:<20}").unwrap();
        for host in &order {
            write!(text, "{:>19}", rows[guest].get(host).map_or("", String::as_str)).unwrap();
        }
    }
    text
}

/// All pairs of those kinds, in both roles; either of them starts first in half of the cells.
fn square(kinds: &[Nat]) -> Vec<Cell> {
    let first = |row: usize, column: usize| if (row + column).is_multiple_of(2) { First::Host } else { First::Guest };
    let rows = kinds.iter().enumerate();
    rows.flat_map(|(row, &guest)| {
        kinds.iter().enumerate().map(move |(column, &host)| (guest, host, first(row, column)))
    })
    .collect()
}

#[test]
fn a_pair_of_each_class_connects_and_directly_where_it_can() {
    measure_all(square(&SHORT));
}

#[test]
fn peers_with_ipv6_alone_meet_each_other_directly_and_the_rest_by_the_relay() {
    let other = [Nat::Open, Nat::PortRestricted, Nat::Symmetric];
    let cells =
        other.into_iter().flat_map(|nat| [(nat, Nat::Ipv6Only, First::Host), (Nat::Ipv6Only, nat, First::Guest)]);
    measure_all(cells.chain([(Nat::Ipv6Only, Nat::Ipv6Only, First::Guest)]).collect());
}

#[test]
fn who_moves_to_another_address_is_answered_again() {
    let other = [Nat::FullCone, Nat::PortRestricted, Nat::OnlyTcp443];
    let cells =
        other.into_iter().flat_map(|nat| [(nat, Nat::Changing, First::Host), (Nat::Changing, nat, First::Host)]);
    let cells = measure_all(cells.chain([(Nat::Changing, Nat::Changing, First::Host)]).collect());
    cells.iter().for_each(|cell| println!("{cell}"));
}

#[test]
fn a_path_that_is_cut_is_missed_in_seconds_and_found_again() {
    let Some(pair) = Pair::connect(Nat::PortRestricted, Nat::PortRestricted, First::Host) else { return };
    assert!(pair.settles(DIRECT_WITHIN).0);
    pair.world[pair.guest_side].cut(true).unwrap();
    let cut = Instant::now();
    let lost = pair.guest.says(&["lost"], DIRECT_WITHIN);
    println!("missed after {} ms", cut.elapsed().as_millis());
    assert!(lost.is_some(), "the connection outlives its paths");
    pair.world[pair.guest_side].cut(false).unwrap();
    assert!(pair.guest.says(&["again"], DIRECT_WITHIN).is_some());
}

#[test]
fn a_relayed_path_becomes_direct_when_what_was_in_its_way_is_gone() {
    let block = |world: &mut World, side| world[side].block_udp(true).unwrap();
    let prepared = Pair::connect_over(Nat::PortRestricted, Nat::FullCone, First::Host, block);
    let Some((pair, ())) = prepared else { return };
    assert!(!pair.settles(RELAYED_FOR).0, "UDP is blocked: {}", pair.connected);
    pair.world[pair.guest_side].block_udp(false).unwrap();
    let lifted = Instant::now();
    let direct = pair.becomes(true, UPGRADED_WITHIN);
    println!("direct {} ms after the block was lifted: {direct:?}", lifted.elapsed().as_millis());
    assert_eq!(direct.unwrap()["lost"], 0, "and it is the same connection");
}

#[test]
fn routers_that_forget_everything_again_and_again_lose_nothing() {
    let Some(mut pair) = Pair::connect(Nat::PortRestricted, Nat::Carrier, First::Host) else { return };
    assert!(pair.settles(DIRECT_WITHIN).0);
    for round in 0..FORGETFUL_ROUNDS {
        pair.world[pair.guest_side].rebind().unwrap();
        pair.world[pair.host_side].rebind().unwrap();
        let answered = pair.guest.asks("forgotten");
        println!("{round}: {answered}");
        assert_eq!((&answered["more"]["survived"], &answered["lost"]), (&json!(true), &json!(0)), "{answered}");
    }
}

#[test]
fn a_relay_that_is_25_ms_away_answers_in_a_round_trip() {
    // There and back by the guest's line alone: 50 ms, and whatever the relay takes.
    let line = Profile { delay: Duration::from_millis(25), rate: Some(20_000_000), ..Profile::default() };
    let slow = |world: &mut World, side| world.slow_down(side, [line, line], 1).unwrap();
    let prepared = Pair::connect_over(Nat::UdpBlocked, Nat::PortRestricted, First::Host, slow);
    let Some((mut pair, wire)) = prepared else { return };
    assert_eq!(pair.connected["path"], "relay");
    let answered = pair.guest.asks("far");
    println!("{answered}");
    assert_eq!(answered["path"], "relay");
    assert!(answered["ms"].as_u64().unwrap() >= 50, "{answered}");
    assert!(wire.stats().iter().all(|direction| direction.delivered > 0 && direction.lost == 0));
}

#[test]
fn who_has_moved_finds_a_direct_path_again() {
    for (guest, host) in [(Nat::Changing, Nat::PortRestricted), (Nat::PortRestricted, Nat::Changing)] {
        let Some(mut pair) = Pair::connect(guest, host, First::Host) else { return };
        assert!(pair.settles(DIRECT_WITHIN).0);
        let side = if guest == Nat::Changing { pair.guest_side } else { pair.host_side };
        pair.world.change_address(side).unwrap();
        let moved = Instant::now();
        let answered = pair.guest.asks("moved");
        let direct = if child::is_direct(&answered["path"]) {
            Some(answered.clone())
        } else {
            pair.becomes(true, UPGRADED_WITHIN)
        };
        println!("{guest} to {host}: {answered}, direct after {} ms: {direct:?}", moved.elapsed().as_millis());
        assert!(direct.is_some());
    }
}

/// All pairs of the ten kinds in both roles, and the extras with the usual router, written down.
#[test]
fn prove_every_pair() {
    if std::env::var_os("POTLUCK_PROVE_NAT").is_none() {
        return;
    }
    let extras = Nat::ALL.into_iter().filter(|nat| !Nat::MATRIX.contains(nat) && *nat != Nat::Leaky);
    let extras =
        extras.flat_map(|nat| [(nat, Nat::PortRestricted, First::Host), (Nat::PortRestricted, nat, First::Guest)]);
    let cells = measure_all(square(Nat::MATRIX).into_iter().chain(extras).collect());
    let direct = cells.iter().filter(|cell| cell["became"] == "direct").count();
    let result = json!({
        "what": "pairs of nodes behind NATs (network namespaces and nftables on one machine, one relay of the swarm's own with TLS and address discovery): connected by the relay's address alone, then watched until the path was direct, or for 7 s; milliseconds since the dial; `moved`: from a change of a side's outside address to the next answer",
        "pairs": cells.len(), "direct": direct, "cells": cells,
        "table": table(&cells).lines().map(str::trim_end).collect::<Vec<_>>(),
        "commit": std::env::var("POTLUCK_COMMIT").unwrap_or_default(),
    });
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/results/nat-matrix.json");
    std::fs::write(path, format!("{result:#}\n")).unwrap();
}
