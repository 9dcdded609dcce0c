//! Who is there, and what this client may.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use potluck_core::PeerId;
use potluck_net::{Node, PathKind};
use potluck_wire::PeerAddress;
use tokio::task::JoinSet;

use super::ClientError;
use crate::serving::known;

/// A peer, as it is now.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Peer {
    /// Its key.
    pub id: PeerId,
    /// Where it is, as it says.
    pub address: PeerAddress,
    /// The models that it has something of, or lends whole, by name.
    pub models: Vec<String>,
    /// How it is reached at present; none where it is not.
    pub path: Option<PathKind>,
    /// The round trip to it, as measured; none where it is not reached.
    pub rtt: Option<Duration>,
}

/// Who this client is in its swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// Its key.
    pub id: PeerId,
    /// The swarm: its root's public key, 64 hexadecimal digits.
    pub swarm: String,
    /// `owner`, `operator`, `member`, `guest` or `auditor`.
    pub role: &'static str,
    /// What it may: `look`, `use`, `fetch`, `lend`, `reach`, `order`, `revoke`, `audit`.
    pub rights: Vec<&'static str>,
    /// UTC seconds until which it holds.
    pub until: u64,
}

/// Everybody that the contacts know, each asked itself.
pub(super) async fn peers(node: Node, contacts: Vec<PeerAddress>) -> Vec<Peer> {
    let everybody = known(&node, &contacts).await;
    let shared = potluck_pull::shared(&node, &everybody).await;
    let mut models = BTreeMap::<PeerId, BTreeSet<String>>::new();
    for (at, model) in shared.models {
        models.entry(at.peer).or_default().insert(model.name);
    }
    let mut asked = JoinSet::new();
    for address in everybody {
        let (node, own) = (node.clone(), models.remove(&address.peer).unwrap_or_default());
        asked.spawn(async move { peer(&node, address, own).await });
    }
    let mut peers = asked.join_all().await;
    peers.sort_by_key(|peer| peer.id);
    peers
}

async fn peer(node: &Node, address: PeerAddress, mut models: BTreeSet<String>) -> Peer {
    let link = node.connect(&address).await.ok();
    if link.is_some()
        && let Ok(upstreams) = node.upstreams(&address).await
    {
        models.extend(upstreams.own.into_iter().flat_map(|own| own.models).map(|model| model.name));
    }
    let path = link.and_then(|link| link.path());
    let models = models.into_iter().map(|name| crate::screen::printable(&name)).collect();
    Peer { id: address.peer, address, models, path: path.map(|path| path.kind), rtt: path.map(|path| path.rtt) }
}

/// What the client's own grant says.
pub(super) fn standing(node: &Node) -> Result<Standing, ClientError> {
    let identity = node.identity();
    let member = identity.gate.check(&identity.grant, node.id(), crate::commands::swarm::utc_now());
    let member = member.map_err(|error| ClientError::NotAllowed { message: error.to_string() })?;
    let scope = member.chain().scope();
    Ok(Standing {
        id: node.id(),
        swarm: identity.gate.swarm().to_string(),
        role: super::messages::role(&member),
        rights: scope.rights().iter().map(|right| right.name()).collect(),
        until: scope.time().1,
    })
}
