//! Peers that reach each other through the swarm's own relay only: a real one, on this machine.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod swarm;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path as At, State},
    http::StatusCode,
    routing,
};
use n0_mainline::Testnet;
use potluck_core::{PeerId, Revocation, Revoked};
use potluck_grant::Gate;
use potluck_net::{
    Bind, Found, Identity, Lan, NetDeadlines, NetError, Node, NodeConfig, PathKind, PublicLookup, RelayAt,
    RelayInvitation, RelayUse,
};
use potluck_relay::{Certificate, Limits, Relay, RelayConfig, Spent};
use potluck_wire::PeerAddress;
use swarm::{FAR, grant_of, key, lend, node, root, spec};
use tokio::{
    net::TcpListener,
    time::{interval, timeout},
};

/// Waits until that is so, for a minute at most.
async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let waited = timeout(Duration::from_secs(60), async {
        let mut looks = interval(Duration::from_millis(20));
        while !is_so() {
            looks.tick().await;
        }
    });
    assert!(waited.await.is_ok(), "in vain: {what}");
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A relay of the swarm, with the gate that it goes by.
async fn relay_with(folder: &Path, limits: Limits, spent: Spent) -> (Relay, String, Gate) {
    let gate = Gate::new(root().public());
    let certificate = Certificate::self_signed(folder, &["127.0.0.1".into()]).unwrap();
    let pin = certificate.der().unwrap().to_vec();
    let (bind, http, discovery) = (local(), local(), local());
    let config =
        RelayConfig { bind, http, discovery, limits, spent, ..RelayConfig::new(vec![gate.clone()], certificate) };
    let relay = Relay::start(config).await.unwrap();
    let url = format!("https://{}", relay.address().unwrap());
    let udp = relay.discovery().map(|at| at.port());
    (relay, RelayAt::with_certificate(&url, Some(&pin), udp).unwrap().to_string(), gate)
}

async fn relay() -> (Relay, String, Gate) {
    relay_with(tempfile::tempdir().unwrap().path(), Limits::default(), Spent::default()).await
}

/// A node that shows this grant at these relays.
async fn node_showing(n: u8, grant: Vec<u8>, relays: &[&str], pass: Option<RelayInvitation>) -> Node {
    let (key, gate) = (key(n), Gate::new(root().public()));
    let identity = Identity { grant, key, gate };
    let deadlines = NetDeadlines { connect: Duration::from_secs(5), ..NetDeadlines::default() };
    let urls = relays.iter().map(|&url| url.to_owned()).collect();
    let relay = Some(RelayUse { urls, pass, claim: None });
    Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay, deadlines }).await.unwrap()
}

/// A member's node that has these relays.
async fn node_at(n: u8, relays: &[&str]) -> Node {
    node_showing(n, grant_of(&root(), key(n).peer_id(), FAR), relays, None).await
}

/// Where it is, for whoever knows none of its addresses.
fn at_relay(node: &Node) -> PeerAddress {
    PeerAddress { addresses: Vec::new(), ..node.address() }
}

#[tokio::test]
async fn who_knows_no_address_asks_through_the_relay() {
    let (relay, url, _) = relay().await;
    let host = node_at(1, &[&url]).await;
    assert_eq!(host.relay_answers().await, Some(Ok(())));
    assert_eq!(host.address().relay.as_ref(), Some(&url));
    let serving = lend(&host, spec(0, 2, 2), Duration::from_secs(5));

    let guest = node_at(2, &[&url]).await;
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
    relay.stop().await.unwrap();
}

/// A pkarr relay, which keeps whatever is brought and checks nothing: by the key of whose record it was asked for.
async fn pkarr() -> (PublicLookup, Records) {
    let records = Records::default();
    let put = async |State(records): State<Records>, At(key): At<String>, body: Bytes| {
        records.lock().unwrap().insert(key, body);
    };
    let get = async |State(records): State<Records>, At(key): At<String>| {
        records.lock().unwrap().get(&key).cloned().ok_or(StatusCode::NOT_FOUND)
    };
    let routes = Router::new().route("/{key}", routing::put(put).get(get)).with_state(records.clone());
    let listener = TcpListener::bind(local()).await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (url.parse().unwrap(), records)
}

/// By their keys in the form of pkarr.
type Records = Arc<Mutex<HashMap<String, Bytes>>>;

/// Nothing but its key is known.
fn unknown(peer: PeerId) -> PeerAddress {
    PeerAddress { peer, addresses: Vec::new(), relay: None }
}

/// A host that is found there, by a guest that knows its key and its relay, and by nobody else.
async fn is_found(at: &PublicLookup) {
    let (relay, url, _) = relay().await;
    let host = node_at(1, &[&url]).await.with_public_lookup(at, true);
    let serving = lend(&host, spec(0, 2, 2), Duration::from_secs(5));
    assert_eq!(host.relay_answers().await, Some(Ok(())));
    let guest = node_at(2, &[&url]).await.with_public_lookup(at, false);
    let found = timeout(Duration::from_secs(60), async {
        loop {
            // A record takes a moment to be where it is looked for.
            if let Ok(link) = guest.connect(&unknown(host.id())).await {
                break link.found;
            }
        }
    });
    assert_eq!(found.await.unwrap(), Found::Public);
    // The controls: a node that does not look there, and one that is not published.
    let alone = node_at(3, &[&url]).await;
    assert!(alone.connect(&unknown(host.id())).await.is_err());
    assert!(host.connect(&unknown(guest.id())).await.is_err());
    serving.stop().await;
    relay.stop().await.unwrap();
}

#[tokio::test]
async fn whose_key_alone_is_known_is_found_at_a_pkarr_relay() {
    let (at, records) = pkarr().await;
    is_found(&at).await;
    // Another's record under a key: it is not believed, and nobody is taken for somebody else.
    let record = records.lock().unwrap().values().next().unwrap().clone();
    let (relay, url, _) = relay().await;
    let host = node_at(1, &[&url]).await;
    let serving = lend(&host, spec(0, 2, 2), Duration::from_secs(5));
    assert_eq!(host.relay_answers().await, Some(Ok(())));
    let guest = node_at(2, &[&url]).await.with_public_lookup(&at, false);
    let asked = guest.connect(&unknown(key(4).peer_id())).await;
    assert!(matches!(asked, Err(NetError::Unreachable { .. })), "no record");
    let name = |n| iroh_base::EndpointId::from_bytes(key(n).peer_id().as_bytes()).unwrap().to_z32();
    assert!(records.lock().unwrap().keys().eq([&name(1)]), "this is how records are asked for");
    records.lock().unwrap().insert(name(4), record);
    let asked = guest.connect(&unknown(key(4).peer_id())).await;
    assert!(matches!(asked, Err(NetError::Unreachable { .. })), "{asked:?}");
    serving.stop().await;
    relay.stop().await.unwrap();
}

#[tokio::test]
async fn whose_key_alone_is_known_is_found_in_a_dht() {
    let dht = Testnet::new(8).await.unwrap();
    let port = dht.bootstrap[0].rsplit_once(':').unwrap().1;
    is_found(&format!("dht:127.0.0.1:{port}").parse().unwrap()).await;
}

#[tokio::test]
async fn a_relay_that_is_gone_holds_up_nobody_who_has_addresses() {
    let (relay, url, _) = relay().await;
    relay.stop().await.unwrap();
    let host = node_at(1, &[&url]).await;
    let serving = lend(&host, spec(0, 2, 2), Duration::from_secs(5));
    let guest = node_at(2, &[&url]).await;
    assert!(guest.connect(&host.address()).await.is_ok());
    guest.close().await;
    let other = node_at(3, &[&url]).await;
    assert!(matches!(other.connect(&at_relay(&host)).await, Err(NetError::Unreachable { .. })));
    assert!(matches!(host.relay_answers().await, Some(Err(_))));
    serving.stop().await;
}

#[tokio::test]
async fn a_relay_helps_members_and_whoever_was_invited_and_nobody_else() {
    let (relay, url, gate) = relay().await;
    let refused = |answer: Option<Result<(), String>>| answer.unwrap().unwrap_err().contains("not_allowed");
    let grant = |n: u8| grant_of(&root(), key(n).peer_id(), FAR);
    assert_eq!(node_at(1, &[&url]).await.relay_answers().await, Some(Ok(())));
    assert!(refused(node_showing(2, Vec::new(), &[&url], None).await.relay_answers().await), "a stranger");
    assert!(refused(node_showing(3, grant(1), &[&url], None).await.relay_answers().await), "another's grant");
    let over = grant_of(&root(), key(4).peer_id(), 1);
    assert!(refused(node_showing(4, over, &[&url], None).await.relay_answers().await), "a grant that is over");

    let pass = root().relay_pass(&[7; 16], FAR);
    let invited = RelayInvitation { pass, secret: [7; 16] };
    assert_eq!(node_showing(5, Vec::new(), &[&url], Some(invited)).await.relay_answers().await, Some(Ok(())));
    let guessed = RelayInvitation { pass, secret: [8; 16] };
    assert!(refused(node_showing(6, Vec::new(), &[&url], Some(guessed)).await.relay_answers().await));

    // Whoever is shut out is put out, and comes back no more.
    let lost = node_at(7, &[&url]).await;
    assert_eq!(lost.relay_answers().await, Some(Ok(())));
    let swarm = PeerId::from_bytes(*root().public().as_bytes());
    gate.revoke(Revocation::sign(swarm, Revoked::Key(lost.id()), 1, &root().key(), Vec::new())).unwrap();
    eventually("it is put out", || lost.at_relay().is_none()).await;
    assert!(refused(lost.relay_answers().await));
    relay.stop().await.unwrap();
}

#[tokio::test]
async fn another_certificate_at_the_same_place_is_not_the_relay() {
    let (relay, url, _) = relay().await;
    let (other, elsewhere, _) = self::relay().await;
    let pin = elsewhere.split_once('#').unwrap().1.split('&').next().unwrap();
    let (place, about) = url.split_once('#').unwrap();
    let udp = about.split_once('&').unwrap().1;
    for wrong in [format!("{place}#{pin}&{udp}"), format!("{place}#{udp}")] {
        let node = node_at(1, &[&wrong]).await;
        assert!(matches!(node.relay_answers().await, Some(Err(_))), "{wrong}");
    }
    relay.stop().await.unwrap();
    other.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_used_up_is_used_up_until_the_next_day() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { bytes_per_day: Some(1 << 40), ..Limits::default() };
    let (relay, url, _) = relay_with(folder.path(), limits, Spent::default()).await;
    let node = node_at(1, &[&url]).await;
    assert_eq!(node.relay_answers().await, Some(Ok(())));
    node.close().await;
    let today = relay.spent().day;
    relay.stop().await.unwrap();

    // It starts again with what it had passed on before.
    let (relay, url, _) = relay_with(folder.path(), limits, Spent { day: today, bytes: 1 << 40 }).await;
    assert!(node_at(1, &[&url]).await.relay_answers().await.unwrap().unwrap_err().contains("spent"));
    relay.stop().await.unwrap();
    let (relay, url, _) = relay_with(folder.path(), limits, Spent { day: today - 1, bytes: 1 << 40 }).await;
    assert_eq!(node_at(1, &[&url]).await.relay_answers().await, Some(Ok(())), "yesterday's");
    relay.stop().await.unwrap();
}

#[tokio::test]
async fn what_passes_is_counted_and_ends_the_day() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { bytes_per_day: Some(500), ..Limits::default() };
    let (relay, url, _) = relay_with(folder.path(), limits, Spent::default()).await;
    let host = node_at(1, &[&url]).await;
    assert_eq!(host.relay_answers().await, Some(Ok(())), "nothing has passed yet");
    let serving = lend(&host, spec(0, 2, 2), Duration::from_secs(5));
    let guest = node_at(2, &[&url]).await;
    // What passes until a direct path is found is enough.
    assert!(guest.connect(&at_relay(&host)).await.is_ok());
    eventually("both are put out", || host.at_relay().is_none() && guest.at_relay().is_none()).await;
    assert!(relay.spent().bytes >= 500, "{:?}", relay.spent());
    serving.stop().await;
    relay.stop().await.unwrap();
}

#[tokio::test]
async fn no_more_are_let_in_than_there_is_room_for() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { connections: 1, ..Limits::default() };
    let (relay, url, _) = relay_with(folder.path(), limits, Spent::default()).await;
    let first = node_at(1, &[&url]).await;
    assert_eq!(first.relay_answers().await, Some(Ok(())));
    let second = node_at(2, &[&url]).await;
    assert!(second.relay_answers().await.unwrap().unwrap_err().contains("busy"));
    first.close().await;
    eventually("there is room again", || second.at_relay().is_some()).await;
    relay.stop().await.unwrap();
}

#[tokio::test]
async fn where_one_relay_dies_they_meet_at_another() {
    let (first, a, _) = relay().await;
    let (second, b, _) = relay().await;
    let host = node_at(1, &[&a, &b]).await;
    let serving = lend(&host, spec(0, 2, 2), Duration::from_secs(5));
    assert_eq!(host.relay_answers().await, Some(Ok(())));
    let before = at_relay(&host);
    let guest = node_at(2, &[&a, &b]).await;
    let link = guest.connect(&before).await.unwrap();
    assert!(link.path().is_some_and(|path| path.kind != PathKind::Direct), "{:?}", link.path());

    // The one where the host listens dies.
    let at_first = before.relay.as_ref() == Some(&a);
    let (dies, lives, other) = if at_first { (first, second, &b) } else { (second, first, &a) };
    dies.stop().await.unwrap();
    eventually("the host moves", || host.at_relay().as_ref() == Some(other)).await;
    // Also for whoever knows it at the one that is gone.
    let late = node_at(3, &[&a, &b]).await;
    assert!(late.connect(&before).await.is_ok());
    serving.stop().await;
    lives.stop().await.unwrap();
}
