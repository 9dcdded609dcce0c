//! Attacks with grants: forged, stolen, widened, used up, taken back.

use std::collections::BTreeSet;

use biscuit_auth::{Algorithm, Biscuit, BlockBuilder, KeyPair, PrivateKey};
use potluck_core::{
    Action, ModelId, Offer, Order, PeerId, Revocation, Revoked, SecretKey, SignedRevocation, Stage as _, StageSpeed,
};
use potluck_grant::{Caveats, Gate, Hours, LINKS_MAX, Role, Root};
use potluck_net::Orders;
use potluck_sim::toy::ToyStage;
use potluck_wire::{FailureCode, Frame};

use crate::{
    attacker::{Attacker, Victim, open, step, whole},
    swarm::{CONTEXT, FAR, grant_of, key, root},
    utc_now,
};

fn guest() -> Caveats {
    Caveats { role: Some(Role::Guest), until: Some(FAR), ..Caveats::default() }
}

fn peer(n: u8) -> PeerId {
    key(n).peer_id()
}

fn granted(n: u8, caveats: &Caveats) -> Vec<u8> {
    root().grant_as(peer(n), caveats).unwrap().into_bytes()
}

/// Whether whoever has this key comes in with this grant, and is worked for.
async fn is_served(n: u8, grant: Vec<u8>) -> bool {
    let victim = Victim::start().await;
    match Attacker::with_grant(&victim, n, grant).await {
        Some(attacker) => answers(&attacker, 0).await > 0,
        None => false,
    }
}

/// How many of so many steps are answered, of one session.
async fn answers(attacker: &Attacker, further: u32) -> u32 {
    let mut stream = attacker.stream().await;
    stream.send(&open(1, 0)).await;
    if stream.next().await != Some(Frame::Ready) {
        return 0;
    }
    let mut answered = 0;
    for n in 0..=further {
        stream.send(&step(n, 0, n)).await;
        // Each is credited before it is answered, or after.
        loop {
            match stream.next().await {
                Some(Frame::Answer(_)) => break answered += 1,
                Some(Frame::Credit { .. }) => {}
                _ => return answered,
            }
        }
    }
    answered
}

/// A link that is signed by this key, whoever holds the grant: as the token library makes it.
fn link(grant: &[u8], by: &SecretKey, facts: &str) -> Vec<u8> {
    let root = KeyPair::from(&PrivateKey::from_bytes(&root().to_bytes(), Algorithm::Ed25519).unwrap());
    let token = Biscuit::from(grant, root.public()).unwrap();
    let by = KeyPair::from(&PrivateKey::from_bytes(&by.to_bytes(), Algorithm::Ed25519).unwrap());
    let block = BlockBuilder::new().code(facts).unwrap();
    let block = token.third_party_request().unwrap().create_block(&by.private(), block).unwrap();
    token.append_third_party(by.public(), block).unwrap().to_vec().unwrap()
}

fn to(n: u8) -> String {
    format!("holder(hex:{});", peer(n))
}

pub(crate) async fn enters_with_a_grant_of_its_own_making() -> bool {
    is_served(66, grant_of(&Root::from_bytes(&[8; 32]), peer(66), FAR)).await
}

pub(crate) async fn enters_with_anothers_grant() -> bool {
    is_served(66, grant_of(&root(), peer(70), FAR)).await
}

pub(crate) async fn adds_a_link_to_a_stolen_grant() -> bool {
    is_served(66, link(&grant_of(&root(), peer(70), FAR), &key(66), &to(66))).await
}

pub(crate) async fn stays_when_its_time_is_over() -> bool {
    is_served(66, granted(66, &Caveats { until: Some(utc_now() - 60), ..guest() })).await
}

pub(crate) async fn comes_out_of_hours() -> bool {
    let minute = (utc_now() / 60 % (24 * 60)) as u16;
    let hours = Hours::new((minute + 120) % (24 * 60), (minute + 180) % (24 * 60));
    is_served(66, granted(66, &Caveats { hours, ..guest() })).await
}

pub(crate) async fn goes_to_another_peer() -> bool {
    is_served(66, granted(66, &Caveats { peers: BTreeSet::from([peer(99)]), ..guest() })).await
}

pub(crate) async fn uses_another_model() -> bool {
    let models = BTreeSet::from([ModelId::from_bytes([9; 32])]);
    is_served(66, granted(66, &Caveats { models, ..guest() })).await
}

pub(crate) async fn hands_on_what_it_may_not() -> bool {
    let held = granted(66, &Caveats { hand_on: Some(0), ..guest() });
    is_served(67, link(&held, &key(66), &to(67))).await
}

pub(crate) async fn shows_a_grant_of_many_links() -> bool {
    let mut grant = granted(66, &guest());
    for _ in 0..=LINKS_MAX {
        grant = link(&grant, &key(66), &to(66));
    }
    is_served(66, grant).await
}

pub(crate) async fn shows_a_grant_of_many_facts() -> bool {
    let facts: String = (1..=100).map(|port| format!("port(\"tcp\", {port}, {port});")).collect();
    is_served(66, link(&granted(66, &guest()), &key(66), &(to(66) + &facts))).await
}

pub(crate) async fn uses_more_than_its_day() -> bool {
    let victim = Victim::start().await;
    let grant = granted(66, &Caveats { tokens_per_day: Some(3), ..guest() });
    let attacker = Attacker::with_grant(&victim, 66, grant).await.expect("a guest comes in");
    let answered = answers(&attacker, 7).await;
    assert!(answered >= 3, "what it may it gets");
    answered > 3
}

pub(crate) async fn lends() -> bool {
    let victim = Victim::start().await;
    let attacker = Attacker::with_grant(&victim, 66, granted(66, &guest())).await.expect("a guest comes in");
    let shape = ToyStage::new(whole(), 1, CONTEXT).shape().clone();
    let speed = StageSpeed { decode_us: 1, prefill_position_us: 1 };
    let (peer, expires, addresses) = (peer(66), utc_now() + 60, vec![]);
    let offer =
        Offer { peer, sequence: 1, expires, addresses, relay: None, shape, speed, free_caches: 1, free_bytes: 0 };
    let mut stream = attacker.stream().await;
    stream.send(&Frame::Announce(offer.sign(&key(66), granted(66, &guest())))).await;
    let _ = stream.next().await;
    let mut stream = attacker.stream().await;
    stream.send(&Frame::ListOffers).await;
    let Frame::Offers(known) = stream.frame().await else { panic!("a guest may look") };
    !known.is_empty()
}

/// Whether whoever holds this grant is obeyed.
async fn is_obeyed(n: u8, grant: Vec<u8>) -> bool {
    let victim = Victim::start().await;
    victim.node.take_orders(Orders::new(|_, giver| giver.operator().map(|by| by.short())));
    let attacker = Attacker::with_grant(&victim, n, grant).await.expect("it comes in");
    let action = Action::Unload;
    let order = Order { peer: victim.node.id(), sequence: 1, expires: utc_now() + 60, action };
    let mut stream = attacker.stream().await;
    stream.send(&Frame::Order(order.sign(&key(n)))).await;
    matches!(stream.frame().await, Frame::Failed(answer) if answer.code == FailureCode::Done)
}

pub(crate) async fn gives_orders() -> bool {
    is_obeyed(66, grant_of(&root(), peer(66), FAR)).await
}

pub(crate) async fn makes_itself_an_owner() -> bool {
    is_obeyed(66, link(&granted(66, &guest()), &key(66), &(to(66) + "role(\"owner\");"))).await
}

/// Whether a member is a member still once somebody has sent that.
async fn is_shut_out(rival: u8, revocation: SignedRevocation) -> bool {
    let victim = Victim::start().await;
    let attacker = Attacker::member(&victim, 66).await;
    let mut stream = attacker.stream().await;
    stream.send(&Frame::Revocations(vec![revocation])).await;
    assert_eq!(stream.frame().await, Frame::Revocations(vec![]), "it is answered in any case");
    Attacker::with_grant(&victim, rival, grant_of(&root(), peer(rival), FAR)).await.is_none()
}

pub(crate) async fn revokes_a_rival() -> bool {
    let grant = grant_of(&root(), peer(66), FAR);
    let said = Revocation::sign(root().key().peer_id(), Revoked::Key(peer(77)), utc_now(), &key(66), grant);
    is_shut_out(77, said).await
}

pub(crate) async fn revokes_in_the_roots_name() -> bool {
    let swarm = root().key().peer_id();
    let said = Revocation { swarm, what: Revoked::Key(peer(77)), by: swarm, at: utc_now() };
    let said = postcard::to_stdvec(&said).unwrap();
    let signature = key(66).sign(&said);
    let forged = postcard::to_stdvec(&(said, signature.as_slice(), &[][..] as &[u8])).unwrap();
    // A signature is an array on the wire, without its length.
    let signed: Result<SignedRevocation, _> = postcard::from_bytes(&forged);
    let signed = signed.or_else(|_| postcard::from_bytes(&without_length(&forged, signature.len())));
    is_shut_out(77, signed.expect("a revocation's bytes")).await
}

/// The same bytes without the length before the signature.
fn without_length(forged: &[u8], signature: usize) -> Vec<u8> {
    let said = usize::from(forged[0]);
    assert_eq!(usize::from(forged[1 + said]), signature);
    [&forged[..=said], &forged[said + 2..]].concat()
}

fn taken_back(n: u8) -> SignedRevocation {
    let key = root().key();
    Revocation::sign(key.peer_id(), Revoked::Key(peer(n)), utc_now(), &key, Vec::new())
}

pub(crate) async fn comes_back() -> bool {
    let victim = Victim::start().await;
    let gate: Gate = victim.node.identity().gate.clone();
    gate.revoke(taken_back(66)).unwrap();
    Attacker::with_grant(&victim, 66, grant_of(&root(), peer(66), FAR)).await.is_some()
}

/// Who has stolen a root's key lets itself in, after the root was rotated.
pub(crate) async fn mints_a_grant_with_a_root_that_was_followed() -> bool {
    let victim = Victim::start().await;
    let gate: Gate = victim.node.identity().gate.clone();
    let said = root().rotate(&gate, &Root::from_bytes(&[8; 32]), &BTreeSet::new(), utc_now(), 0).unwrap();
    assert_eq!(victim.node.note_revocations(said.clone()), said);
    let grant = granted(66, &Caveats { role: Some(Role::Owner), until: Some(FAR), ..Caveats::default() });
    Attacker::with_grant(&victim, 66, grant).await.is_some()
}

pub(crate) async fn goes_on_with_its_session() -> bool {
    let victim = Victim::start().await;
    let attacker = Attacker::member(&victim, 66).await;
    let mut stream = attacker.stream().await;
    stream.send(&open(1, 0)).await;
    assert_eq!(stream.frame().await, Frame::Ready);
    assert_eq!(victim.node.note_revocations(vec![taken_back(66)]).len(), 1);
    let mut bytes = Vec::new();
    step(0, 0, 0).encode(&mut bytes);
    if stream.send.write_all(&bytes).await.is_err() {
        return false;
    }
    matches!(stream.next().await, Some(Frame::Answer(_) | Frame::Credit { .. }))
}
