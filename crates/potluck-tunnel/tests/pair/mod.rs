//! A peer that exposes, and others that reach it, on loopback.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{net::SocketAddr, time::Duration};

use potluck_core::SecretKey;
use potluck_grant::{Caveats, Gate, Role, Root};
use potluck_net::{Bind, Identity, Lan, NetDeadlines, NetError, Node, NodeConfig, Serving, serve};
use potluck_peer::{Peer, PeerConfig};
use potluck_tunnel::{Exposing, Far, FindPeer, expose, forward_tcp};
use potluck_wire::{Dial, Host, PeerAddress, Service};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{interval, timeout},
};

/// How long anything in a test may take: nothing may hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

const FAR_AWAY: u64 = 4_000_000_000;

pub(crate) fn root() -> Root {
    Root::from_bytes(&[7; 32])
}

pub(crate) fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

pub(crate) fn caveats(role: Role) -> Caveats {
    Caveats { role: Some(role), until: Some(FAR_AWAY), ..Caveats::default() }
}

/// A node of that root, with what it may.
pub(crate) async fn node_of(root: &Root, n: u8, caveats: &Caveats, bind: Bind) -> Node {
    let grant = root.grant_as(key(n).peer_id(), caveats).unwrap().into_bytes();
    let identity = Identity { grant, key: key(n), gate: Gate::new(self::root().public()) };
    let deadlines = NetDeadlines::default();
    let config = NodeConfig { identity, bind, lan: Lan::Off, relay: None, deadlines };
    // A socket that was just closed may hold its port for a moment.
    let mut looks = interval(Duration::from_millis(20));
    let bound = timeout(PATIENCE, async {
        loop {
            looks.tick().await;
            match Node::bind(config.clone()).await {
                Err(NetError::Bind { .. }) if matches!(bind, Bind::Address(_)) => {}
                bound => return bound,
            }
        }
    });
    bound.await.unwrap().unwrap()
}

pub(crate) async fn member(n: u8) -> Node {
    node_of(&root(), n, &caveats(Role::Member), Bind::Loopback).await
}

/// A peer that exposes. It ends when dropped.
pub(crate) struct Exposed {
    pub(crate) node: Node,
    _serving: Serving,
    _exposing: JoinSet<()>,
}

impl Exposed {
    pub(crate) async fn new(n: u8, exposed: &[&str]) -> Self {
        let exposed = exposed.iter().map(|text| text.parse().unwrap());
        Self::with(n, Exposing::new(exposed), Bind::Loopback).await
    }

    pub(crate) async fn with(n: u8, exposing: Exposing, bind: Bind) -> Self {
        let node = node_of(&root(), n, &caveats(Role::Member), bind).await;
        let (idle_max, open_timeout) = (PATIENCE, PATIENCE);
        let config = PeerConfig { id: node.id(), sessions_per_client: 1, idle_max, open_timeout };
        let serving = serve(node.clone(), Peer::new(config, node.identity().gate.clone()), Vec::new());
        let exposing = expose(&node, exposing);
        Self { node, _serving: serving, _exposing: exposing }
    }

    /// It, as that node reaches it.
    pub(crate) fn seen_by(&self, node: &Node) -> Far {
        far(node, self.node.address())
    }

    /// Ends it, as a machine that is switched off does: nobody is told.
    pub(crate) async fn stop(self) -> SocketAddr {
        let at = self.node.address().addresses[0].parse().unwrap();
        let Self { node, _serving, _exposing } = self;
        drop((_exposing, _serving));
        node.close().await;
        at
    }
}

pub(crate) fn far(node: &Node, at: PeerAddress) -> Far {
    Far::new(node.clone(), at, FindPeer::nowhere_else())
}

/// A listener whose connections come out at the peer's own port.
pub(crate) async fn forward(far: &Far, port: u16) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(forward_tcp(listener, far.clone(), Dial { service: Service::Tcp(port), host: Host::Own }));
    (at, task)
}

/// A service on this machine, until the test ends; its port.
pub(crate) async fn service<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(socket));
        }
    });
    port
}

/// A service that sends back what it gets.
pub(crate) async fn echo() -> u16 {
    service(|mut socket| async move {
        let (mut read, mut write) = socket.split();
        // Whoever is gone wants nothing back.
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// What comes of it in time.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("it hangs")
}
