//! Newcomers at the door: who shows an invitation is let in by the peer that wrote it, and by nobody else.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod swarm;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use potluck_core::PeerId;
use potluck_grant::{Gate, Root};
use potluck_net::{Bind, Door, Identity, Lan, NetDeadlines, NetError, Node, NodeConfig, Serving};
use potluck_wire::{FailureCode, JOIN_KEYS_MAX, Joined, PeerAddress};
use swarm::{FAR, grant_of, key, lend, node, root, spec};

const SECRET: [u8; 16] = [0x5e; 16];

/// A peer that lends a stage, as whoever invites does.
async fn inviter() -> (Node, Serving) {
    let node = node(1, NetDeadlines::default()).await;
    let serving = lend(&node, spec(0, 2, 2), Duration::from_secs(5));
    (node, serving)
}

/// A machine that has no grant yet.
async fn newcomer(n: u8) -> Node {
    let identity = Identity { key: key(n), grant: Vec::new(), gate: Gate::new(root().public()) };
    let deadlines = NetDeadlines::default();
    Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines }).await.unwrap()
}

/// Grants of that root for whoever knows the secret, and how often it was asked.
fn door(root: Root, contacts: Vec<PeerAddress>) -> (Door, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let door = Door::new(move |_, join| {
        count.fetch_add(1, Ordering::Relaxed);
        if join.secret != SECRET {
            return Err(FailureCode::InvitationUnknown);
        }
        let grants = join.keys.iter().map(|&key| grant_of(&root, key, FAR)).collect();
        Ok(Joined { grants, contacts: contacts.clone() })
    });
    (door, asked)
}

fn refused(result: Result<Joined, NetError>) -> FailureCode {
    match result {
        Err(NetError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn whoever_was_let_in_is_a_member() {
    let (host, serving) = inviter().await;
    let (door, _) = door(root(), vec![host.address()]);
    host.open_door(door);
    let guest = newcomer(9).await;
    assert!(guest.connect(&host.address()).await.is_err(), "nobody without a grant is greeted");
    let keys = vec![guest.id(), key(10).peer_id()];
    let joined = guest.join(&host.address(), SECRET, keys).await.unwrap();
    assert_eq!(joined.contacts, [host.address()]);
    guest.close().await;
    // The grants are good: each key comes again with its own.
    for (n, grant) in [9, 10].into_iter().zip(joined.grants) {
        let identity = Identity { key: key(n), grant, gate: Gate::new(root().public()) };
        let deadlines = NetDeadlines::default();
        let member = Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines })
            .await
            .unwrap();
        assert_eq!(member.offers(&host.address()).await.unwrap().len(), 0);
        member.close().await;
    }
    serving.stop().await;
}

#[tokio::test]
async fn nobody_else_is_let_in() {
    let (host, serving) = inviter().await;
    let guest = newcomer(9).await;
    let mine = vec![guest.id()];
    let shut = guest.join(&host.address(), SECRET, mine.clone()).await;
    assert_eq!(refused(shut), FailureCode::InvitationUnknown, "a peer without a door");
    let (door, asked) = door(root(), Vec::new());
    host.open_door(door);
    assert_eq!(refused(guest.join(&host.address(), [0; 16], mine).await), FailureCode::InvitationUnknown);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let others: Vec<PeerId> = vec![key(10).peer_id()];
    assert_eq!(refused(guest.join(&host.address(), SECRET, others).await), FailureCode::Protocol, "for others only");
    let many = vec![guest.id(); JOIN_KEYS_MAX + 1];
    assert_eq!(refused(guest.join(&host.address(), SECRET, many).await), FailureCode::Protocol, "too many keys");
    assert_eq!(asked.load(Ordering::Relaxed), 1, "whoever breaks the protocol uses up nothing");
    // After all of that a member is served.
    assert!(node(2, NetDeadlines::default()).await.connect(&host.address()).await.is_ok());
    serving.stop().await;
}

#[tokio::test]
async fn grants_of_another_root_are_not_kept() {
    let (host, serving) = inviter().await;
    let (door, _) = door(Root::from_bytes(&[8; 32]), Vec::new());
    host.open_door(door);
    let guest = newcomer(9).await;
    let joined = guest.join(&host.address(), SECRET, vec![guest.id()]).await;
    assert!(matches!(joined, Err(NetError::NotMember { .. })), "{joined:?}");
    serving.stop().await;
}

#[tokio::test]
async fn another_peer_at_that_address_learns_no_secret() {
    let (host, serving) = inviter().await;
    let (door, asked) = door(root(), Vec::new());
    host.open_door(door);
    let guest = newcomer(9).await;
    let elsewhere = PeerAddress { peer: key(3).peer_id(), ..host.address() };
    let joined = guest.join(&elsewhere, SECRET, vec![guest.id()]).await;
    assert!(matches!(joined, Err(NetError::Unreachable { .. })), "{joined:?}");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    serving.stop().await;
}
