//! What gets past the gate, and what does not.
#![allow(clippy::unwrap_used, reason = "tests")]

use biscuit_auth::{Algorithm, Biscuit, BlockBuilder, KeyPair, PrivateKey, macros::biscuit};
use potluck_core::{PeerId, SecretKey};
use potluck_grant::{Gate, GrantError, Root, SwarmId};
use potluck_wire::GRANT_BYTES_MAX;
use proptest::prelude::*;

const EXPIRES: u64 = 1_800_000_000;
const NOW: u64 = EXPIRES - 60;

fn root() -> Root {
    Root::from_bytes(&[9; 32])
}

fn gate() -> Gate {
    Gate::new(root().public())
}

fn peer(n: u8) -> PeerId {
    SecretKey::from_bytes(&[n; 32]).peer_id()
}

fn grant() -> Vec<u8> {
    root().grant(peer(1), EXPIRES).unwrap().into_bytes()
}

/// The root's key as the token library knows it, to make grants that `Root` would not.
fn root_key() -> KeyPair {
    KeyPair::from(&PrivateKey::from_bytes(&root().to_bytes(), Algorithm::Ed25519).unwrap())
}

fn append(grant: &[u8], datalog: &str) -> Vec<u8> {
    let token = Biscuit::from(grant, root_key().public()).unwrap();
    token.append(BlockBuilder::new().code(datalog).unwrap()).unwrap().to_vec().unwrap()
}

#[test]
fn its_holder_gets_in_until_it_expires() {
    assert_eq!(gate().check(&grant(), peer(1), NOW).unwrap().peer(), peer(1));
    assert!(gate().check(&grant(), peer(1), EXPIRES).is_ok(), "the last second counts");
    assert_eq!(gate().check(&grant(), peer(1), EXPIRES + 1), Err(GrantError::Expired { at: EXPIRES }));
}

#[test]
fn a_stolen_grant_is_worth_nothing() {
    assert_eq!(gate().check(&grant(), peer(2), NOW), Err(GrantError::NotAdmitted(peer(2))));
}

#[test]
fn another_root_admits_nobody_here() {
    let other = Root::from_bytes(&[8; 32]).grant(peer(1), EXPIRES).unwrap();
    assert!(matches!(gate().check(other.as_bytes(), peer(1), NOW), Err(GrantError::NotOurs(_))));
}

#[test]
fn a_changed_bit_is_noticed_wherever_it_is() {
    for at in 0..grant().len() {
        let mut forged = grant();
        forged[at] ^= 1;
        let refused = gate().check(&forged, peer(1), NOW);
        assert!(matches!(refused, Err(GrantError::NotOurs(_))), "byte {at}: {refused:?}");
        assert!(gate().check(&grant()[..at], peer(1), NOW).is_err(), "the first {at} bytes alone");
    }
}

#[test]
fn a_role_that_is_not_known_admits_nobody() {
    let holder = peer(1).as_bytes().to_vec();
    let token = biscuit!(r#"holder({holder}); role("visitor"); until(1800000000);"#).build(&root_key()).unwrap();
    let refused = gate().check(&token.to_vec().unwrap(), peer(1), NOW);
    assert!(matches!(refused, Err(GrantError::Unreadable(_))), "{refused:?}");
}

#[test]
fn nobody_adds_to_a_grant_but_its_holder() {
    let stranger = peer(2);
    let additions = [
        format!("holder(hex:{stranger});"),
        "role($key, \"member\") <- connection($key);".to_owned(),
        "until(0);".to_owned(),
        "check if true;".to_owned(),
    ];
    for datalog in additions {
        let longer = append(&grant(), &datalog);
        for key in [peer(1), stranger] {
            assert_eq!(gate().check(&longer, key, NOW), Err(GrantError::NotHandedOn(1)), "{datalog}");
        }
    }
    // Nor another key, however it signs: the thief of a grant, or the one that it is to be handed on to.
    let token = Biscuit::from(grant(), root_key().public()).unwrap();
    for third in [KeyPair::new_with_algorithm(Algorithm::Ed25519), KeyPair::new_with_algorithm(Algorithm::Secp256r1)] {
        let request = token.third_party_request().unwrap();
        let block = BlockBuilder::new().code(format!("holder(hex:{stranger});")).unwrap();
        let block = request.create_block(&third.private(), block).unwrap();
        let extended = token.append_third_party(third.public(), block).unwrap().to_vec().unwrap();
        assert_eq!(gate().check(&extended, stranger, NOW), Err(GrantError::NotHandedOn(1)));
    }
}

/// A block of its holder's that says this, handed on as the token library does it.
fn signed_by_holder(datalog: &str) -> Vec<u8> {
    let token = Biscuit::from(grant(), root_key().public()).unwrap();
    let key = PrivateKey::from_bytes(&[1; 32], Algorithm::Ed25519).unwrap();
    let request = token.third_party_request().unwrap();
    let block = request.create_block(&key, BlockBuilder::new().code(datalog).unwrap()).unwrap();
    token.append_third_party(key.public(), block).unwrap().to_vec().unwrap()
}

#[test]
fn a_link_is_facts_that_are_known_and_nothing_is_run() {
    let to = format!("holder(hex:{});", peer(2));
    assert!(gate().check(&signed_by_holder(&to), peer(2), NOW).is_ok(), "a link that is good");
    let bombs: String = (0..16).map(|i| format!("n({i});")).collect();
    let refused = [
        ("", "no holder"),
        ("until(1);", "no holder, but a limit"),
        (&format!("{to} holder(hex:{});", peer(3)), "two holders"),
        (&format!("{to} unlimited(true);"), "what is not known"),
        (&format!("{to} until(-1);"), "before all time"),
        (&format!("{to} until(\"never\");"), "another type"),
        (&format!("{to} until(5); until(6);"), "said twice"),
        (&format!("{to} role(\"king\");"), "no role"),
        (&format!("{to} hand_on(256);"), "out of bounds"),
        (&format!("{to} hours(0, 0);"), "no hours"),
        (&format!("{to} model(hex:00);"), "no model"),
        (&format!("{to} check if true;"), "a check"),
        (&format!("{to} {bombs} p($a, $b, $c) <- n($a), n($b), n($c);"), "a program"),
        (&format!("{to} {}", (0..64).map(|i| format!("peer(hex:{:064x});", i)).collect::<String>()), "too many facts"),
    ];
    for (datalog, what) in refused {
        let answer = gate().check(&signed_by_holder(datalog), peer(2), NOW);
        assert!(matches!(answer, Err(GrantError::Unreadable(_) | GrantError::TooLarge { .. })), "{what}: {answer:?}");
    }
}

#[test]
fn oversized_grants_are_not_parsed() {
    let len = GRANT_BYTES_MAX + 1;
    let mut long = grant();
    long.resize(len, 0);
    assert_eq!(gate().check(&long, peer(1), NOW), Err(GrantError::TooLarge { len }));
}

#[test]
fn a_root_and_a_swarm_id_read_what_they_write() {
    assert_eq!(Root::from_bytes(&root().to_bytes()).public(), root().public());
    assert_ne!(Root::generate().public(), Root::generate().public());
    let swarm = root().public();
    assert_eq!(swarm.to_string().parse(), Ok(swarm));
    assert_eq!(SwarmId::from_bytes(*swarm.as_bytes()), Ok(swarm));
    for bad in ["", "00", "zz", &"0".repeat(63), &"1".repeat(65), NO_POINT] {
        assert_eq!(bad.parse::<SwarmId>(), Err(GrantError::NoSwarm), "{bad}");
    }
    assert!(!format!("{:?}", root()).contains("0909"), "a secret does not print itself");
}

/// Thirty-two bytes that are no point on the curve.
const NO_POINT: &str = "0200000000000000000000000000000000000000000000000000000000000000";

proptest! {
    #[test]
    fn hostile_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(gate().check(&bytes, peer(1), NOW).is_err());
    }

    #[test]
    fn a_changed_grant_never_admits_another(at in any::<prop::sample::Index>(), byte: u8) {
        let mut changed = grant();
        let at = at.index(changed.len());
        changed[at] = byte;
        prop_assert!(gate().check(&changed, peer(2), NOW).is_err());
    }
}
