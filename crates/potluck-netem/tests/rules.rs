//! The rules themselves, measured from outside: where a host's packets seem to come from, and who gets back in. A cell of the
//! peers' matrix that is red then accuses the peers, and not the network.
#![cfg(all(target_os = "linux", feature = "namespaces"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use potluck_netem::{Namespace, Nat, RELAY_V4, RELAY_V6, SideId, World};

/// Longest wait for a packet that must come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest wait for one that must not: on this machine they take microseconds.
const ABSENCE: Duration = Duration::from_millis(500);

/// Another machine on the internet, beside the relay's.
const OTHER: u8 = 251;

/// What a prober sees of a NAT.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Outside ports of one inside port, towards three destinations.
    ports: usize,
    /// Whether a packet gets in from another port of an address that was written to, and from another address.
    other_port: bool,
    other_address: bool,
}

const NOTHING_PASSES: Option<Seen> = None;

fn seen(ports: usize, other_port: bool, other_address: bool) -> Option<Seen> {
    Some(Seen { ports, other_port, other_address })
}

/// A world with one side behind that NAT, and sockets on it: one of a host inside, three of the internet on two machines.
struct Probe {
    world: World,
    side: SideId,
    host: UdpSocket,
    /// Two of one machine, then one of another.
    outside: [UdpSocket; 3],
    _other: Namespace,
}

impl Probe {
    fn new(nat: Nat) -> Option<Self> {
        let mut world = World::or_skip()?;
        let side = world.side(nat).unwrap();
        let other = world.machine(OTHER).unwrap();
        let (any, relay, another) = match nat {
            Nat::Ipv6Only => ("::", RELAY_V6, format!("2001:db8::{OTHER}")),
            _ => ("0.0.0.0", RELAY_V4, format!("198.18.0.{OTHER}")),
        };
        let host = world[side].host().udp(any).unwrap();
        let outside =
            [world.relay().udp(relay).unwrap(), world.relay().udp(relay).unwrap(), other.udp(&another).unwrap()];
        Some(Self { world, side, host, outside, _other: other })
    }

    /// The host writes to one of the outside sockets: where that came from, if it came.
    fn out(&self, to: usize) -> Option<SocketAddr> {
        send(&self.host, self.outside[to].local_addr().unwrap(), to as u8);
        received(&self.outside[to], to as u8, PATIENCE)
    }

    /// Waits for the first packet that long: it must come, or must not.
    fn measure(&self, wait: Duration) -> Option<Seen> {
        send(&self.host, self.outside[0].local_addr().unwrap(), 0);
        let from = received(&self.outside[0], 0, wait)?;
        // Nobody else was written to yet. What the first sends last is welcome, and arrives after the others.
        send(&self.outside[1], from, 11);
        send(&self.outside[2], from, 12);
        send(&self.outside[0], from, 10);
        let mut got = BTreeSet::new();
        self.host.set_read_timeout(Some(PATIENCE)).unwrap();
        while !got.contains(&10) {
            got.insert(byte(&self.host).expect("an answer comes back in").0);
        }
        // It may have overtaken them on another core.
        self.host.set_read_timeout(Some(ABSENCE)).unwrap();
        while let Some((late, _)) = byte(&self.host) {
            got.insert(late);
        }
        let ports: BTreeSet<_> = [Some(from), self.out(1), self.out(2)].map(|from| from.unwrap().port()).into();
        Some(Seen { ports: ports.len(), other_port: got.contains(&11), other_address: got.contains(&12) })
    }
}

fn send(from: &UdpSocket, to: SocketAddr, what: u8) {
    // A router that refuses says so at the next call of this socket.
    let _ = from.send_to(&[what], to);
}

fn byte(socket: &UdpSocket) -> Option<(u8, SocketAddr)> {
    let mut buffer = [0; 16];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(length, 1);
    Some((buffer[0], from))
}

/// Where that byte came from, if it came in time.
fn received(socket: &UdpSocket, what: u8, patience: Duration) -> Option<SocketAddr> {
    socket.set_read_timeout(Some(patience)).unwrap();
    let (got, from) = byte(socket)?;
    assert_eq!(got, what);
    Some(from)
}

/// A kind does what the table says, and the world sees the address of its router.
fn measures(nat: Nat, expected: Option<Seen>) {
    let Some(probe) = Probe::new(nat) else { return };
    let wait = if expected.is_some() { PATIENCE } else { ABSENCE };
    assert_eq!(probe.measure(wait), expected, "{nat}");
    if expected.is_some() && nat != Nat::Open && nat != Nat::Firewall && nat != Nat::Ipv6Only {
        assert_eq!(probe.out(0).unwrap().ip(), "198.18.0.1".parse::<IpAddr>().unwrap());
    }
}

#[test]
fn open() {
    measures(Nat::Open, seen(1, true, true));
}

#[test]
fn firewall() {
    measures(Nat::Firewall, seen(1, false, false));
}

#[test]
fn full_cone() {
    measures(Nat::FullCone, seen(1, true, true));
}

#[test]
fn address_restricted() {
    measures(Nat::AddressRestricted, seen(1, true, false));
}

#[test]
fn port_restricted() {
    measures(Nat::PortRestricted, seen(1, false, false));
}

#[test]
fn symmetric() {
    measures(Nat::Symmetric, seen(3, false, false));
}

#[test]
fn carrier() {
    measures(Nat::Carrier, seen(1, false, false));
}

#[test]
fn carrier_symmetric() {
    measures(Nat::CarrierSymmetric, seen(3, false, false));
}

#[test]
fn udp_blocked() {
    measures(Nat::UdpBlocked, NOTHING_PASSES);
}

#[test]
fn udp_rejected() {
    measures(Nat::UdpRejected, NOTHING_PASSES);
}

#[test]
fn ipv6_only() {
    measures(Nat::Ipv6Only, seen(1, false, false));
}

#[test]
fn hairpin() {
    measures(Nat::Hairpin, seen(1, true, true));
}

/// TCP to those ports of the relay's machine, from a host behind that NAT.
fn tcp(nat: Nat, ports: [u16; 2]) -> Option<[bool; 2]> {
    let mut world = World::or_skip()?;
    let side = world.side(nat).unwrap();
    let relay: IpAddr = if nat == Nat::Ipv6Only { RELAY_V6 } else { RELAY_V4 }.parse().unwrap();
    Some(ports.map(|port| {
        let _listener = world.relay().inside(|| TcpListener::bind((relay, port))).unwrap();
        world[side].host().inside(|| TcpStream::connect_timeout(&(relay, port).into(), 2 * ABSENCE)).is_ok()
    }))
}

#[test]
fn only_tcp_443_lets_nothing_else_out() {
    measures(Nat::OnlyTcp443, NOTHING_PASSES);
    let Some(passed) = tcp(Nat::OnlyTcp443, [443, 8443]) else { return };
    assert_eq!(passed, [true, false]);
    for nat in [Nat::UdpBlocked, Nat::Symmetric, Nat::AddressRestricted, Nat::Carrier, Nat::Ipv6Only, Nat::Open] {
        assert_eq!(tcp(nat, [443, 8443]), Some([true, true]), "{nat}");
    }
}

#[test]
fn changing_is_port_restricted_at_one_address_after_another() {
    let Some(mut world) = World::or_skip() else { return };
    let side = world.side(Nat::Changing).unwrap();
    let host = world[side].host().udp("0.0.0.0").unwrap();
    let outside = world.relay().udp(RELAY_V4).unwrap();
    let mut addresses = Vec::new();
    for round in 0..3 {
        send(&host, outside.local_addr().unwrap(), round);
        let from = received(&outside, round, PATIENCE).unwrap();
        assert_eq!(from.ip().to_string(), world[side].outside());
        // And back in, there and nowhere else.
        send(&outside, from, round);
        assert!(received(&host, round, PATIENCE).is_some());
        addresses.push(from.ip());
        world.change_address(side).unwrap();
        send(&outside, from, 99);
        assert_eq!(received(&host, 99, ABSENCE), None, "nobody is there any more");
    }
    assert!(addresses[0] == addresses[2] && addresses[0] != addresses[1], "{addresses:?}");
    measures(Nat::Changing, seen(1, false, false));
}

#[test]
fn a_router_that_forgets_moves_the_port_of_a_symmetric_nat_and_closes_the_others() {
    for (nat, moves) in [(Nat::Symmetric, true), (Nat::PortRestricted, false), (Nat::FullCone, false)] {
        let Some(probe) = Probe::new(nat) else { return };
        let before = probe.out(0).unwrap();
        probe.world[probe.side].rebind().unwrap();
        send(&probe.outside[0], before, 9);
        assert_eq!(received(&probe.host, 9, ABSENCE), None, "{nat}: closed until the host writes again");
        assert_eq!(probe.out(0).unwrap() != before, moves, "{nat}");
    }
}

#[test]
fn udp_is_blocked_and_let_through_again() {
    let Some(mut world) = World::or_skip() else { return };
    let side = world.side(Nat::PortRestricted).unwrap();
    let host = world[side].host().udp("0.0.0.0").unwrap();
    let outside = world.relay().udp(RELAY_V4).unwrap();
    let passes = |what: u8, patience| {
        send(&host, outside.local_addr().unwrap(), what);
        received(&outside, what, patience).is_some()
    };
    assert!(passes(1, PATIENCE));
    world[side].block_udp(true).unwrap();
    assert!(!passes(2, ABSENCE));
    world[side].block_udp(false).unwrap();
    assert!(passes(3, PATIENCE));
    world[side].cut(true).unwrap();
    assert!(!passes(4, ABSENCE));
    world[side].cut(false).unwrap();
    assert!(passes(5, PATIENCE));
}

#[test]
fn neighbours_meet_at_their_outside_addresses_where_the_router_turns_packets_round() {
    for (nat, meet) in [(Nat::Hairpin, true), (Nat::FullCone, false)] {
        let Some(mut world) = World::or_skip() else { return };
        let side = world.side(nat).unwrap();
        let second = world.host(side).unwrap();
        let hosts = [0, second].map(|host| world[side].hosts()[host].udp("0.0.0.0").unwrap());
        let outside = world.relay().udp(RELAY_V4).unwrap();
        let mapped = hosts.each_ref().map(|host| {
            send(host, outside.local_addr().unwrap(), 1);
            received(&outside, 1, PATIENCE).unwrap()
        });
        assert_ne!(mapped[0], mapped[1]);
        send(&hosts[1], mapped[0], 2);
        let from = received(&hosts[0], 2, if meet { PATIENCE } else { ABSENCE });
        assert_eq!(from, meet.then_some(mapped[1]), "{nat}");
        // Whoever comes from outside keeps the address that it has.
        send(&outside, mapped[0], 3);
        assert_eq!(received(&hosts[0], 3, PATIENCE), Some(outside.local_addr().unwrap()), "{nat}");
    }
}

#[test]
fn an_early_packet_moves_the_port_of_a_leaky_router_and_of_no_other() {
    for (nat, moves) in [(Nat::Leaky, true), (Nat::PortRestricted, false), (Nat::Carrier, false)] {
        let Some(probe) = Probe::new(nat) else { return };
        let from = probe.out(0).unwrap();
        // The peer is early: nobody has written to it yet.
        send(&probe.outside[2], from, 9);
        assert_eq!(received(&probe.host, 9, ABSENCE), None, "{nat}");
        assert_eq!(probe.out(2).unwrap().port() != from.port(), moves, "{nat}");
    }
}

#[test]
fn nothing_is_left_behind() {
    let names = || {
        let listed = std::process::Command::new("ip").args(["netns", "list"]).output().unwrap();
        let own = format!("netem{}x", std::process::id());
        String::from_utf8(listed.stdout).unwrap().lines().filter(|line| line.starts_with(&own)).count()
    };
    let Some(mut world) = World::or_skip() else { return };
    let side = world.side(Nat::Carrier).unwrap();
    assert_eq!(names(), 5, "a switch, a relay, two routers and a host");
    let etc = std::path::Path::new("/etc/netns").join(world[side].host().name());
    let told = world[side].host().command("cat").arg("/etc/hosts").output().unwrap();
    assert!(String::from_utf8(told.stdout).unwrap().contains(RELAY_V6) && etc.exists());
    drop(world);
    assert_eq!(names(), 0);
    assert!(!etc.exists());
}
