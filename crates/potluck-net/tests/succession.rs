//! A swarm's root is followed by another while its members are connected: they stay, and what the old one signs from then on lets nobody in.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod swarm;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use potluck_core::SignedRevocation;
use potluck_grant::{Gate, GrantError, Root};
use potluck_net::{Bind, Door, Identity, Lan, NetDeadlines, NetError, Node, NodeConfig};
use potluck_wire::{FailureCode, Joined};
use swarm::{FAR, grant_of, key, lend, node, root, spec};

const OPEN: Duration = Duration::from_secs(10);

/// The bound, from the word of whoever rotates to the last of the peers.
const IN_FORCE: Duration = Duration::from_secs(5);

fn next() -> Root {
    Root::from_bytes(&[8; 32])
}

async fn node_with(n: u8, grant: Vec<u8>) -> Node {
    let identity = Identity { grant, key: key(n), gate: Gate::new(root().public()) };
    let deadlines = NetDeadlines::default();
    Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines }).await.unwrap()
}

/// These grants of the first root stay good.
fn rotate(grants: impl Iterator<Item = Vec<u8>>) -> Vec<SignedRevocation> {
    let gate = Gate::new(root().public());
    let adopted: BTreeSet<_> = grants.map(|grant| gate.read(&grant).unwrap().links()[0].id).collect();
    root().rotate(&gate, &next(), &adopted, 1, 0).unwrap()
}

fn grant(node: &Node) -> Vec<u8> {
    node.identity().grant.clone()
}

async fn wait_closed(link: &potluck_net::Link, begun: Instant) {
    while !link.is_closed() {
        assert!(begun.elapsed() < IN_FORCE, "it is connected still");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn members_stay_and_whom_a_thief_lets_in_is_put_out_within_five_seconds() {
    let mut peers = Vec::new();
    for n in 20..25 {
        let node = node(n, NetDeadlines::default()).await;
        let serving = lend(&node, spec(0, 2, 6), OPEN);
        peers.push((node, serving));
    }
    let (old, owner) = (node(1, NetDeadlines::default()).await, node(2, NetDeadlines::default()).await);
    let thiefs = grant_of(&root(), key(66).peer_id(), FAR);
    let thief = node_with(66, thiefs).await;
    // Three thousand more members: their pages come in several messages. Made while nobody is connected, for it takes seconds.
    let members = [grant(&old), grant(&owner)].into_iter().chain(peers.iter().map(|(peer, _)| grant(peer)));
    let others = (0..3_000).map(|_| grant_of(&root(), key(3).peer_id(), FAR));
    let said = rotate(members.chain(others));
    let (mut links, mut stolen) = (Vec::new(), Vec::new());
    for (peer, _) in &peers {
        links.push(old.connect(&peer.address()).await.unwrap());
        stolen.push(thief.connect(&peer.address()).await.unwrap());
    }
    let begun = Instant::now();
    let told = owner.revoke(said, peers.iter().map(|(peer, _)| peer.address()).collect()).await.unwrap();
    assert_eq!(told, 5);
    let newer = node_with(67, grant_of(&next(), key(67).peer_id(), FAR)).await;
    for ((peer, _), (link, stolen)) in peers.iter().zip(links.iter().zip(&stolen)) {
        wait_closed(stolen, begun).await;
        let again = thief.connect(&peer.address()).await;
        assert!(matches!(again, Err(NetError::Refused { code: FailureCode::NotAdmitted, .. })), "{again:?}");
        assert!(!link.is_closed(), "a member stays where it is");
        old.offers(&peer.address()).await.unwrap();
        newer.connect(&peer.address()).await.unwrap();
        assert_eq!(peer.identity().gate.root(), next().public().root());
    }
    // Minted now, for a key that nobody has seen.
    let late = node_with(68, grant_of(&root(), key(68).peer_id(), FAR)).await;
    let refused = late.connect(&peers[0].0.address()).await;
    assert!(matches!(refused, Err(NetError::Refused { code: FailureCode::NotAdmitted, .. })), "{refused:?}");
    assert!(begun.elapsed() < IN_FORCE);
}

#[tokio::test]
async fn whoever_was_away_learns_of_it_at_the_next_contact() {
    let (first, second) = (node(20, NetDeadlines::default()).await, node(21, NetDeadlines::default()).await);
    let _serving = [lend(&first, spec(0, 2, 6), OPEN), lend(&second, spec(0, 2, 6), OPEN)];
    let owner = node(2, NetDeadlines::default()).await;
    let thief = node_with(66, grant_of(&root(), key(66).peer_id(), FAR)).await;
    let said = rotate([&first, &second, &owner].map(grant).into_iter());
    assert_eq!(owner.revoke(said.clone(), vec![first.address()]).await.unwrap(), 1);
    let link = thief.connect(&second.address()).await.unwrap();
    assert_eq!(second.pull_revocations(&first.address()).await.unwrap(), said);
    wait_closed(&link, Instant::now()).await;
    assert_eq!(second.pull_revocations(&first.address()).await.unwrap(), [], "the same is not told twice");
    // A second successor of the old root replaces nothing, and is known for what it is.
    let gate = Gate::new(root().public());
    let rival = root().rotate(&gate, &Root::from_bytes(&[9; 32]), &BTreeSet::new(), 1, 0).unwrap();
    assert_eq!(second.note_revocations(rival.clone()), rival, "as a warning");
    assert_eq!(second.identity().gate.root(), next().public().root());
    assert_eq!(second.identity().gate.rivals().len(), 1);
    second.offers(&first.address()).await.unwrap();
}

#[tokio::test]
async fn a_newcomer_is_led_to_the_root_that_signs() {
    const SECRET: [u8; 16] = [0x5e; 16];
    let host = node(20, NetDeadlines::default()).await;
    let _serving = lend(&host, spec(0, 2, 6), OPEN);
    host.note_revocations(rotate([grant(&host)].into_iter()));
    host.open_door(Door::new(|_, join| {
        let grants = join.keys.iter().map(|&key| grant_of(&next(), key, FAR)).collect();
        Ok(Joined { grants, contacts: Vec::new() })
    }));
    // It knows the root that the swarm is named after.
    let guest = node_with(9, Vec::new()).await;
    let joined = guest.join(&host.address(), SECRET, vec![guest.id()]).await.unwrap();
    assert_eq!(guest.identity().gate.root(), next().public().root());
    let member = node_with(9, joined.grants[0].clone()).await;
    guest.close().await;
    member.offers(&host.address()).await.unwrap();
    // Of another swarm's invitation nothing comes, whatever root it leads to.
    let elsewhere = Gate::new(Root::from_bytes(&[5; 32]).public());
    let identity = Identity { grant: Vec::new(), key: key(10), gate: elsewhere };
    let config =
        NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines: NetDeadlines::default() };
    let stranger = Node::bind(config).await.unwrap();
    let refused = stranger.join(&host.address(), SECRET, vec![stranger.id()]).await;
    assert!(matches!(refused, Err(NetError::NotMember { error: GrantError::Unreadable(_), .. })), "{refused:?}");
}
