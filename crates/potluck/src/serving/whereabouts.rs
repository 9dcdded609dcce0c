//! Where a peer is that was named by its key, or by the beginning of it.

use std::{collections::BTreeMap, time::Duration};

use potluck_core::PeerId;
use potluck_net::Node;
use potluck_wire::PeerAddress;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::offers_of;
use crate::{
    commands::swarm::{parse_contact, utc_now},
    failure::Failure,
    placement::members,
};

/// Longest wait for all contacts together.
const PATIENCE: Duration = Duration::from_secs(4);

/// Characters of a key that name a peer: fewer may be another's tomorrow.
const PREFIX_CHARS_MIN: usize = 4;

/// Finds a peer. One that is named by its whole key need not be known to anybody: it may be on this network.
pub(crate) async fn find_peer(node: &Node, contacts: &[PeerAddress], text: &str) -> Result<PeerAddress, Failure> {
    if text.contains('@') {
        return parse_contact(text).map_err(|error| Failure::usage(error, "a peer is KEY, or KEY@IP:PORT"));
    }
    let text = text.to_ascii_lowercase();
    let whole = text.parse::<PeerId>().ok();
    let digits = text.len() >= PREFIX_CHARS_MIN && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if whole.is_none() && !digits {
        let message = format!("`{text}` names no peer");
        return Err(Failure::usage(message, "give its key, or the beginning of it: potluck peers"));
    }
    let found: Vec<_> =
        known(node, contacts).await.into_iter().filter(|at| at.peer.to_string().starts_with(&text)).collect();
    match (found.as_slice(), whole) {
        ([one], _) => Ok(one.clone()),
        ([], Some(peer)) => Ok(PeerAddress { peer, addresses: Vec::new(), relay: None }),
        ([], None) => {
            let message = format!("no peer whose key begins with {text} is known here");
            Err(Failure::new("no_peer", message, "give the whole key; potluck peers shows who is there"))
        }
        (several, _) => {
            let names: Vec<_> = several.iter().map(|at| at.peer.short()).collect();
            let message = format!("{text} is the beginning of several keys: {}", names.join(", "));
            Err(Failure::usage(message, "give more of it"))
        }
    }
}

/// Where that peer is now, as the others say; none where nobody says.
pub(crate) async fn look_again(node: &Node, contacts: &[PeerAddress], peer: PeerId) -> Option<PeerAddress> {
    known(node, contacts).await.into_iter().find(|at| at.peer == peer)
}

/// Everybody that the contacts know, where each was heard of last.
pub(crate) async fn known(node: &Node, contacts: &[PeerAddress]) -> Vec<PeerAddress> {
    let until = Instant::now() + PATIENCE;
    let mut asked = JoinSet::new();
    for contact in contacts {
        let (node, contact) = (node.clone(), contact.clone());
        asked.spawn(async move { node.upstreams(&contact).await });
    }
    let offers = timeout_at(until, offers_of(node, contacts)).await.map(|(offers, _)| offers).unwrap_or_default();
    let mut known: BTreeMap<PeerId, PeerAddress> =
        members(&offers, contacts).into_iter().map(|at| (at.peer, at)).collect();
    while let Ok(Some(answer)) = timeout_at(until, asked.join_next()).await {
        let Ok(Ok(upstreams)) = answer else { continue };
        for other in upstreams.others {
            // Named by others, it need not be a member.
            if node.identity().gate.check(&other.grant, other.address.peer, utc_now()).is_ok() {
                known.insert(other.address.peer, other.address);
            }
        }
    }
    known.into_values().filter(|at| at.peer != node.id()).collect()
}
