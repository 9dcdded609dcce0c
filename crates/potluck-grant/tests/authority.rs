//! Grants that are handed on, narrowed and taken back: what they allow, and that nothing widens them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use potluck_core::{ModelId, PeerId, Revocation, Revoked, SecretKey, SignedRevocation};
use potluck_grant::{
    Authorized, Caveats, Chain, Gate, Grant, GrantError, GrantId, Hours, LINKS_MAX, Meter, Need, Net, Place, Ports,
    Reach, Request, Right, Role, Root, Taken,
};
use proptest::prelude::*;

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 24 * 3_600;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Asked(Right, Option<ModelId>);

impl Request for Asked {
    fn needs(&self) -> Need {
        Need { right: self.0, model: self.1 }
    }
}

fn root() -> Root {
    Root::from_bytes(&[9; 32])
}

fn gate() -> Gate {
    Gate::new(root().public())
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

fn peer(n: u8) -> PeerId {
    key(n).peer_id()
}

fn model(n: u8) -> ModelId {
    ModelId::from_bytes([n; 32])
}

fn as_role(role: Role) -> Caveats {
    Caveats { role: Some(role), until: Some(NOW + DAY), ..Caveats::default() }
}

fn granted(to: u8, caveats: &Caveats) -> Vec<u8> {
    root().grant_as(peer(to), caveats).unwrap().into_bytes()
}

fn hand_on(grant: &[u8], from: u8, to: u8, caveats: &Caveats) -> Result<Vec<u8>, GrantError> {
    Grant::hand_on(grant, root().public().root(), &key(from), peer(to), caveats).map(Grant::into_bytes)
}

fn ask(gate: &Gate, grant: &[u8], holder: u8, asked: Asked, place: Place) -> Result<Authorized<Asked>, GrantError> {
    gate.authorize(&gate.check(grant, peer(holder), place.now)?, asked, place)
}

fn here(now: u64) -> Place {
    Place { peer: peer(200), now }
}

#[test]
fn each_role_may_what_it_may() {
    for role in Role::ALL {
        let grant = granted(1, &as_role(role));
        for right in Right::ALL {
            let answer = ask(&gate(), &grant, 1, Asked(right, None), here(NOW));
            match role.rights().contains(&right) {
                true => assert_eq!(*answer.unwrap().request(), Asked(right, None)),
                false => assert_eq!(answer, Err(GrantError::NoRight(right)), "{role}"),
            }
        }
        assert_eq!(role.to_string().parse(), Ok(role));
    }
    assert!("root".parse::<Role>().is_err());
}

#[test]
fn each_limit_is_kept_and_its_neighbour_is_not_harmed() {
    let hours = "18:00-06:30".parse::<Hours>().unwrap();
    let caveats = Caveats {
        from: Some(NOW - 10),
        hours: Some(hours),
        models: [model(1), model(2)].into(),
        peers: [peer(200)].into(),
        ..as_role(Role::Guest)
    };
    let (grant, gate) = (granted(1, &caveats), gate());
    // 1_800_000_000 is 08:00 UTC.
    let evening = NOW + 10 * 3_600;
    let uses = |model, place| ask(&gate, &grant, 1, Asked(Right::Use, Some(model)), place);
    assert!(uses(model(1), here(evening)).is_ok());
    assert_eq!(uses(model(3), here(evening)), Err(GrantError::NotThisModel(model(3))));
    let elsewhere = Place { peer: peer(201), now: evening };
    assert_eq!(uses(model(1), elsewhere), Err(GrantError::NotHere(peer(201))));
    assert_eq!(uses(model(1), here(NOW)), Err(GrantError::OutOfHours(hours)));
    assert_eq!(uses(model(1), here(NOW - 11)), Err(GrantError::NotYet { from: NOW - 10 }));
    assert_eq!(uses(model(1), here(NOW + DAY + 1)), Err(GrantError::Expired { at: NOW + DAY }));
    for bad in ["", "18-19", "24:01-3:00", "12:00-12:00", "12:60-13:00", "25:00-3:00"] {
        assert!(bad.parse::<Hours>().is_err(), "{bad}");
    }
}

#[test]
fn a_holder_hands_on_and_nobody_else() {
    let grant = granted(1, &as_role(Role::Member));
    let guest = hand_on(&grant, 1, 2, &Caveats { role: Some(Role::Guest), ..Caveats::default() }).unwrap();
    assert!(ask(&gate(), &guest, 2, Asked(Right::Use, None), here(NOW)).is_ok());
    assert_eq!(ask(&gate(), &guest, 2, Asked(Right::Lend, None), here(NOW)), Err(GrantError::NoRight(Right::Lend)));
    // The peers of its route see a grant: they cannot use it, nor hand it on.
    assert_eq!(gate().check(&guest, peer(3), NOW), Err(GrantError::NotAdmitted(peer(3))));
    assert_eq!(gate().check(&guest, peer(1), NOW), Err(GrantError::NotAdmitted(peer(1))));
    assert_eq!(hand_on(&guest, 3, 3, &Caveats::default()), Err(GrantError::NotAdmitted(peer(3))));
    let chain = gate().read(&guest).unwrap();
    assert_eq!(chain.links().iter().map(|link| link.holder).collect::<Vec<_>>(), [peer(1), peer(2)]);
}

#[test]
fn a_block_that_was_signed_for_one_grant_fits_no_other() {
    // GHSA-p9w4-585h-g3c7: what a holder signed below a narrow grant must not be moved below a wide one.
    use biscuit_auth::{Algorithm, Biscuit, BlockBuilder, PrivateKey, PublicKey};
    let public = PublicKey::from_bytes(root().public().as_bytes(), Algorithm::Ed25519).unwrap();
    let narrow = Biscuit::from(granted(1, &as_role(Role::Guest)), public).unwrap();
    let wide = Biscuit::from(granted(1, &as_role(Role::Owner)), public).unwrap();
    let signer = PrivateKey::from_bytes(&[1; 32], Algorithm::Ed25519).unwrap();
    let code = format!("holder(hex:{});", peer(2));
    let request = narrow.third_party_request().unwrap();
    let block = request.create_block(&signer, BlockBuilder::new().code(code).unwrap()).unwrap();
    assert!(narrow.append_third_party(signer.public(), block.clone()).is_ok());
    let moved = wide.append_third_party(signer.public(), block).and_then(|token| token.to_vec());
    assert!(moved.is_err() || gate().check(&moved.unwrap(), peer(2), NOW).is_err());
}

#[test]
fn handing_on_ends_where_the_grant_says_so_and_where_it_has_no_room() {
    let once = granted(1, &Caveats { hand_on: Some(1), ..as_role(Role::Member) });
    let second = hand_on(&once, 1, 2, &Caveats::default()).unwrap();
    assert_eq!(hand_on(&second, 2, 3, &Caveats { hand_on: Some(9), ..Caveats::default() }), Err(GrantError::HandedOn));
    let mut grant = granted(1, &as_role(Role::Member));
    let mut links = 1;
    let refused = loop {
        match hand_on(&grant, 1, 1, &Caveats::default()) {
            Ok(longer) => (grant, links) = (longer, links + 1),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, GrantError::TooLarge { .. } | GrantError::TooLong(_)), "{refused}");
    assert!((4..=LINKS_MAX).contains(&links), "{links} links");
}

#[test]
fn what_rests_on_something_taken_back_falls_with_it() {
    let gate = gate();
    let member = granted(1, &as_role(Role::Member));
    let guest = hand_on(&member, 1, 2, &Caveats::default()).unwrap();
    let other = hand_on(&member, 1, 3, &Caveats::default()).unwrap();
    let link = |grant: &[u8]| gate.read(grant).unwrap().links().last().unwrap().id;
    let revoke = |what, by: &SecretKey, grant: &[u8]| {
        gate.revoke(Revocation::sign(root().public().root(), what, NOW, by, grant.to_vec()))
    };
    let id = Revoked::Link(*link(&guest).as_bytes());
    // Whoever has no grant says nothing; whoever stands beside or below has no say.
    assert!(matches!(revoke(id, &key(3), &[]), Err(GrantError::NotOurs(_))));
    assert_eq!(revoke(id, &key(7), &other), Err(GrantError::NotAdmitted(peer(7))), "by another's grant");
    assert_eq!(revoke(id, &key(3), &other), Ok(true), "noted, for who knows which chain it is about");
    assert!(gate.check(&guest, peer(2), NOW).is_ok());
    assert_eq!(revoke(id, &key(1), &member), Ok(true));
    assert_eq!(revoke(id, &key(1), &member), Ok(false), "known already");
    assert_eq!(gate.check(&guest, peer(2), NOW), Err(GrantError::Revoked(Taken(id))));
    assert!(gate.check(&other, peer(3), NOW).is_ok(), "its neighbour stays");
    // A lost device: one revocation ends all that it holds and has handed on, members that stand at the gate included.
    let standing = gate.check(&other, peer(3), NOW).unwrap();
    assert_eq!(revoke(Revoked::Key(peer(1)), &root().key(), &[]), Ok(true));
    let lost = GrantError::Revoked(Taken(Revoked::Key(peer(1))));
    assert_eq!(gate.check(&member, peer(1), NOW), Err(lost.clone()));
    assert_eq!(gate.check(&other, peer(3), NOW), Err(lost.clone()));
    assert_eq!(gate.authorize(&standing, Asked(Right::Look, None), here(NOW)), Err(lost));
    let again = granted(4, &as_role(Role::Member));
    assert!(gate.check(&again, peer(4), NOW).is_ok());
}

#[test]
fn an_operator_revokes_all_but_owners_and_a_member_cannot_pose_as_one() {
    let gate = gate();
    let (operator, member) = (granted(1, &as_role(Role::Operator)), granted(2, &as_role(Role::Member)));
    let (victim, owner) = (granted(3, &as_role(Role::Member)), granted(4, &as_role(Role::Owner)));
    let by = |n: u8, grant: &[u8], of: u8| {
        let what = Revoked::Key(peer(of));
        gate.revoke(Revocation::sign(root().public().root(), what, NOW, &key(n), grant.to_vec()))
    };
    assert_eq!(by(2, &member, 3), Ok(true), "noted, and worth nothing against a grant that is not below its own");
    assert_eq!(by(2, &operator, 3), Err(GrantError::NotAdmitted(peer(2))), "with another's grant");
    assert!(gate.check(&victim, peer(3), NOW).is_ok());
    assert_eq!(by(1, &operator, 3), Ok(true));
    assert!(gate.check(&victim, peer(3), NOW).is_err());
    assert_eq!(by(1, &operator, 4), Ok(true));
    assert!(gate.check(&owner, peer(4), NOW).is_ok(), "owners fall by the root alone");
    assert_eq!(by(1, &operator, 1), Ok(true));
    let gone = GrantError::Revoked(Taken(Revoked::Key(peer(1))));
    assert_eq!(by(1, &operator, 2), Err(gone), "itself no operator any more");
    // Whoever hears of all this later, in the order in which it came, knows the same: what was said before stands.
    let later = Gate::new(root().public());
    assert!(gate.revocations().into_iter().all(|one| later.revoke(one) == Ok(true)));
    assert_eq!(later.revocations_digest(), gate.revocations_digest());
    assert!(later.check(&victim, peer(3), NOW).is_err());
}

#[test]
fn revocations_of_others_and_forged_ones_count_for_nothing() {
    let gate = gate();
    let what = Revoked::Key(peer(1));
    let elsewhere = Revocation::sign(Root::from_bytes(&[8; 32]).public().root(), what, NOW, &root().key(), vec![]);
    assert!(matches!(gate.revoke(elsewhere), Err(GrantError::Unreadable(_))));
    let good = Revocation::sign(root().public().root(), what, NOW, &root().key(), vec![]);
    let bytes = postcard::to_stdvec(&good).unwrap();
    for at in 0..bytes.len() {
        let mut forged = bytes.clone();
        forged[at] ^= 1;
        let taken = postcard::from_bytes::<SignedRevocation>(&forged).map(|forged| gate.revoke(forged));
        assert!(!matches!(taken, Ok(Ok(_))), "byte {at}");
    }
    assert_eq!(gate.revocations(), []);
    assert_eq!(gate.revoke(good.clone()), Ok(true));
    assert_eq!(gate.clone().revocations(), [good], "what one knows, its clones know");
}

#[test]
fn no_member_fills_the_list_whatever_keys_it_makes() {
    let gate = gate();
    let grants = [1, 2].map(|n| granted(n, &as_role(Role::Member)));
    // A member and a key of its own making take turns.
    let made = hand_on(&grants[0], 1, 11, &Caveats::default()).unwrap();
    let mut refused = 0;
    for n in 0..1_100_u32 {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_le_bytes());
        let (by, grant) = if n % 2 == 0 { (1, &grants[0]) } else { (11, &made) };
        let signed = Revocation::sign(root().public().root(), Revoked::Link(id), NOW, &key(by), grant.clone());
        refused += u32::from(gate.revoke(signed) == Err(GrantError::TooMany));
    }
    assert_eq!(refused, 1_100 - 1_024);
    let what = Revoked::Key(peer(2));
    let other = Revocation::sign(root().public().root(), what, NOW, &key(2), grants[1].clone());
    assert_eq!(gate.revoke(other), Ok(true), "another has its own room");
}

#[test]
fn tokens_are_counted_by_link_and_day_for_all_that_rest_on_it() {
    let limited = |tokens| Caveats { tokens_per_day: Some(tokens), ..Caveats::default() };
    let grant = granted(1, &Caveats { tokens_per_day: Some(100), ..as_role(Role::Guest) });
    let (one, other) = (hand_on(&grant, 1, 2, &limited(70)).unwrap(), hand_on(&grant, 1, 3, &limited(70)).unwrap());
    let [whole, one, other] = [&grant, &one, &other].map(|grant| gate().read(grant).unwrap());
    let spent = |chain: &Chain, link: usize, tokens_per_day| {
        Err(GrantError::Spent { link: chain.links()[link].id, tokens_per_day })
    };
    let mut meter = Meter::default();
    let mut charge = |chain: &Chain, tokens, now| meter.charge(chain.scope(), tokens, now);
    assert_eq!(charge(&one, 70, NOW), Ok(()));
    assert_eq!(charge(&one, 1, NOW), spent(&one, 1, 70), "its own limit");
    assert_eq!(charge(&other, 31, NOW), spent(&other, 0, 100), "what is left of the one that both rest on");
    assert_eq!(charge(&other, 30, NOW), Ok(()), "what was refused was not counted");
    assert_eq!(charge(&whole, 1, NOW), spent(&whole, 0, 100));
    assert_eq!(charge(&whole, 1, NOW + DAY), Ok(()), "another day");
    assert_eq!(charge(&whole, 100, NOW), spent(&whole, 0, 100), "a clock that is set back gives no second one");
    assert_eq!(charge(&whole, u64::MAX, NOW + DAY), spent(&whole, 0, 100));
    let free = gate().read(&granted(1, &as_role(Role::Guest))).unwrap();
    assert_eq!(charge(&free, u64::MAX, NOW), Ok(()));
}

#[test]
fn ids_read_what_they_print() {
    let id = GrantId::from_bytes([0xab; 16]);
    assert_eq!(id.to_string().parse(), Ok(id));
    assert!("ab".parse::<GrantId>().is_err());
}

fn caveats() -> impl Strategy<Value = Caveats> {
    let ids = || proptest::collection::btree_set(0_u8..4, 0..3);
    let role = proptest::option::of(proptest::sample::select(Role::ALL.to_vec()));
    let time = || proptest::option::of(NOW - 2 * DAY..NOW + 2 * DAY);
    let hours = proptest::option::of((0_u16..1_440, 0_u16..=1_440));
    let count = proptest::option::of(0_u64..1_000);
    let times = proptest::option::of(0_u8..4);
    let ports = proptest::collection::btree_set(proptest::sample::select(&PORTS[..]), 0..3);
    let nets = proptest::collection::btree_set(proptest::sample::select(&NETS[..]), 0..3);
    let reach = (ports, nets, proptest::option::of(0_u64..1_000), proptest::bool::ANY);
    (role, time(), time(), hours, ids(), ids(), (count, times), reach).prop_map(
        |(role, from, until, hours, models, peers, (tokens_per_day, hand_on), (ports, nets, bytes, yields))| Caveats {
            role,
            from,
            until,
            hours: hours.and_then(|(from, to)| Hours::new(from, to)),
            models: models.into_iter().map(model).collect(),
            peers: peers.into_iter().map(|n| peer(200 + n)).collect(),
            tokens_per_day,
            hand_on,
            ports: ports.into_iter().map(|text| text.parse::<Ports>().unwrap()).collect(),
            nets: nets.into_iter().map(|text| text.parse::<Net>().unwrap()).collect(),
            bytes_per_day: bytes,
            yields,
        },
    )
}

const PORTS: [&str; 6] = ["tcp:22", "tcp:5432", "tcp:20-30", "udp:53", "udp:*", "tcp:*"];

const NETS: [&str; 7] =
    ["127.0.0.0/8", "10.0.0.0/8", "10.1.0.0/16", "192.168.1.10", "0.0.0.0/0", "fd00::/8", "169.254.0.0/16"];

/// All services that these tests' grants tell apart.
fn services() -> Vec<Reach> {
    use potluck_wire::Service::{Echo, Tcp, Udp};
    let addresses =
        ["127.0.0.1", "10.1.2.3", "10.9.9.9", "192.168.1.10", "8.8.8.8", "fd00::1", "::1", "169.254.169.254"];
    let services = [Tcp(22), Tcp(5432), Tcp(80), Udp(53), Udp(5432), Echo];
    let addresses = addresses.iter().map(|text| Some(text.parse().unwrap())).chain([None]);
    addresses.flat_map(|address| services.map(|service| Reach { service, address })).collect()
}

/// All that somebody could ask, as far as these tests' grants tell things apart.
fn everything() -> Vec<(Asked, Place)> {
    let mut all = Vec::new();
    for right in Right::ALL {
        for model in [None, Some(model(0)), Some(model(1)), Some(model(3)), Some(model(9))] {
            for peer in [peer(200), peer(201), peer(203), peer(210)] {
                for now in [NOW - 3 * DAY, NOW - DAY, NOW, NOW + DAY / 2, NOW + 3 * DAY] {
                    all.push((Asked(right, model), Place { peer, now }));
                }
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_chain_of_links_widens_a_right(first in caveats(), links in proptest::collection::vec(caveats(), 1..4)) {
        let first = Caveats { role: first.role.or(Some(Role::Owner)), until: first.until.or(Some(NOW + 4 * DAY)), ..first };
        let (gate, everything) = (gate(), everything());
        let allowed = |grant: &[u8], holder: u8| -> BTreeSet<usize> {
            let asked = everything.iter().enumerate();
            asked.filter(|(_, (asked, place))| ask(&gate, grant, holder, *asked, *place).is_ok()).map(|(n, _)| n).collect()
        };
        let reached = |grant: &[u8], holder: u8| -> BTreeSet<usize> {
            let Ok(member) = gate.check(grant, peer(holder), NOW) else { return BTreeSet::new() };
            let asked = services().into_iter().enumerate();
            asked.filter(|(_, reach)| gate.authorize(&member, *reach, here(NOW)).is_ok()).map(|(n, _)| n).collect()
        };
        let mut grant = granted(1, &first);
        let mut reach = reached(&grant, 1);
        let (mut before, mut budgets) = (allowed(&grant, 1), gate.read(&grant).unwrap().scope().budgets().len());
        for (holder, caveats) in (1..).zip(&links) {
            let left = gate.read(&grant).unwrap().scope().hand_ons();
            let Ok(longer) = hand_on(&grant, holder, holder + 1, caveats) else { break };
            prop_assert_ne!(left, Some(0));
            let after = allowed(&longer, holder + 1);
            prop_assert!(after.is_subset(&before), "{:?} widens {:?}", caveats, first);
            let now_reached = reached(&longer, holder + 1);
            prop_assert!(now_reached.is_subset(&reach), "{:?} reaches further than {:?}", caveats, first);
            reach = now_reached;
            // The holder's own grant is what it was, and what is counted above is counted below.
            let (scope, above) = (gate.read(&longer).unwrap().scope().clone(), gate.read(&grant).unwrap().scope().yields());
            prop_assert!(scope.budgets().len() >= budgets);
            prop_assert_eq!(scope.yields(), above || caveats.yields, "who yields hands on no more than that");
            (grant, before, budgets) = (longer, after, scope.budgets().len());
        }
    }

    #[test]
    fn what_is_written_is_read(first in caveats(), second in caveats()) {
        let first = Caveats { role: first.role.or(Some(Role::Guest)), until: first.until.or(Some(NOW)), hand_on: Some(1), ..first };
        let grant = hand_on(&granted(1, &first), 1, 2, &second).unwrap();
        let read: Vec<_> = gate().read(&grant).unwrap().links().iter().map(|link| link.caveats.clone()).collect();
        prop_assert_eq!(read, [first, second]);
    }
}
