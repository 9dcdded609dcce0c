//! Attacks at and of relays: a real one, on loopback.

use std::{net::SocketAddr, path::Path};

use potluck_grant::{Gate, relay_token};
use potluck_net::{Bind, Identity, Lan, NetDeadlines, Node, NodeConfig, RelayAt, RelayUse};
use potluck_relay::{Certificate, Limits, Relay, RelayConfig};

use crate::{
    swarm::{FAR, grant_of, key, root},
    utc_now,
};

async fn relay(folder: &Path, limits: Limits) -> (Relay, String) {
    let certificate = Certificate::self_signed(folder, &["127.0.0.1".into()]).unwrap();
    let pin = certificate.der().unwrap().to_vec();
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = RelayConfig::new(vec![Gate::new(root().public())], certificate);
    let relay =
        Relay::start(RelayConfig { bind: local, http: local, discovery: local, limits, ..config }).await.unwrap();
    let url = format!("https://{}", relay.address().unwrap());
    let udp = relay.discovery().map(|at| at.port());
    (relay, RelayAt::with_certificate(&url, Some(&pin), udp).unwrap().to_string())
}

async fn node_at(n: u8, grant: Vec<u8>, url: &str) -> Node {
    let identity = Identity { grant, key: key(n), gate: Gate::new(root().public()) };
    let relay = Some(RelayUse { urls: vec![url.to_owned()], pass: None, claim: None });
    let deadlines = NetDeadlines::default();
    Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay, deadlines }).await.unwrap()
}

pub(crate) async fn is_helped_by_a_relay() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let (_relay, url) = relay(folder.path(), Limits::default()).await;
    let stranger = node_at(66, Vec::new(), &url).await;
    stranger.relay_answers().await.is_some_and(|answer| answer.is_ok())
}

pub(crate) async fn takes_a_relays_places() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { connections_of_key: 2, ..Limits::default() };
    let (_relay, url) = relay(folder.path(), limits).await;
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let node = node_at(66, grant_of(&root(), key(66).peer_id(), FAR), &url).await;
        if node.relay_answers().await != Some(Ok(())) {
            return false;
        }
        nodes.push(node);
    }
    true
}

pub(crate) async fn uses_the_pass_that_it_was_shown() -> bool {
    let gate = Gate::new(root().public());
    let pass = root().relay_pass(&[7; 16], utc_now() + 60);
    let shown = pass.token(&[7; 16], key(70).peer_id());
    assert!(gate.check_relayed(&shown, key(70).peer_id(), utc_now()).is_ok());
    // A grant is of no more use to it, nor is the pass of another swarm's.
    let grant = relay_token(&grant_of(&root(), key(70).peer_id(), FAR));
    assert!(gate.check_relayed(&grant, key(66).peer_id(), utc_now()).is_err());
    gate.check_relayed(&shown, key(66).peer_id(), utc_now()).is_ok()
}
