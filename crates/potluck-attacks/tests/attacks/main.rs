//! The attacks, who makes each, and what stops it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "../../../potluck-net/tests/attacker/mod.rs"]
mod attacker;
mod grants;
mod peers;
mod places;
mod relays;
mod sessions;
#[path = "../../../potluck-net/tests/swarm/mod.rs"]
mod swarm;
mod tunnels;
mod wires;

use std::{pin::Pin, time::SystemTime};

use potluck_core::{Defence, SwitchedOff};
use tokio::sync::Mutex;

/// An attack: whether it gets through.
type Attack = fn() -> Pin<Box<dyn Future<Output = bool>>>;

/// What is switched off is switched off for the whole process.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn tried(name: &str, defence: Defence, attack: Attack) {
    let _alone = ALONE.lock().await;
    assert!(!attack().await, "{name} gets through");
    let _off = SwitchedOff::new(defence);
    assert!(attack().await, "{name} does not get through without {defence:?} either: it proves nothing");
}

macro_rules! attacks {
    ($($by:literal { $($module:ident :: $name:ident / $defence:ident,)* })*) => {
        /// By whom, what, and what stops it.
        const ATTACKS: &[(&str, &str, Defence, Attack)] = &[
            $($(($by, stringify!($name), Defence::$defence, || Box::pin($module::$name())),)*)*
        ];

        mod each {
            use super::*;

            $($(
                #[tokio::test]
                async fn $name() {
                    tried(stringify!($name), Defence::$defence, || Box::pin($module::$name())).await;
                }
            )*)*
        }
    };
}

attacks! {
    "a stranger" {
        grants::enters_with_a_grant_of_its_own_making / GrantSignature,
        grants::enters_with_anothers_grant / GrantHolder,
        grants::adds_a_link_to_a_stolen_grant / LinkSigner,
        peers::poses_as_a_peer_that_is_dialled / WelcomeGrant,
        places::says_nothing_and_stays / GreetDeadline,
        places::takes_all_places_in_silence / UngreetedPlaces,
        places::comes_again_and_again / AddressRate,
        places::comes_again_and_again_with_one_key / KeyRate,
        relays::is_helped_by_a_relay / RelayAccess,
    }
    "a stage's peer" {
        peers::replays_its_clients_grant / GrantHolder,
        sessions::sends_steps_into_anothers_session / PreviousPeer,
        sessions::sends_a_step_twice / StepSequence,
        sessions::lets_hops_wait_for_no_session / ParkedHops,
        peers::answers_with_tokens_that_are_none / AnswerShape,
        peers::changes_an_offer_that_it_passes_on / OfferSignature,
    }
    "a malicious next neighbour" {
        sessions::grants_credit_that_is_not_due / CreditDue,
    }
    "a guest" {
        grants::uses_more_than_its_day / TokensPerDay,
        grants::lends / Rights,
        grants::makes_itself_an_owner / Narrowing,
        grants::uses_another_model / GrantModels,
        grants::goes_to_another_peer / GrantPeers,
        grants::comes_out_of_hours / GrantHours,
        grants::stays_when_its_time_is_over / GrantTime,
        grants::hands_on_what_it_may_not / HandOn,
        tunnels::reaches_a_port_that_it_was_not_given / TunnelGrant,
    }
    "a member posing as operator" {
        grants::gives_orders / Rights,
        grants::revokes_a_rival / RevokerRights,
        grants::revokes_in_the_roots_name / RevocationSignature,
    }
    "a revoked member" {
        grants::comes_back / Revoked,
        grants::goes_on_with_its_session / PutOut,
    }
    "a thief of an earlier root" {
        grants::mints_a_grant_with_a_root_that_was_followed / Succession,
    }
    "a member" {
        grants::shows_a_grant_of_many_links / LinksMax,
        grants::shows_a_grant_of_many_facts / FactsMax,
        places::keeps_many_connections / MemberConnections,
        places::announces_a_frame_of_gigabytes / FrameBytes,
        sessions::takes_every_cache / ClientSessions,
        sessions::opens_its_session_again_in_the_same_epoch / SessionEpoch,
        sessions::sends_steps_without_credit / StepCredit,
        sessions::sends_tokens_that_are_none / TokenBounds,
        sessions::has_a_stranger_knocked_at / NextPeer,
        tunnels::reaches_what_is_not_exposed / TunnelExposed,
        relays::takes_a_relays_places / RelayPlaces,
    }
    "whoever carries the packets" {
        wires::reads_a_prompt_on_its_way / Encryption,
    }
    "a malicious relay" {
        relays::uses_the_pass_that_it_was_shown / PassHolder,
    }
}

/// Nobody attacks an engine's sandbox here: `potluck-engine` tries out what it forbids (`try_out_sandbox`).
const ELSEWHERE: [&str; 1] = ["Sandbox"];

#[test]
fn each_defence_stops_an_attack() {
    let source = include_str!("../../../potluck-core/src/defence.rs");
    let (_, variants) = source.split_once("pub enum Defence {").unwrap();
    let (variants, _) = variants.split_once("\n}").unwrap();
    let named = |line: &&str| !line.is_empty() && !line.starts_with("///");
    let variants: Vec<_> =
        variants.lines().map(str::trim).filter(named).map(|line| line.trim_end_matches(',')).collect();
    assert!(variants.len() > 30, "{variants:?}");
    let tried: Vec<_> = ATTACKS.iter().map(|(_, _, defence, _)| format!("{defence:?}")).collect();
    let untried = variants.iter().filter(|name| !tried.iter().any(|tried| tried == *name) && !ELSEWHERE.contains(name));
    assert_eq!(untried.collect::<Vec<_>>(), Vec::<&&str>::new());
}

/// UTC seconds.
fn utc_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// What `make prove-attacks` writes: each attack once more, and what came of it.
#[tokio::test]
async fn prove_every_attack() {
    let Some(path) = std::env::var_os("POTLUCK_PROVE_ATTACKS") else { return };
    let mut rows = Vec::new();
    for &(by, name, defence, attack) in ATTACKS {
        let _alone = ALONE.lock().await;
        let with = attack().await;
        let off = SwitchedOff::new(defence);
        let without = attack().await;
        drop(off);
        rows.push(serde_json::json!({
            "by": by,
            "attack": name,
            "defence": format!("{defence:?}"),
            "gets_through": with,
            "gets_through_without_it": without,
        }));
    }
    let through = rows.iter().filter(|row| row["gets_through"] == true).count();
    let proven = rows.iter().filter(|row| row["gets_through_without_it"] == true).count();
    let result = serde_json::json!({
        "commit": std::env::var("POTLUCK_COMMIT").unwrap_or_default(),
        "attacks": rows.len(),
        "get_through": through,
        "get_through_without_their_defence": proven,
        "each": rows,
    });
    std::fs::write(path, serde_json::to_string_pretty(&result).unwrap() + "\n").unwrap();
    assert_eq!((through, proven), (0, ATTACKS.len()));
}
