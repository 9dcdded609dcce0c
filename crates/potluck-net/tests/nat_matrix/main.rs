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
    time::Duration,
};

use pair::{First, Pair};
use potluck_netem::Nat;
use serde_json::{Value, json};

/// Longest wait for a direct path where there must be one.
const DIRECT_WITHIN: Duration = Duration::from_secs(30);

/// So long is a pair watched that must not find one.
const RELAYED_FOR: Duration = Duration::from_secs(7);

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
            "survived": answered["more"]["survived"], "path": answered["path"],
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
    let first = |row: usize, column: usize| if (row + column) % 2 == 0 { First::Host } else { First::Guest };
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
