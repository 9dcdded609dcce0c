//! Which services a grant lets its holder reach.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::IpAddr;

use potluck_core::{PeerId, SecretKey};
use potluck_grant::{
    ByteMeter, Caveats, Gate, Grant, GrantError, Net, Place, Ports, Reach, Right, Role, Root, is_link_local,
};
use potluck_wire::{Call, Dial, Host, Service, Way};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 24 * 3_600;

fn root() -> Root {
    Root::from_bytes(&[9; 32])
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

fn peer(n: u8) -> PeerId {
    key(n).peer_id()
}

fn caveats(role: Option<Role>, ports: &[&str], nets: &[&str]) -> Caveats {
    Caveats {
        role,
        until: Some(NOW + DAY),
        ports: ports.iter().map(|text| text.parse().unwrap()).collect(),
        nets: nets.iter().map(|text| text.parse().unwrap()).collect(),
        ..Caveats::default()
    }
}

fn granted(role: Role, ports: &[&str], nets: &[&str]) -> Vec<u8> {
    root().grant_as(peer(1), &caveats(Some(role), ports, nets)).unwrap().into_bytes()
}

fn handed_on(grant: &[u8], caveats: &Caveats) -> Vec<u8> {
    Grant::hand_on(grant, root().public().root(), &key(1), peer(2), caveats).unwrap().into_bytes()
}

/// Whether the holder of a grant may reach a service at an address.
fn reach(grant: &[u8], holder: u8, service: Service, address: &str) -> Result<(), GrantError> {
    let gate = Gate::new(root().public());
    let member = gate.check(grant, peer(holder), NOW)?;
    let asked = Reach { service, address: Some(address.parse().unwrap()) };
    gate.authorize(&member, asked, Place { peer: peer(200), now: NOW }).map(|_| ())
}

const SSH: Service = Service::Tcp(22);
const DNS: Service = Service::Udp(53);

#[test]
fn members_reach_what_is_exposed_and_guests_what_is_named() {
    let member = granted(Role::Member, &[], &[]);
    assert_eq!(reach(&member, 1, SSH, "127.0.0.1"), Ok(()));
    assert_eq!(reach(&member, 1, DNS, "192.168.1.1"), Ok(()));
    for role in [Role::Guest, Role::Auditor] {
        let denied = Err(GrantError::NoRight(Right::Reach));
        assert_eq!(reach(&granted(role, &[], &[]), 1, SSH, "127.0.0.1"), denied);
        let named = granted(role, &["tcp:22"], &[]);
        assert_eq!(reach(&named, 1, SSH, "127.0.0.1"), Ok(()));
        assert_eq!(reach(&named, 1, DNS, "127.0.0.1"), Err(GrantError::NotThisPort(DNS)));
        let elsewhere = "192.168.1.1";
        let not_there = Err(GrantError::NotThisHost(elsewhere.parse().unwrap()));
        assert_eq!(reach(&named, 1, SSH, elsewhere), not_there, "ports alone are the peer's own");
        assert_eq!(reach(&granted(role, &["22"], &["192.168.1.0/24"]), 1, SSH, elsewhere), Ok(()));
    }
}

#[test]
fn applications_are_for_members_and_where_ports_are_named_for_whom_port_0_is() {
    let gate = Gate::new(root().public());
    let call = |role: Role, ports: &[&str], nets: &[&str]| {
        let member = gate.check(&granted(role, ports, nets), peer(1), NOW).unwrap();
        let call = Call { topic: "news".into(), way: Way::Stream };
        gate.authorize(&member, call, Place { peer: peer(200), now: NOW }).map(drop)
    };
    assert_eq!(call(Role::Member, &[], &[]), Ok(()));
    assert_eq!(call(Role::Guest, &[], &[]), Err(GrantError::NoRight(Right::Reach)));
    for role in [Role::Member, Role::Guest] {
        assert_eq!(call(role, &["tcp:22"], &[]), Err(GrantError::NotThisPort(Service::Tcp(0))));
        assert_eq!(call(role, &["tcp:22", "tcp:0"], &[]), Ok(()));
    }
    let elsewhere = call(Role::Member, &[], &["10.0.0.0/8"]);
    assert_eq!(elsewhere, Err(GrantError::NotThisHost("127.0.0.1".parse().unwrap())));
}

#[test]
fn whoever_hands_on_takes_away() {
    let narrow = granted(Role::Member, &["tcp:20-30", "udp:53"], &["10.0.0.0/8"]);
    let wider = handed_on(&narrow, &caveats(None, &["tcp:*"], &["0.0.0.0/0"]));
    assert_eq!(reach(&wider, 2, SSH, "10.1.1.1"), Ok(()));
    assert_eq!(reach(&wider, 2, DNS, "10.1.1.1"), Err(GrantError::NotThisPort(DNS)));
    assert_eq!(reach(&wider, 2, Service::Tcp(80), "10.1.1.1"), Err(GrantError::NotThisPort(Service::Tcp(80))));
    let loopback: IpAddr = "127.0.0.1".parse().unwrap();
    assert_eq!(reach(&wider, 2, SSH, "127.0.0.1"), Err(GrantError::NotThisHost(loopback)));
    // A guest cannot name ports for another guest: what it has not, it cannot pass on.
    let guest = granted(Role::Guest, &[], &[]);
    let posing = handed_on(&guest, &caveats(Some(Role::Owner), &["tcp:22"], &["127.0.0.0/8"]));
    assert_eq!(reach(&posing, 2, SSH, "127.0.0.1"), Err(GrantError::NoRight(Right::Reach)));
    // A member's guest reaches what the member names.
    let member = granted(Role::Member, &[], &[]);
    let guest = handed_on(&member, &caveats(Some(Role::Guest), &["tcp:22"], &[]));
    assert_eq!(reach(&guest, 2, SSH, "::1"), Ok(()));
    assert_eq!(reach(&guest, 2, SSH, "10.1.1.1"), Err(GrantError::NotThisHost("10.1.1.1".parse().unwrap())));
}

#[test]
fn what_is_on_a_machines_link_alone_is_reached_where_it_is_named() {
    let metadata = "169.254.169.254";
    for nets in [&[][..], &["0.0.0.0/0"], &["169.0.0.0/8"]] {
        let grant = granted(Role::Owner, &[], nets);
        let refused = Err(GrantError::NotThisHost(metadata.parse().unwrap()));
        assert_eq!(reach(&grant, 1, Service::Tcp(80), metadata), refused, "{nets:?}");
        // The same address in an IPv6 coat.
        assert!(reach(&grant, 1, Service::Tcp(80), "::ffff:169.254.169.254").is_err(), "{nets:?}");
    }
    assert_eq!(reach(&granted(Role::Owner, &[], &[metadata]), 1, Service::Tcp(80), metadata), Ok(()));
    let every = granted(Role::Owner, &[], &[]);
    let named_later = handed_on(&every, &caveats(None, &[], &[metadata]));
    assert!(reach(&named_later, 2, Service::Tcp(80), metadata).is_err(), "nobody names it but the root");
    for nowhere in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "fe80::1"] {
        assert!(reach(&every, 1, SSH, nowhere).is_err(), "{nowhere}");
    }
    assert!(is_link_local("fe80::1".parse().unwrap()) && !is_link_local("fd00::1".parse().unwrap()));
}

#[test]
fn a_host_is_asked_for_by_name_first_and_by_address_then() {
    let gate = Gate::new(root().public());
    let place = Place { peer: peer(200), now: NOW };
    let grant = granted(Role::Guest, &["tcp:22"], &[]);
    let member = gate.check(&grant, peer(1), NOW).unwrap();
    let dial = |service, host| gate.authorize(&member, Dial { service, host }, place);
    assert!(dial(SSH, Host::Name("anything.example".into())).is_ok(), "what it resolves to is asked for later");
    assert!(dial(SSH, Host::Own).is_ok());
    assert!(dial(SSH, Host::V4([10, 0, 0, 1])).is_err());
    assert!(dial(DNS, Host::Own).is_err());
    assert!(dial(Service::Echo, Host::Own).is_ok());
}

#[test]
fn bytes_are_counted_for_all_that_rest_on_a_link() {
    let limited = |bytes_per_day| Caveats { bytes_per_day: Some(bytes_per_day), ..Caveats::default() };
    let base = Caveats { bytes_per_day: Some(100), ..caveats(Some(Role::Member), &[], &[]) };
    let grant = root().grant_as(peer(1), &base).unwrap().into_bytes();
    let gate = Gate::new(root().public());
    let [whole, part] = [grant.clone(), handed_on(&grant, &limited(70))].map(|grant| gate.read(&grant).unwrap());
    let mut meter = ByteMeter::default();
    let spent = |link: usize, bytes_per_day| Err(GrantError::BytesSpent { link: part.links()[link].id, bytes_per_day });
    assert_eq!(meter.charge(part.scope(), 70, NOW), Ok(()));
    assert_eq!(meter.charge(part.scope(), 1, NOW), spent(1, 70));
    assert_eq!(meter.charge(whole.scope(), 31, NOW), spent(0, 100));
    assert_eq!(meter.charge(whole.scope(), 30, NOW), Ok(()));
    assert_eq!(meter.charge(whole.scope(), 1, NOW + DAY), Ok(()), "another day");
    assert_eq!(meter.charge(whole.scope(), u64::MAX, NOW + DAY), spent(0, 100));
}

#[test]
fn ports_and_networks_read_what_they_print() {
    for text in ["tcp:22", "udp:53", "tcp:8000-8100", "udp:*"] {
        assert_eq!(text.parse::<Ports>().unwrap().to_string(), text);
    }
    assert_eq!("22".parse::<Ports>(), "tcp:22".parse());
    for bad in ["", "tcp", "tcp:", "sctp:1", "tcp:70000", "tcp:9-8", "tcp:1-2-3", "-1", "tcp:22 "] {
        assert!(bad.parse::<Ports>().is_err(), "{bad}");
    }
    for text in ["10.0.0.0/8", "192.168.1.10", "fd00::/8", "::1", "0.0.0.0/0", "::/0"] {
        assert_eq!(text.parse::<Net>().unwrap().to_string(), text);
    }
    for bad in ["", "10.0.0.1/8", "10.0.0.0/33", "::/129", "host", "10.0.0.0/", "1.2.3.4/-1", "::1/127"] {
        assert!(bad.parse::<Net>().is_err(), "{bad}");
    }
    assert_eq!("::ffff:10.0.0.1".parse::<Net>(), "10.0.0.1".parse());
}
