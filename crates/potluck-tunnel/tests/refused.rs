//! Who may not reach a service, and what nobody reaches.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod pair;

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use pair::{Exposed, PATIENCE, caveats, echo, forward, member, node_of, root, soon};
use potluck_core::{Revocation, Revoked};
use potluck_grant::{Caveats, Role, Root};
use potluck_net::{Bind, NetError, Node};
use potluck_tunnel::{Exposing, Far, Resolver, TunnelError, socks};
use potluck_wire::{FailureCode, PeerAddress};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

/// The bound, from the word of whoever takes back to the last byte.
const IN_FORCE: Duration = Duration::from_secs(5);

/// Whether a byte comes back from a service of the peer's own.
async fn answers(far: &Far, port: u16) -> bool {
    let (at, _forwarding) = forward(far, port).await;
    let mut socket = TcpStream::connect(at).await.unwrap();
    socket.write_all(b"?").await.unwrap();
    soon(socket.read_exact(&mut [0])).await.is_ok()
}

/// A door for programs, and where it is.
async fn door(far: &Far) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(socks::serve(listener, far.clone(), Default::default()));
    (at, task)
}

/// What SOCKS answers to a CONNECT to that name.
async fn asked_by_name(at: SocketAddr, name: &str, port: u16) -> u8 {
    let mut socket = TcpStream::connect(at).await.unwrap();
    let mut asked = vec![5, 1, 0, 5, 1, 0, 3, name.len() as u8];
    asked.extend(name.as_bytes());
    asked.extend(port.to_be_bytes());
    socket.write_all(&asked).await.unwrap();
    let mut answer = [0; 12];
    soon(socket.read_exact(&mut answer)).await.unwrap();
    answer[3]
}

#[tokio::test]
async fn strangers_are_not_let_in() {
    let port = echo().await;
    let peer = Exposed::new(20, &[&port.to_string()]).await;
    let other = Root::from_bytes(&[8; 32]);
    let stranger = node_of(&other, 1, &caveats(Role::Owner), Bind::Loopback).await;
    let refused = soon(peer.seen_by(&stranger).reach()).await;
    let code = FailureCode::NotAdmitted;
    assert!(
        matches!(&refused, Err(TunnelError::Net(NetError::Refused { code: got, .. })) if *got == code),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_peer_that_exposes_nothing_has_no_door() {
    let peer = member(20).await;
    let (idle_max, open_timeout) = (PATIENCE, PATIENCE);
    let config = potluck_peer::PeerConfig { id: peer.id(), sessions_per_client: 1, idle_max, open_timeout };
    let machine = potluck_peer::Peer::new(config, peer.identity().gate.clone());
    let _serving = potluck_net::serve(peer.clone(), machine, Vec::new());
    assert!(!answers(&pair::far(&member(1).await, peer.address()), 22).await);
}

#[tokio::test]
async fn guests_reach_what_is_named_and_members_what_is_exposed() {
    let (first, second) = (echo().await, echo().await);
    let peer = Exposed::new(20, &[&first.to_string()]).await;
    let seen = |node: Node| peer.seen_by(&node);
    let member = seen(member(1).await);
    assert!(answers(&member, first).await);
    assert!(!answers(&member, second).await, "not exposed");
    let guest = |n, ports: &[u16]| {
        let ports = ports.iter().map(|port| port.to_string().parse().unwrap()).collect();
        node_of_owned(n, Caveats { ports, ..caveats(Role::Guest) })
    };
    assert!(!answers(&seen(guest(2, &[]).await), first).await, "a guest of whom nothing is said");
    assert!(answers(&seen(guest(3, &[first]).await), first).await);
    assert!(!answers(&seen(guest(4, &[second]).await), first).await, "another port");
    assert!(!answers(&seen(guest(5, &[second]).await), second).await, "which is not exposed, whoever may");
}

async fn node_of_owned(n: u8, caveats: Caveats) -> Node {
    node_of(&root(), n, &caveats, Bind::Loopback).await
}

#[tokio::test]
async fn what_is_taken_back_ends_in_mid_stream() {
    let port = echo().await;
    let peer = Exposed::new(20, &[&port.to_string()]).await;
    let (victim, other) = (member(1).await, member(2).await);
    let owner = node_of(&root(), 3, &caveats(Role::Owner), Bind::Loopback).await;
    let (at, _forwarding) = forward(&peer.seen_by(&victim), port).await;
    let mut socket = TcpStream::connect(at).await.unwrap();
    socket.write_all(b"?").await.unwrap();
    soon(socket.read_exact(&mut [0])).await.unwrap();
    let what = Revoked::Key(victim.id());
    let revocation = Revocation::sign(root().public().root(), what, 1, &root().key(), vec![]);
    let begun = Instant::now();
    assert_eq!(owner.revoke(vec![revocation], vec![peer.node.address()]).await.unwrap(), 1);
    let ended = soon(socket.read(&mut [0])).await;
    assert_eq!(
        ended.unwrap_err().kind(),
        ErrorKind::ConnectionReset,
        "its connections end, and not as if all were there"
    );
    assert!(begun.elapsed() < IN_FORCE, "{:?}", begun.elapsed());
    assert!(!answers(&peer.seen_by(&victim), port).await);
    assert!(answers(&peer.seen_by(&other), port).await, "its neighbour's do not");
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_leads_nowhere() {
    let port = echo().await;
    // Whoever answers for these names lets them lead where it likes.
    let resolver = Resolver::new(|name| async move {
        let to = if name.starts_with("metadata") { "169.254.169.254" } else { "127.0.0.1" };
        Ok(vec![to.parse().unwrap()])
    });
    let exposed = [format!("db.lan:{port}"), format!("metadata.lan:{port}"), "192.168.1.0/24:*".to_owned()];
    let exposing = Exposing::new(exposed.iter().map(|text| text.parse().unwrap())).resolving(resolver);
    let peer = Exposed::with(20, exposing, Bind::Loopback).await;
    let (at, _door) = door(&peer.seen_by(&member(1).await)).await;
    for name in ["db.lan", "metadata.lan", "metadata.google.internal", "anything.example"] {
        assert_eq!(asked_by_name(at, name, port).await, 2, "{name}: not allowed");
    }
    // An owner's grant does not help where the peer does not expose it.
    let owner = node_of(&root(), 3, &caveats(Role::Owner), Bind::Loopback).await;
    let (at, _door) = door(&peer.seen_by(&owner)).await;
    assert_eq!(asked_by_name(at, "db.lan", port).await, 2);
}

#[tokio::test]
async fn a_name_is_looked_up_for_whoever_may_ask_and_for_nobody_else() {
    let looked_up = Arc::new(AtomicUsize::new(0));
    let count = looked_up.clone();
    let resolver = Resolver::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Ok(vec!["127.0.0.1".parse().unwrap()]) }
    });
    let port = echo().await;
    let exposing = Exposing::new([port.to_string().parse().unwrap()]).resolving(resolver);
    let peer = Exposed::with(20, exposing, Bind::Loopback).await;
    let guest = node_of(&root(), 2, &caveats(Role::Guest), Bind::Loopback).await;
    let (at, _door) = door(&peer.seen_by(&guest)).await;
    assert_eq!(asked_by_name(at, "own.example", port).await, 2);
    assert_eq!(looked_up.load(Ordering::Relaxed), 0);
    let (at, _member_door) = door(&peer.seen_by(&member(1).await)).await;
    assert_eq!(asked_by_name(at, "own.example", port).await, 2, "no exposure can mean it");
    assert_eq!(asked_by_name(at, "localhost", port + 1).await, 2);
    assert_eq!(looked_up.load(Ordering::Relaxed), 0, "nobody learns which names there are");
    assert_eq!(asked_by_name(at, "LocalHost.", port).await, 0);
    assert_eq!(looked_up.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_bytes_of_a_day_are_counted_where_they_pass() {
    let port = echo().await;
    let peer = Exposed::new(20, &[&port.to_string()]).await;
    let limited = Caveats { bytes_per_day: Some(100_000), ..caveats(Role::Member) };
    let far = peer.seen_by(&node_of(&root(), 1, &limited, Bind::Loopback).await);
    let (at, _forwarding) = forward(&far, port).await;
    let pass = |bytes: usize| async move {
        let mut socket = TcpStream::connect(at).await.unwrap();
        socket.write_all(&vec![1; bytes]).await.unwrap();
        soon(socket.read_exact(&mut vec![0; bytes])).await.is_ok()
    };
    assert!(pass(40_000).await, "there and back");
    assert!(!pass(40_000).await, "more than is left");
    assert!(pass(5_000).await, "what is left is left");
}

#[tokio::test]
async fn a_stream_that_says_nothing_or_nonsense_ends_alone() {
    let port = echo().await;
    let peer = Exposed::new(20, &[&port.to_string()]).await;
    let node = member(1).await;
    let at: PeerAddress = peer.node.address();
    let tunnel = node.tunnel(&at).await.unwrap();
    for nonsense in [&[0xff, 0xff, 1][..], &[3, 0, 9, 9, 9], &[1, 0, 1], &[0, 0], &[2, 0, 0, 0]] {
        let (mut send, mut recv) = tunnel.open().await.unwrap();
        send.write_all(nonsense).await.unwrap();
        let _ = send.finish();
        let ended = soon(recv.read_chunk(10)).await;
        assert!(!matches!(ended, Ok(Some(_))), "{nonsense:?} was answered");
    }
    for bad in [&[][..], &[0x80], &[0xff; 20], &[0x80, 0], &[9, 1, 2, 3]] {
        tunnel.send_datagram(bad.to_vec());
    }
    assert!(!tunnel.is_closed());
    assert!(answers(&peer.seen_by(&node), port).await);
}
