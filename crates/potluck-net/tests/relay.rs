//! Peers that reach each other through a relay only: a real one, on this machine.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod swarm;

use std::{net::SocketAddr, time::Duration};

use iroh_relay::server::{RelayConfig, Server, ServerConfig};
use potluck_grant::Gate;
use potluck_net::{Bind, Identity, Lan, NetDeadlines, NetError, Node, NodeConfig, RelayUse};
use potluck_wire::PeerAddress;
use swarm::{FAR, grant_of, key, lend, node, root, spec};

async fn relay() -> (Server, String) {
    let mut config = ServerConfig::default();
    config.relay = Some(RelayConfig::new(SocketAddr::from(([127, 0, 0, 1], 0))));
    let server = Server::spawn(config).await.unwrap();
    let url = format!("http://{}", server.http_addr().unwrap());
    (server, url)
}

/// A member's node that has this relay.
async fn node_at(n: u8, relay: &str) -> Node {
    let (key, gate) = (key(n), Gate::new(root().public()));
    let identity = Identity { grant: grant_of(&root(), key.peer_id(), FAR), key, gate };
    let deadlines = NetDeadlines { connect: Duration::from_secs(5), ..NetDeadlines::default() };
    let relay = Some(RelayUse { url: relay.into(), claim: None, roots: Vec::new() });
    Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay, deadlines }).await.unwrap()
}

/// Where it is, for whoever knows none of its addresses.
fn at_relay(node: &Node) -> PeerAddress {
    PeerAddress { addresses: Vec::new(), ..node.address() }
}

#[tokio::test]
async fn who_knows_no_address_asks_through_the_relay() {
    let (relay, url) = relay().await;
    let host = node_at(1, &url).await;
    assert_eq!(host.relay_answers().await, Some(Ok(())));
    assert_eq!(host.address().relay.as_deref().map(|at| at.trim_end_matches('/')), Some(&*url));
    let serving = lend(&host, spec(0, 2, 2), Duration::from_secs(5));

    let guest = node_at(2, &url).await;
    assert!(guest.connect(&at_relay(&host)).await.is_ok(), "it begins there, and moves on where it can");
    assert_eq!(guest.offers(&at_relay(&host)).await.unwrap().len(), 0);
    guest.close().await;

    // The control: the same question without a relay.
    let alone = node(3, NetDeadlines::default()).await;
    match alone.connect(&at_relay(&host)).await {
        Err(NetError::Unreachable { reason, .. }) => assert!(reason.contains("--relay"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(alone.relay_answers().await, None);
    // It is reached by its address all the same.
    assert!(alone.connect(&host.address()).await.is_ok());
    serving.stop().await;
    relay.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_relay_that_is_gone_holds_up_nobody_who_has_addresses() {
    let (relay, url) = relay().await;
    relay.shutdown().await.unwrap();
    let host = node_at(1, &url).await;
    let serving = lend(&host, spec(0, 2, 2), Duration::from_secs(5));
    let guest = node_at(2, &url).await;
    assert!(guest.connect(&host.address()).await.is_ok());
    guest.close().await;
    let other = node_at(3, &url).await;
    assert!(matches!(other.connect(&at_relay(&host)).await, Err(NetError::Unreachable { .. })));
    assert!(matches!(host.relay_answers().await, Some(Err(_))));
    serving.stop().await;
}
