//! Attacks through tunnels.

use std::{collections::BTreeSet, time::Duration};

use potluck_grant::{Caveats, Gate, Role};
use potluck_net::{Bind, Identity, Lan, NetDeadlines, Node, NodeConfig, Serving, serve};
use potluck_peer::{Peer, PeerConfig};
use potluck_tunnel::{Exposing, Far, FindPeer, expose, forward_tcp};
use potluck_wire::{Dial, Host, Service};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::swarm::{FAR, key, root};

const SOON: Duration = Duration::from_secs(15);

async fn node(n: u8, caveats: &Caveats) -> Node {
    let grant = root().grant_as(key(n).peer_id(), caveats).unwrap().into_bytes();
    let identity = Identity { grant, key: key(n), gate: Gate::new(root().public()) };
    let deadlines = NetDeadlines::default();
    Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines }).await.unwrap()
}

fn as_role(role: Role) -> Caveats {
    Caveats { role: Some(role), until: Some(FAR), ..Caveats::default() }
}

/// A service that gives back what it is sent; its port.
async fn echo(tasks: &mut JoinSet<()>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut byte = [0];
            if socket.read_exact(&mut byte).await.is_ok() {
                let _ = socket.write_all(&byte).await;
            }
        }
    });
    port
}

async fn exposing(ports: &[u16]) -> (Node, Serving, JoinSet<()>) {
    let node = node(10, &as_role(Role::Member)).await;
    let config = PeerConfig { id: node.id(), sessions_per_client: 1, idle_max: SOON, open_timeout: SOON };
    let serving = serve(node.clone(), Peer::new(config, node.identity().gate.clone()), Vec::new());
    let exposed = ports.iter().map(|port| format!("{port}").parse().unwrap());
    let exposed = expose(&node, Exposing::new(exposed.collect::<Vec<_>>()));
    (node, serving, exposed)
}

/// Whether a byte comes back from that port of the peer.
async fn comes_back(from: &Node, to: &Node, port: u16) -> bool {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let far = Far::new(from.clone(), to.address(), FindPeer::nowhere_else());
    let mut forwarding = JoinSet::new();
    forwarding.spawn(forward_tcp(listener, far, Dial { service: Service::Tcp(port), host: Host::Own }));
    let mut socket = TcpStream::connect(at).await.unwrap();
    socket.write_all(b"?").await.unwrap();
    timeout(SOON, socket.read_exact(&mut [0])).await.expect("an answer, of either kind").is_ok()
}

pub(crate) async fn reaches_a_port_that_it_was_not_given() -> bool {
    let mut services = JoinSet::new();
    let (given, other) = (echo(&mut services).await, echo(&mut services).await);
    let (peer, _serving, _exposing) = exposing(&[given, other]).await;
    let ports = BTreeSet::from([given.to_string().parse().unwrap()]);
    let guest = node(66, &Caveats { ports, ..as_role(Role::Guest) }).await;
    assert!(comes_back(&guest, &peer, given).await, "what it was given it reaches");
    comes_back(&guest, &peer, other).await
}

pub(crate) async fn reaches_what_is_not_exposed() -> bool {
    let mut services = JoinSet::new();
    let (exposed, other) = (echo(&mut services).await, echo(&mut services).await);
    let (peer, _serving, _exposing) = exposing(&[exposed]).await;
    let member = node(66, &as_role(Role::Member)).await;
    assert!(comes_back(&member, &peer, exposed).await, "what is exposed it reaches");
    comes_back(&member, &peer, other).await
}
