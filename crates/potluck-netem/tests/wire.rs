//! Links between namespaces, seen by programs that know nothing of them.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use potluck_netem::{Namespace, Nat, RELAY_V4, Wire, World, link::Profile};

const MS: Duration = Duration::from_millis(1);

/// Half of a round trip that the slow links of these tests take.
const DELAY: Duration = Duration::from_millis(25);

/// Above its delay, a ping may take this much on a busy machine; the quickest of them is judged.
const TOLERANCE_MS: f64 = 8.0;

/// What the slow links carry, in bits a second.
const RATE: u64 = 20_000_000;

/// Runs `ping` there; the packets that it lost, and the quickest round trip in milliseconds.
fn ping(from: &Namespace, to: &str, count: usize, interval: &str) -> (usize, Option<f64>) {
    let count = count.to_string();
    let output = from.command("ping").args(["-n", "-q", "-W", "2", "-c", &count, "-i", interval, to]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let received = text.split(" received").next().unwrap().rsplit(' ').next().unwrap();
    let lost = count.parse::<usize>().unwrap() - received.parse::<usize>().unwrap();
    let quickest = text.split("mdev = ").nth(1).map(|times| times.split('/').next().unwrap().parse().unwrap());
    (lost, quickest)
}

/// Sends that many bytes over TCP; bits a second, from the dial to the last byte.
fn transfer(from: &Namespace, to: &Namespace, at: &str, bytes: usize) -> f64 {
    let listener = to.inside(|| TcpListener::bind((at, 0))).unwrap();
    let target = listener.local_addr().unwrap();
    let begun = Instant::now();
    let sending = from.inside(|| TcpStream::connect_timeout(&target, 100 * DELAY)).unwrap();
    let (mut receiving, _) = listener.accept().unwrap();
    receiving.set_read_timeout(Some(400 * DELAY)).unwrap();
    let sender = std::thread::spawn(move || {
        let mut sending = sending;
        sending.write_all(&vec![7; bytes]).unwrap();
    });
    let mut received = Vec::with_capacity(bytes);
    receiving.read_to_end(&mut received).unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    sender.join().unwrap();
    assert!(received.len() == bytes && received.iter().all(|byte| *byte == 7));
    bytes as f64 * 8.0 / seconds
}

fn slow() -> Profile {
    Profile { delay: DELAY, rate: Some(RATE), queue_bytes: 256 << 10, ..Profile::default() }
}

#[test]
fn a_wire_takes_its_time_and_keeps_its_rate() {
    let Some(world) = World::or_skip() else { return };
    let [first, second] = [1, 2].map(|number| world.machine(number).unwrap());
    let wire = Wire::between(&first, &second, [slow(), slow()], 1).unwrap();
    let (lost, quickest) = ping(&first, "10.99.0.2", 20, "0.01");
    let (expected, quickest) = (2.0 * DELAY.as_secs_f64() * 1e3, quickest.unwrap());
    assert_eq!(lost, 0);
    assert!((expected..expected + TOLERANCE_MS).contains(&quickest), "{quickest} ms instead of {expected}");

    for (from, to, at) in [(&first, &second, "10.99.0.2"), (&second, &first, "10.99.0.1")] {
        let rate = transfer(from, to, at, 5_000_000);
        assert!((RATE as f64 / 2.0..RATE as f64).contains(&rate), "{rate} bits a second over a link of {RATE}");
    }
    let [there, back] = wire.stats();
    assert!(there.delivered_bytes > 5_000_000 && back.delivered_bytes > 5_000_000, "{there:?} {back:?}");
    assert_eq!((there.lost, back.lost), (0, 0));

    drop(wire);
    assert_eq!(ping(&first, "10.99.0.2", 1, "0.01").0, 1, "it is cut");
}

#[test]
fn what_a_wire_loses_is_lost_and_nothing_else() {
    let Some(world) = World::or_skip() else { return };
    let [first, second] = [1, 2].map(|number| world.machine(number).unwrap());
    let lossy = Profile { loss: 0.1, delay: MS, ..Profile::default() };
    let wire = Wire::between(&first, &second, [lossy, Profile { loss: 0.05, ..lossy }], 3).unwrap();
    let before = wire.stats().map(|direction| direction.lost);
    assert_eq!(before, [0, 0], "nothing but the pings is on it");
    let (lost, _) = ping(&first, "10.99.0.2", 400, "0.005");
    let [there, back] = wire.stats();
    assert_eq!(there.lost + back.lost, lost as u64, "{there:?} {back:?}");
    assert!((20..70).contains(&there.lost) && (5..40).contains(&back.lost), "{there:?} {back:?}");
}

#[test]
fn a_side_behind_a_slow_line_reaches_the_internet_through_its_nat() {
    let Some(mut world) = World::or_skip() else { return };
    for nat in [Nat::PortRestricted, Nat::OnlyTcp443] {
        let side = world.side(nat).unwrap();
        let quick = ping(world[side].host(), RELAY_V4, 5, "0.01");
        let wire = world.slow_down(side, [slow(), slow()], 5).unwrap();
        let host = world[side].host();
        if nat == Nat::OnlyTcp443 {
            assert_eq!(quick.0, 5, "nothing but TCP passes");
            let _listener = world.relay().inside(|| TcpListener::bind((RELAY_V4, 443))).unwrap();
            let to = format!("{RELAY_V4}:443").parse().unwrap();
            assert!(host.inside(|| TcpStream::connect_timeout(&to, 100 * DELAY)).is_ok());
        } else {
            let slow = ping(host, RELAY_V4, 5, "0.01");
            assert!(quick.1.unwrap() < 50.0 && slow.1.unwrap() >= 50.0, "{quick:?} {slow:?}");
        }
        assert!(wire.stats()[0].delivered > 0 && wire.stats()[1].delivered > 0);
    }
}
