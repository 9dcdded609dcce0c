//! Links between namespaces, seen by programs that know nothing of them.
#![cfg(all(target_os = "linux", feature = "namespaces"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use rustix::net::sockopt;

use potluck_netem::{
    Namespace, Nat, RELAY_V4, Star, Wire, World,
    link::{Line, Profile},
};

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

/// Bytes of IP and UDP before what a datagram carries.
const HEADERS: usize = 28;

/// Bytes of the packets of a train.
const PACKET: usize = 1_400;

/// Sends packets at once, a fifth of a second of them or what the queue holds; bits a second in which they get there. That is the
/// line's rate or less: whoever receives may be late, and never early.
fn train(from: &Namespace, to: &Namespace, at: &str, line: Profile) -> f64 {
    let receiving = to.udp(at).unwrap();
    receiving.set_read_timeout(Some(40 * DELAY)).unwrap();
    // All of it fits, so that nothing is lost while this process waits for its turn.
    sockopt::set_socket_recv_buffer_size_force(&receiving, 8 << 20).unwrap();
    let sending = from.udp("0.0.0.0").unwrap();
    sending.connect(receiving.local_addr().unwrap()).unwrap();
    let room = line.queue_bytes.min(line.rate.unwrap() as usize / 40);
    let packets = room / (PACKET + HEADERS);
    let begun = Instant::now();
    let sender = std::thread::spawn(move || {
        (0..packets).for_each(|number| {
            let mut packet = [0; PACKET];
            packet[..8].copy_from_slice(&number.to_le_bytes());
            sending.send(&packet).unwrap();
        });
    });
    let arrivals = arrivals(&receiving, packets);
    sender.join().unwrap();
    assert!(arrivals.is_sorted_by_key(|(_, number)| *number), "a line keeps its order");
    assert!(arrivals.len() > packets / 2, "{} of {packets}", arrivals.len());
    let (at, last) = arrivals[arrivals.len() - 1];
    // Those that were lost on the way have taken their time, too.
    ((last + 1) * (PACKET + HEADERS) * 8) as f64 / (at - begun - line.delay.saturating_sub(line.jitter)).as_secs_f64()
}

/// When packets came, and their numbers, until the last of them or none for long.
fn arrivals(socket: &UdpSocket, packets: usize) -> Vec<(Instant, usize)> {
    let (mut buffer, mut arrivals) = ([0; PACKET], Vec::new());
    while socket.recv(&mut buffer).is_ok() {
        let number = usize::from_le_bytes(buffer[..8].try_into().unwrap());
        arrivals.push((Instant::now(), number));
        if number == packets - 1 {
            break;
        }
    }
    arrivals
}

/// What ping and a transfer see of a line, both ways.
fn measures(line: Line) {
    let Some(world) = World::or_skip() else { return };
    let [first, second] = [1, 2].map(|number| world.machine(number).unwrap());
    let [up, down] = line.both();
    let wire = Wire::between(&first, &second, [up, down], 1).unwrap();
    let (lost, quickest) = ping(&first, "10.99.0.2", 20, "0.02");
    let [expected, jitter] = [up.delay + down.delay, up.jitter + down.jitter].map(|time| time.as_secs_f64() * 1e3);
    let quickest = quickest.unwrap();
    assert!(lost < 5, "{line}: {lost} of 20 pings");
    let range = expected - jitter..expected + jitter + TOLERANCE_MS;
    assert!(range.contains(&quickest), "{line}: {quickest} ms instead of {range:?}");
    for (from, to, at, profile) in [(&first, &second, "10.99.0.2", up), (&second, &first, "10.99.0.1", down)] {
        // The quickest of some trains: on a busy machine most are late.
        let rates = [0; 8].map(|_| train(from, to, at, profile));
        let share = rates.into_iter().fold(0.0, f64::max) / profile.rate.unwrap() as f64;
        assert!((0.7..1.01).contains(&share), "{line}: {rates:?} bits a second instead of {:?}", profile.rate);
    }
    let [there, back] = wire.stats();
    assert!(there.no_room + back.no_room == 0, "{line}: {there:?} {back:?}");
    assert!(wire.cpu_time() > Duration::ZERO);
}

#[test]
fn a_lan_is_what_it_says() {
    measures(Line::Lan);
}

#[test]
fn wifi_is_what_it_says() {
    measures(Line::Wifi);
}

#[test]
fn a_metro_is_what_it_says() {
    measures(Line::Metro);
}

#[test]
fn a_continent_is_what_it_says() {
    measures(Line::Continent);
}

#[test]
fn an_ocean_is_what_it_says() {
    measures(Line::Ocean);
}

#[test]
fn dsl_is_what_it_says() {
    measures(Line::Dsl);
}

#[test]
fn lte_is_what_it_says() {
    measures(Line::Lte);
}

#[test]
fn a_satellite_is_what_it_says() {
    measures(Line::Satellite);
}

#[test]
fn packets_that_are_held_back_are_overtaken() {
    let Some(world) = World::or_skip() else { return };
    let [first, second] = [1, 2].map(|number| world.machine(number).unwrap());
    let shuffled = Profile { reorder: 0.2, reorder_by: 5 * MS, ..slow() };
    let _wire = Wire::between(&first, &second, [shuffled, slow()], 1).unwrap();
    let receiving = second.udp("10.99.0.2").unwrap();
    receiving.set_read_timeout(Some(20 * DELAY)).unwrap();
    let sending = first.udp("0.0.0.0").unwrap();
    for number in 0..100_usize {
        sending.send_to(&number.to_le_bytes(), receiving.local_addr().unwrap()).unwrap();
    }
    let mut arrivals: Vec<_> = arrivals(&receiving, usize::MAX).into_iter().map(|(_, number)| number).collect();
    assert!(!arrivals.is_sorted());
    arrivals.sort_unstable();
    assert_eq!(arrivals, (0..100).collect::<Vec<_>>());
}

#[test]
fn lines_of_a_star_add_up() {
    let line = |up_ms: u32, down_ms: u32, up: u64, down: u64| {
        [(up_ms, up), (down_ms, down)].map(|(ms, rate)| Profile { delay: ms * MS, rate: Some(rate), ..slow() })
    };
    let lines = [line(5, 10, 4_000_000, 20_000_000), line(20, 15, 8_000_000, 6_000_000), line(1, 1, RATE, RATE)];
    let Some(star) = Star::or_skip(&lines, 1) else { return };
    assert_eq!([star.one_way(0, 1), star.one_way(1, 0), star.round_trip(0, 1)], [20 * MS, 30 * MS, 50 * MS]);
    assert_eq!([star.rate(0, 1), star.rate(1, 0), star.rate(2, 0)], [4_000_000, 8_000_000, RATE].map(Some));
    assert_eq!((star.round_trip(2, 2), star.rate(2, 2)), (Duration::ZERO, None));
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let (lost, quickest) = ping(&star.machines()[from], &star.address(to).to_string(), 10, "0.01");
        let (expected, quickest) = (star.round_trip(from, to).as_secs_f64() * 1e3, quickest.unwrap());
        assert_eq!(lost, 0);
        assert!((expected..expected + TOLERANCE_MS).contains(&quickest), "{quickest} ms instead of {expected}");
    }
    // What the first and the last say to each other passes nobody else.
    let before = star.stats();
    ping(&star.machines()[0], &star.address(2).to_string(), 3, "0.01");
    let after = star.stats();
    assert_eq!(before[1], after[1]);
    assert!(after[0][0].delivered >= before[0][0].delivered + 3 && after[2][1].delivered >= before[2][1].delivered + 3);
    for (from, to) in [(0, 1), (1, 0), (2, 1)] {
        let (machines, expected) = (star.machines(), star.rate(from, to).unwrap() as f64);
        let rate = transfer(&machines[from], &machines[to], &star.address(to).to_string(), 1_000_000);
        assert!((expected / 2.0..expected).contains(&rate), "{rate} bits a second instead of {expected}");
    }
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
