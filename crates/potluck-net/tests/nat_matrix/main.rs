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

use std::time::Duration;

use pair::{First, Pair};
use potluck_netem::Nat;

#[test]
fn child() {
    child::run();
}

#[test]
fn smoke() {
    for (g, h) in [
        (Nat::PortRestricted, Nat::PortRestricted),
        (Nat::Symmetric, Nat::AddressRestricted),
        (Nat::Symmetric, Nat::Symmetric),
        (Nat::Ipv6Only, Nat::OnlyTcp443),
    ] {
        let Some(pair) = Pair::connect(g, h, First::Host) else { return };
        println!("{g} {h} {} {:?}", pair.connected, pair.settles(Duration::from_secs(10)));
    }
}
