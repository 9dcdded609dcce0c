//! A root is followed by another: what stays good, what does not, and who may not lead a swarm elsewhere.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use potluck_core::{PeerId, Renewal, Revocation, Revoked, SecretKey, SignedRevocation, Succession};
use potluck_grant::{Caveats, Gate, Grant, GrantError, GrantId, Role, Root, SwarmId, Taken, relay_token};
use proptest::prelude::*;

const NOW: u64 = 1_900_000_000;
const FAR: u64 = NOW + 1_000_000;

fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

fn peer(n: u8) -> PeerId {
    key(n).peer_id()
}

/// The roots in their order: 201 is the one that the swarm is named after.
fn root(n: u8) -> Root {
    Root::from_bytes(&[n; 32])
}

fn gate() -> Gate {
    Gate::new(root(201).public())
}

fn granted(by: u8, to: u8, role: Role) -> Vec<u8> {
    let caveats = Caveats { role: Some(role), until: Some(FAR), ..Caveats::default() };
    root(by).grant_as(peer(to), &caveats).unwrap().into_bytes()
}

fn member(by: u8, to: u8) -> Vec<u8> {
    granted(by, to, Role::Member)
}

fn first_links(gate: &Gate, grants: &[&[u8]]) -> BTreeSet<GrantId> {
    grants.iter().map(|grant| gate.read(grant).unwrap().links()[0].id).collect()
}

/// One root lets the other sign in its place; what it says, in the order in which it is told.
fn rotate(gate: &Gate, from: u8, to: u8, adopted: &[&[u8]]) -> Vec<SignedRevocation> {
    let adopted = first_links(gate, adopted);
    root(from).rotate(gate, &root(to), &adopted, NOW, 0).unwrap()
}

fn tell(gate: &Gate, said: &[SignedRevocation]) {
    for one in said {
        assert_eq!(gate.revoke(one.clone()), Ok(true));
    }
}

#[test]
fn what_is_adopted_stays_good_with_all_that_rests_on_it() {
    let gate = gate();
    let (old, lost) = (member(201, 1), member(201, 9));
    let handed = Grant::hand_on(&old, peer_of(201), &key(1), peer(2), &Caveats::default()).unwrap().into_bytes();
    let standing = gate.check(&lost, peer(9), NOW).unwrap();
    let said = rotate(&gate, 201, 202, &[&old]);
    tell(&gate, &said);
    assert_eq!((gate.root(), gate.swarm()), (peer_of(202), root(201).public()), "the swarm keeps its name");
    assert!(gate.check(&old, peer(1), NOW).is_ok());
    assert!(gate.check(&handed, peer(2), NOW).is_ok());
    let further = Grant::hand_on(&old, peer_of(201), &key(1), peer(3), &Caveats::default()).unwrap();
    assert!(gate.check(further.as_bytes(), peer(3), NOW).is_ok(), "and it is handed on as before");
    assert_eq!(gate.check(&lost, peer(9), NOW), Err(GrantError::Superseded));
    assert_eq!(gate.still(&standing, NOW), Err(GrantError::Superseded), "whoever stands at the gate is put out");
    // A thief of the old root mints what he likes.
    for role in Role::ALL {
        assert_eq!(gate.check(&granted(201, 66, role), peer(66), NOW), Err(GrantError::Superseded), "{role}");
    }
    assert!(gate.check(&member(202, 4), peer(4), NOW).is_ok(), "the new root lets in");
    assert!(matches!(gate.check(&member(203, 4), peer(4), NOW), Err(GrantError::NotOurs(_))));
    assert!(said.iter().all(|one| gate.revoke(one.clone()) == Ok(false)), "known already");
}

fn peer_of(root: u8) -> PeerId {
    self::root(root).public().root()
}

#[test]
fn it_counts_once_all_of_it_is_known() {
    let gate = gate();
    let grants: Vec<_> = (1..=200).map(|n| member(201, n)).collect();
    let adopted: Vec<_> = grants.iter().map(Vec::as_slice).collect();
    let said = rotate(&gate, 201, 202, &adopted);
    assert!(said.len() > 2, "several pages");
    let thiefs = member(201, 66);
    let minted = Root::from_bytes(&[201; 32]).grant(peer(66), FAR - 1).unwrap();
    for one in &said[..said.len() - 1] {
        gate.revoke(one.clone()).unwrap();
        assert!(!gate.is_whole());
        assert!(gate.check(&thiefs, peer(66), NOW).is_ok(), "half of a rotation puts nobody out");
        assert!(gate.check(&member(202, 5), peer(5), NOW).is_ok(), "and the new root lets in");
    }
    gate.revoke(said[said.len() - 1].clone()).unwrap();
    assert!(gate.is_whole());
    for (n, grant) in (1..=200).zip(&grants) {
        assert!(gate.check(grant, peer(n), NOW).is_ok(), "{n}");
    }
    assert_eq!(gate.check(minted.as_bytes(), peer(66), NOW), Err(GrantError::Superseded));
}

#[test]
fn what_the_old_root_took_back_stays_so_and_it_takes_back_nothing_more() {
    let gate = gate();
    let (one, other, officer) = (member(201, 1), member(201, 2), granted(201, 3, Role::Operator));
    let revoke = |by: u8, of: u8| {
        gate.revoke(Revocation::sign(peer_of(201), Revoked::Key(peer(of)), NOW, &root(by).key(), Vec::new()))
    };
    assert_eq!(revoke(201, 1), Ok(true));
    let said = Revocation::sign(peer_of(201), Revoked::Key(peer(7)), NOW, &key(3), officer.clone());
    assert_eq!(gate.revoke(said), Ok(true));
    // The thief has made himself an operator, and has shut somebody out.
    let thief = granted(201, 66, Role::Operator);
    let by_thief = |of| Revocation::sign(peer_of(201), Revoked::Key(peer(of)), NOW, &key(66), thief.clone());
    assert_eq!(gate.revoke(by_thief(8)), Ok(true));
    let kept = [member(201, 7), member(201, 8)];
    tell(&gate, &rotate(&gate, 201, 202, &[&one, &other, &officer, &kept[0], &kept[1]]));
    let gone = |of| Err(GrantError::Revoked(Taken(Revoked::Key(peer(of)))));
    assert_eq!(gate.check(&one, peer(1), NOW), gone(1));
    assert_eq!(gate.check(&kept[0], peer(7), NOW), gone(7), "an operator's word stands, too");
    assert!(gate.check(&kept[1], peer(8), NOW).is_ok(), "the thief's does not");
    assert!(revoke(201, 2).is_err() && gate.check(&other, peer(2), NOW).is_ok());
    assert_eq!(gate.revoke(by_thief(2)), Err(GrantError::Superseded));
    assert_eq!(revoke(202, 2), Ok(true));
    assert_eq!(gate.check(&other, peer(2), NOW), gone(2));
    // Whoever hears of all of it later knows the same.
    let later = self::gate();
    tell(&later, &gate.revocations());
    assert_eq!(later.revocations_digest(), gate.revocations_digest());
    assert_eq!(later.check(&one, peer(1), NOW), gone(1));
}

#[test]
fn the_first_successor_that_was_heard_of_is_the_one() {
    let gates = [gate(), gate()];
    let grant = member(201, 1);
    let (ours, thiefs) = (rotate(&gates[0], 201, 202, &[&grant]), rotate(&gates[0], 201, 203, &[]));
    tell(&gates[0], &ours);
    assert_eq!(gates[0].revoke(thiefs[0].clone()), Ok(true), "noted, and passed on as a warning");
    assert_eq!(gates[0].revoke(thiefs[0].clone()), Ok(false));
    let third = rotate(&gates[1], 201, 204, &[]);
    assert_eq!(gates[0].revoke(third[0].clone()), Ok(false), "one is warning enough: nobody fills the list");
    assert_eq!(gates[0].root(), peer_of(202));
    assert_eq!(
        gates[0].rivals().iter().map(|(root, rival)| (*root, rival.next)).collect::<Vec<_>>(),
        [(peer_of(201), peer_of(203))]
    );
    assert!(gates[0].check(&grant, peer(1), NOW).is_ok());
    assert!(gates[0].check(&member(203, 66), peer(66), NOW).is_err());
    // The same after a restart; and what leads newcomers on does not name the rival.
    let again = gate();
    tell(&again, &gates[0].revocations());
    assert_eq!((again.root(), again.rivals().len(), again.is_whole()), (peer_of(202), 1, true));
    let newcomer = gate();
    tell(&newcomer, &gates[0].successions());
    assert_eq!((newcomer.root(), newcomer.rivals().len()), (peer_of(202), 0));
    // Whoever heard the thief first follows him: the race is lost there.
    tell(&gates[1], &thiefs);
    assert_eq!(gates[1].revoke(ours[0].clone()), Ok(true));
    assert_eq!((gates[1].root(), gates[1].rivals().len()), (peer_of(203), 1));
}

#[test]
fn roots_follow_one_another_eight_times() {
    let gate = gate();
    let grants = [member(201, 1), member(201, 2)];
    for n in 0..8 {
        let (from, to) = (201 + n, 202 + n);
        let newer = member(from, 100 + n);
        let minted = member(from, 66);
        tell(&gate, &rotate(&gate, from, to, &[&grants[0], &newer]));
        assert_eq!(gate.root(), peer_of(to));
        assert!(gate.check(&grants[0], peer(1), NOW).is_ok());
        assert!(gate.check(&newer, peer(100 + n), NOW).is_ok());
        for lost in [(&grants[1], 2), (&minted, 66)] {
            assert_eq!(gate.check(lost.0, peer(lost.1), NOW), Err(GrantError::Superseded));
        }
        // The root before it adopts nobody any more.
        let (page, _) = Revocation::sign_page(peer_of(201), 0, &[Renewal::Adopted([7; 16])], NOW, &root(from).key());
        assert!(gate.revoke(page).is_err());
        // What was adopted by the root before, and not by this one, has ended.
        if n > 0 {
            assert_eq!(gate.check(&member(from - 1, 100 + n - 1), peer(100 + n - 1), NOW), Err(GrantError::Superseded));
        }
        let later = self::gate();
        tell(&later, &gate.revocations());
        assert_eq!((later.root(), later.revocations_digest()), (gate.root(), gate.revocations_digest()));
    }
    assert_eq!(root(209).rotate(&gate, &root(210), &BTreeSet::new(), NOW, 0), Err(GrantError::TooMany));
    let what = Revoked::Root(Succession { next: peer_of(210), pages: 0, until: 0 });
    let ninth = Revocation::sign(peer_of(201), what, NOW, &root(209).key(), Vec::new());
    assert_eq!(gate.revoke(ninth), Err(GrantError::TooMany));
    assert_eq!(root(201).rotate(&gate, &root(210), &BTreeSet::new(), NOW, 0), Err(GrantError::Superseded));
}

#[test]
fn days_of_grace_let_in_and_take_nothing_back() {
    let gate = gate();
    let (grant, officer) = (member(201, 1), granted(201, 3, Role::Operator));
    let said = root(201).rotate(&gate, &root(202), &BTreeSet::new(), NOW, NOW + 100).unwrap();
    tell(&gate, &said);
    assert!(gate.check(&grant, peer(1), NOW + 100).is_ok());
    assert_eq!(gate.check(&grant, peer(1), NOW + 101), Err(GrantError::Superseded));
    let by_officer = |at| Revocation::sign(peer_of(201), Revoked::Key(peer(1)), at, &key(3), officer.clone());
    assert_eq!(gate.revoke(by_officer(NOW + 101)), Err(GrantError::Superseded));
    assert_eq!(gate.revoke(by_officer(NOW)), Ok(true), "kept, for what rests on its own grant");
    assert!(gate.check(&grant, peer(1), NOW).is_ok());
    // A root that has to go at once takes the grace of the one before it away.
    tell(&gate, &rotate(&gate, 202, 203, &[]));
    assert_eq!(gate.check(&grant, peer(1), NOW), Err(GrantError::Superseded));
}

#[test]
fn what_a_member_took_back_stays_so_in_its_days_of_grace() {
    let (gate, later) = (gate(), gate());
    let (mine, officer) = (member(201, 1), granted(201, 3, Role::Operator));
    let hand = |to| Grant::hand_on(&mine, peer_of(201), &key(1), peer(to), &Caveats::default()).unwrap().into_bytes();
    let (phone, tablet) = (hand(2), hand(4));
    let lose = |n, by: &SecretKey, grant: &[u8]| {
        Revocation::sign(peer_of(201), Revoked::Key(peer(n)), NOW, by, grant.to_vec())
    };
    assert_eq!(gate.revoke(lose(2, &key(1), &mine)), Ok(true));
    assert_eq!(gate.revoke(lose(1, &key(3), &officer)), Ok(true));
    tell(&gate, &root(201).rotate(&gate, &root(202), &BTreeSet::new(), NOW, NOW + 100).unwrap());
    let taken = |grant: &[u8], n| matches!(gate.check(grant, peer(n), NOW), Err(GrantError::Revoked(_)));
    assert!(taken(&phone, 2) && !taken(&tablet, 4));
    assert!(!taken(&mine, 1), "an officer that is not adopted has no say any more");
    assert_eq!(gate.revoke(lose(4, &key(1), &mine)), Ok(true), "lost in those days");
    assert!(taken(&tablet, 4));
    // Whoever hears of it all later knows the same.
    tell(&later, &gate.revocations());
    assert_eq!(later.revocations_digest(), gate.revocations_digest());
    // What the next root adopts after all counts as before, and nothing else of it stays: whenever it claims to have been said.
    let at_dawn = Revocation::sign(peer_of(201), Revoked::Key(peer(9)), 0, &key(3), granted(201, 3, Role::Operator));
    assert_eq!(gate.revoke(at_dawn), Ok(true));
    tell(&gate, &rotate(&gate, 202, 203, &[&mine]));
    assert!(taken(&phone, 2) && taken(&tablet, 4) && !taken(&mine, 1));
    assert_eq!(gate.revocations().len(), 5, "two successions, a page, two of the member's");
    let afresh = self::gate();
    tell(&afresh, &gate.revocations());
    assert_eq!(afresh.revocations_digest(), gate.revocations_digest());
}

#[test]
fn what_a_thiefs_officers_took_back_is_forgotten_whenever_they_say_it_was() {
    let gate = gate();
    let officer = granted(201, 3, Role::Operator);
    let take = |at| gate.revoke(Revocation::sign(peer_of(201), Revoked::Key(peer(9)), at, &key(3), officer.clone()));
    assert_eq!(take(0), Ok(true));
    tell(&gate, &rotate(&gate, 201, 202, &[]));
    assert_eq!(gate.revocations().len(), 1, "the succession");
    for at in [0, NOW, NOW + 1] {
        assert_eq!(take(at), Err(GrantError::Superseded));
    }
}

#[test]
fn in_days_of_grace_the_same_is_kept_in_whichever_order_it_comes() {
    let gates = [gate(), gate()];
    let said = root(201).rotate(&gates[0], &root(202), &BTreeSet::new(), NOW, NOW + 100).unwrap();
    let members = [member(201, 1), member(201, 2)];
    let take = |n: u32| {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.wrapping_mul(0x9e37_79b1).to_be_bytes());
        let by = (n % 2) as u8 + 1;
        let grant = members[usize::from(by) - 1].clone();
        Revocation::sign(peer_of(201), Revoked::Link(id), NOW, &key(by), grant)
    };
    let all: Vec<_> = (0..1_200).map(take).collect();
    // One hears of the succession first, and backwards; the other last.
    tell(&gates[0], &said);
    all.iter().rev().for_each(|one| drop(gates[0].revoke(one.clone())));
    all.iter().for_each(|one| drop(gates[1].revoke(one.clone())));
    tell(&gates[1], &said);
    let kept = gates.each_ref().map(|gate| gate.revocations().len());
    assert_eq!(kept, [1_025; 2], "and the succession");
    assert_eq!(gates[0].revocations_digest(), gates[1].revocations_digest());
}

#[test]
fn whoever_is_refused_takes_nobodys_room_in_days_of_grace() {
    let gate = gate();
    // The first one has two grants: one that is adopted, and one that is not.
    let (adopted, not) = (member(201, 1), granted(201, 1, Role::Guest));
    let other = member(201, 2);
    let adopting = first_links(&gate, &[&adopted]);
    tell(&gate, &root(201).rotate(&gate, &root(202), &adopting, NOW, NOW + 100).unwrap());
    let take = |n: u32, by: u8, grant: &[u8]| {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        gate.revoke(Revocation::sign(peer_of(201), Revoked::Link(id), NOW, &key(by), grant.to_vec()))
    };
    for n in 0..1_024 {
        assert_eq!((take(1_000_000 + n, 2, &other), take(2_000_000 + n, 1, &adopted)), (Ok(true), Ok(true)));
    }
    let before = gate.revocations_digest();
    assert_eq!(take(1, 1, &not), Err(GrantError::TooMany), "it has had its share");
    assert_eq!(gate.revocations_digest(), before);
}

#[test]
fn a_thief_of_the_root_leaves_room_for_the_next_one() {
    let (gate, kept) = (gate(), member(201, 1));
    let thief = root(201).key();
    let take = |n: u32| {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_le_bytes());
        gate.revoke(Revocation::sign(peer_of(201), Revoked::Link(id), NOW, &thief, Vec::new()))
    };
    let full = (0..).map(take).position(|took| took == Err(GrantError::TooMany)).unwrap();
    assert_eq!(full, 8_192);
    // Others have theirs still, and the next root has room for all that is taken back, and for those who stay.
    let by_member = Revocation::sign(peer_of(201), Revoked::Key(peer(2)), NOW, &key(1), kept.clone());
    assert_eq!(gate.revoke(by_member), Ok(true));
    tell(&gate, &rotate(&gate, 201, 202, &[&kept]));
    assert!(gate.check(&kept, peer(1), NOW).is_ok());
    let again = Revocation::sign(peer_of(201), Revoked::Key(peer(7)), NOW, &root(202).key(), Vec::new());
    assert_eq!(gate.revoke(again), Ok(true));
}

#[test]
fn relays_help_by_the_present_roots_word() {
    let gate = gate();
    let invited = |by| gate.check_relayed(&root(by).relay_pass(&[7; 16], FAR).token(&[7; 16], peer(5)), peer(5), NOW);
    let old = member(201, 1);
    assert!(invited(201).is_ok() && invited(202).is_err());
    let standing = invited(201).unwrap();
    tell(&gate, &rotate(&gate, 201, 202, &[&old]));
    assert!(matches!(invited(201), Err(GrantError::NotOurs(_))));
    assert!(invited(202).is_ok());
    assert!(gate.still_relayed(&standing, NOW).is_ok(), "whoever is there stays for as long as it was invited");
    let shown = |grant: &[u8], n| gate.check_relayed(&relay_token(grant), peer(n), NOW);
    assert!(shown(&old, 1).is_ok() && shown(&member(202, 2), 2).is_ok());
    assert_eq!(shown(&member(201, 66), 66), Err(GrantError::Superseded));
}

#[test]
fn nobody_else_names_a_root_or_lets_grants_stand() {
    let gate = gate();
    let officer = granted(201, 3, Role::Owner);
    let to = |next: PeerId, pages| Revoked::Root(Succession { next, pages, until: 0 });
    let sign =
        |what, by: &SecretKey, grant: &[u8]| gate.revoke(Revocation::sign(peer_of(201), what, NOW, by, grant.to_vec()));
    assert!(matches!(sign(to(peer(3), 0), &key(3), &officer), Err(GrantError::NotOurs(_))), "not even an owner");
    assert!(matches!(sign(to(peer_of(201), 0), &root(201).key(), &[]), Err(GrantError::Unreadable(_))), "itself");
    let no_key = (2..).map(|n| [n; 32]).find(|bytes| SwarmId::from_bytes(*bytes).is_err()).unwrap();
    assert!(matches!(sign(to(PeerId::from_bytes(no_key), 0), &root(201).key(), &[]), Err(GrantError::Unreadable(_))));
    assert!(matches!(sign(to(peer_of(202), u16::MAX), &root(201).key(), &[]), Err(GrantError::Unreadable(_))));
    let page =
        |page, by: &SecretKey| Revocation::sign_page(peer_of(201), page, &[Renewal::Adopted([1; 16])], NOW, by).0;
    assert!(gate.revoke(page(0, &root(201).key())).is_err(), "the first root has none before it");
    assert_eq!(sign(to(peer_of(202), 1), &root(201).key(), &[]), Ok(true));
    assert!(gate.revoke(page(0, &root(201).key())).is_err(), "the old root adopts nothing");
    assert!(gate.revoke(page(0, &key(3))).is_err());
    assert!(matches!(gate.revoke(page(1, &root(202).key())), Err(GrantError::Unreadable(_))), "a page too many");
    assert!(!gate.is_whole());
    assert_eq!(gate.revoke(page(0, &root(202).key())), Ok(true));
    assert_eq!(gate.revoke(page(0, &root(202).key())), Ok(false));
    assert_eq!(gate.revocations().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// However many are adopted and taken back: who is in afterwards was in before and adopted, and nobody's rights have grown.
    #[test]
    fn a_rotation_lets_nobody_in_and_widens_nothing(
        members in proptest::collection::vec((any::<bool>(), any::<bool>(), 0..5_usize), 1..20),
    ) {
        let gate = gate();
        let grants: Vec<_> = (1..).zip(&members).map(|(n, (_, _, role))| granted(201, n, Role::ALL[*role])).collect();
        for (n, (_, revoked, _)) in (1..).zip(&members).filter(|(_, (_, revoked, _))| *revoked) {
            prop_assert!(*revoked);
            let what = Revoked::Key(peer(n));
            gate.revoke(Revocation::sign(peer_of(201), what, NOW, &root(201).key(), Vec::new())).unwrap();
        }
        let before: Vec<_> = (1..).zip(&grants).map(|(n, grant)| gate.check(grant, peer(n), NOW)).collect();
        let adopted: Vec<_> =
            members.iter().zip(&grants).filter(|((adopted, ..), _)| *adopted).map(|(_, grant)| grant.as_slice()).collect();
        tell(&gate, &rotate(&gate, 201, 202, &adopted));
        for ((n, grant), ((adopted, ..), before)) in (1..).zip(&grants).zip(members.iter().zip(before)) {
            let after = gate.check(grant, peer(n), NOW);
            match before {
                Ok(before) if *adopted => prop_assert_eq!(after.unwrap(), before),
                _ => prop_assert!(after.is_err()),
            }
        }
        let later = self::gate();
        tell(&later, &gate.revocations());
        prop_assert_eq!(later.revocations_digest(), gate.revocations_digest());
    }
}
