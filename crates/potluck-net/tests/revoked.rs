//! What is taken back ends at once, wherever the one that it was taken from is connected.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod swarm;

use std::time::{Duration, Instant};

use potluck_core::{Offer, Revocation, Revoked, SignedOffer, Stage as _, StageSpeed};
use potluck_grant::{Caveats, Gate, Role};
use potluck_net::{Bind, Identity, Lan, NetDeadlines, NetError, Node, NodeConfig};
use potluck_sim::toy::ToyStage;
use potluck_wire::FailureCode;
use swarm::{FAR, key, lend, node, root, spec};

const OPEN: Duration = Duration::from_secs(10);

/// The bound, from the word of whoever takes back to the last of the peers.
const IN_FORCE: Duration = Duration::from_secs(5);

/// A node of that role.
async fn node_as(n: u8, role: Role) -> Node {
    let caveats = Caveats { role: Some(role), until: Some(FAR), ..Caveats::default() };
    let grant = root().grant_as(key(n).peer_id(), &caveats).unwrap().into_bytes();
    let identity = Identity { grant, key: key(n), gate: Gate::new(root().public()) };
    let deadlines = NetDeadlines::default();
    Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines }).await.unwrap()
}

#[tokio::test]
async fn ten_peers_shut_a_member_out_within_five_seconds() {
    let mut peers = Vec::new();
    for n in 20..30 {
        let node = node(n, NetDeadlines::default()).await;
        let serving = lend(&node, spec(0, 2, 6), OPEN);
        peers.push((node, serving));
    }
    let (victim, other, owner) =
        (node_as(1, Role::Member).await, node_as(2, Role::Member).await, node_as(3, Role::Owner).await);
    let mut links = Vec::new();
    for (peer, _) in &peers {
        links.push(victim.connect(&peer.address()).await.unwrap());
        other.connect(&peer.address()).await.unwrap();
    }
    let revocation = Revocation::sign(root().public().root(), Revoked::Key(victim.id()), 1, &root().key(), vec![]);
    let begun = Instant::now();
    let told = owner.revoke(vec![revocation], peers.iter().map(|(peer, _)| peer.address()).collect()).await.unwrap();
    assert_eq!(told, 10);
    for ((peer, _), link) in peers.iter().zip(&links) {
        while !link.is_closed() {
            assert!(begun.elapsed() < IN_FORCE, "{} has it still", peer.id().short());
            tokio::task::yield_now().await;
        }
        let again = victim.connect(&peer.address()).await;
        assert!(matches!(again, Err(NetError::Refused { code: FailureCode::NotAdmitted, .. })), "{again:?}");
        other.offers(&peer.address()).await.unwrap();
    }
}

/// An offer of that peer's stage, so that others know where it is.
fn offer(peer: &Node) -> SignedOffer {
    let shape = ToyStage::new(spec(0, 2, 6), 8, 64).shape().clone();
    let speed = StageSpeed { decode_us: 1, prefill_position_us: 1 };
    let (id, now) = (peer.identity(), std::time::UNIX_EPOCH.elapsed().unwrap().as_secs());
    let (sequence, expires, addresses) = (1, now + 60, peer.address().addresses);
    let (free_caches, free_bytes, relay) = (1, 0, None);
    let offer = Offer { peer: peer.id(), sequence, expires, addresses, relay, shape, speed, free_caches, free_bytes };
    offer.sign(&id.key, id.grant.clone())
}

#[tokio::test]
async fn what_one_peer_hears_it_passes_on_and_forgets_whom_it_is_about() {
    let (first, second) = (node(20, NetDeadlines::default()).await, node(21, NetDeadlines::default()).await);
    let (heard, told) = (lend(&first, spec(0, 2, 6), OPEN), lend(&second, spec(0, 2, 6), OPEN));
    let (victim, owner) = (node_as(1, Role::Member).await, node_as(3, Role::Owner).await);
    // The first peer knows the second and the victim by their offers.
    heard.announce(offer(&second)).await;
    victim.announce(&first.address(), offer(&victim)).await.unwrap();
    let known = || heard.directory().offers(0).count();
    while known() < 2 {
        tokio::task::yield_now().await;
    }
    let link = victim.connect(&second.address()).await.unwrap();
    let revocation = Revocation::sign(root().public().root(), Revoked::Key(victim.id()), 1, &root().key(), vec![]);
    let begun = Instant::now();
    assert_eq!(owner.revoke(vec![revocation], vec![first.address()]).await.unwrap(), 1);
    while !link.is_closed() || known() > 1 {
        assert!(begun.elapsed() < IN_FORCE, "closed {}, {} offers", link.is_closed(), known());
        tokio::task::yield_now().await;
    }
    assert_eq!(second.identity().gate.revocations().len(), 1);
    drop(told);
}

#[tokio::test]
async fn whoever_was_away_learns_of_it_at_the_next_contact() {
    let (first, second) = (node(20, NetDeadlines::default()).await, node(21, NetDeadlines::default()).await);
    let _serving = [lend(&first, spec(0, 2, 6), OPEN), lend(&second, spec(0, 2, 6), OPEN)];
    let (victim, owner) = (node_as(1, Role::Member).await, node_as(3, Role::Owner).await);
    let link = victim.connect(&second.address()).await.unwrap();
    for n in 0..30_u8 {
        let what = if n == 0 { Revoked::Key(victim.id()) } else { Revoked::Link([n; 16]) };
        let revocation = Revocation::sign(root().public().root(), what, 1, &root().key(), vec![]);
        owner.revoke(vec![revocation], vec![first.address()]).await.unwrap();
    }
    assert!(!link.is_closed(), "the second peer was not told");
    assert_eq!(second.pull_revocations(&first.address()).await.unwrap().len(), 30, "pages and all");
    assert_eq!(second.pull_revocations(&first.address()).await.unwrap(), [], "the same is not told twice");
    assert!(victim.connect(&second.address()).await.is_err());
}

#[tokio::test]
async fn a_role_may_what_it_may_and_a_guest_serves_nobody() {
    let peer = node(20, NetDeadlines::default()).await;
    let _serving = lend(&peer, spec(0, 2, 6), OPEN);
    let (guest, auditor) = (node_as(1, Role::Guest).await, node_as(2, Role::Auditor).await);
    assert!(guest.offers(&peer.address()).await.is_ok());
    assert!(auditor.offers(&peer.address()).await.is_ok());
    let lends = guest.tell_lending(&peer.address()).await;
    assert!(
        matches!(&lends, Err(NetError::Failed { failure, .. }) if failure.code == FailureCode::NotAllowed),
        "{lends:?}"
    );
    // Nor does anybody take a guest for a peer: its greeting says what it is.
    let _posing = lend(&guest, spec(2, 4, 6), OPEN);
    let asked = auditor.connect(&guest.address()).await;
    assert!(matches!(asked, Err(NetError::NotMember { .. })), "{asked:?}");
}
