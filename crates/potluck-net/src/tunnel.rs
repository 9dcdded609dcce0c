//! Connections for tunnels: greeted like the others and apart from them, so that what passes through a tunnel shares neither
//! windows nor congestion control with a session's steps.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use potluck_core::PeerId;
use potluck_grant::{Authorized, GrantError, Member, Place, Request};
use potluck_wire::{FailureCode, PeerAddress, TUNNEL_ALPN};
use tokio::{sync::mpsc, time::timeout};
use tracing::{debug, info};

use crate::{
    NetError, Node, PathInfo,
    connect::Link,
    greet::{close, refusal_or, utc_now},
    places::Places,
};

/// Streams that one connection may have open: a connection of TCP or a flow of UDP each. The next one waits, for as long as
/// [`NetDeadlines::open_stream`](crate::NetDeadlines::open_stream).
pub const TUNNEL_STREAMS_MAX: u32 = 4_096;

/// Bytes that may be under way on one connection before they are read: sixteen streams whose readers have stopped hold up the
/// others of their connection, and nobody else.
const WINDOW_BYTES: u32 = 32 << 20;

/// Connections for tunnels at once. The next one is closed with `Busy`.
const TUNNELS_MAX: usize = 64;

/// How often a grant is looked at again whose tunnel stands: its time may be over. What is taken back ends it at once.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// Bytes of datagrams that wait to be read, of one connection. The oldest are dropped beyond it.
pub(crate) const DATAGRAM_BYTES: usize = 256 << 10;

/// Where connections for tunnels go. Their streams are read as far as their services take them.
#[derive(Debug, Clone)]
pub struct Tunnels {
    connections: mpsc::Sender<Tunnel>,
    taken: Places<()>,
}

/// A connection for tunnels to a member, or of one. Clones are the same connection.
#[derive(Debug, Clone)]
pub struct Tunnel {
    connection: Connection,
    member: Member,
    node: Node,
    in_use: Arc<()>,
}

impl Tunnels {
    /// Tunnels that are given to that channel.
    pub fn new(connections: mpsc::Sender<Tunnel>) -> Self {
        Self { connections, taken: Places::default() }
    }
}

impl Node {
    /// Takes connections for tunnels from now on. Without it, or where others are taken already, they are closed with `NotServed`.
    pub fn take_tunnels(&self, tunnels: Tunnels) {
        let _ = self.tunnels.set(tunnels);
    }

    /// The ports of UDP that this node sends from: what a tunnel carries is not to be the tunnel's own packets.
    pub fn own_ports(&self) -> Vec<u16> {
        self.endpoint.bound_sockets().iter().map(std::net::SocketAddr::port).collect()
    }

    /// A connection for tunnels to that peer: the one that stands, or a new one.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn tunnel(&self, to: &PeerAddress) -> Result<Tunnel, NetError> {
        let Link { connection, member, .. } = self.link(&self.tunnel_links, to, TUNNEL_ALPN).await?;
        Ok(Tunnel { connection, member, node: self.clone(), in_use: Arc::default() })
    }
}

/// Both sides have greeted.
pub(crate) fn lift_tunnel_limits(connection: &Connection) {
    let accepted = connection.side().is_server();
    connection.set_receive_window(VarInt::from_u32(WINDOW_BYTES));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(if accepted { TUNNEL_STREAMS_MAX } else { 0 }));
}

/// A member's connection, from its greeting to its end.
pub(crate) async fn attend_tunnel(node: Node, connection: Connection, member: Member) {
    let peer = member.peer().short();
    let Some(tunnels) = node.tunnels.get().cloned() else {
        return close(&connection, FailureCode::NotServed);
    };
    if tunnels.taken.taken_in_all() >= TUNNELS_MAX {
        info!(%peer, max = TUNNELS_MAX, "a tunnel was refused: too many");
        return close(&connection, FailureCode::Busy);
    }
    let _place = tunnels.taken.take(());
    lift_tunnel_limits(&connection);
    debug!(%peer, "a tunnel stands");
    let mut revoked = node.revoked.subscribe();
    // What was taken back since the greeting counts, too.
    revoked.mark_changed();
    let (connection_of, member_of) = (connection.clone(), member.clone());
    let tunnel = Tunnel { connection: connection_of, member: member_of, node: node.clone(), in_use: Arc::default() };
    if tunnels.connections.send(tunnel).await.is_err() {
        return close(&connection, FailureCode::Leaving);
    }
    loop {
        if let Err(error) = node.identity.gate.still(&member, utc_now()) {
            info!(%peer, %error, "a member's tunnel is closed");
            return close(&connection, FailureCode::NotAdmitted);
        }
        tokio::select! {
            changed = revoked.changed() => if changed.is_err() { return },
            _ = connection.closed() => return,
            () = tokio::time::sleep(CHECK_EVERY) => {}
        }
    }
}

impl Tunnel {
    /// The other side.
    pub fn peer(&self) -> PeerId {
        self.member.peer()
    }

    /// The other side, as its grant has proven.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// A request that the other side may make here and now.
    ///
    /// # Errors
    /// As [`Gate::authorize`](potluck_grant::Gate::authorize).
    pub fn authorize<R: Request>(&self, request: R) -> Result<Authorized<R>, GrantError> {
        let here = Place { peer: self.node.id(), now: utc_now() };
        self.node.identity.gate.authorize(&self.member, request, here)
    }

    /// Opens a stream, within the node's deadline.
    ///
    /// # Errors
    /// `Lost`.
    pub async fn open(&self) -> Result<(SendStream, RecvStream), NetError> {
        let lost = |reason: String| NetError::Lost { peer: self.peer(), reason };
        let patience = self.node.deadlines.open_stream;
        match timeout(patience, self.connection.open_bi()).await {
            Ok(streams) => streams.map_err(|error| lost(error.to_string())),
            Err(_) => Err(lost(format!("no stream within {} s", patience.as_secs_f32()))),
        }
    }

    /// The next stream that the other side opens; none once the connection has ended.
    pub async fn accept(&self) -> Option<(SendStream, RecvStream)> {
        self.connection.accept_bi().await.ok()
    }

    /// Sends a datagram. False where it did not go: too large for the path as it is now, or the connection has ended.
    pub fn send_datagram(&self, datagram: Vec<u8>) -> bool {
        let fits = self.connection.max_datagram_size().is_some_and(|max| datagram.len() <= max);
        fits && self.connection.send_datagram(Bytes::from(datagram)).is_ok()
    }

    /// The next datagram; none once the connection has ended.
    pub async fn read_datagram(&self) -> Option<Bytes> {
        self.connection.read_datagram().await.ok()
    }

    /// How many clones of it there are, this one among them.
    pub fn clones(&self) -> usize {
        Arc::strong_count(&self.in_use)
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Why the other side has ended it, where it wants none with this one: it takes no tunnels, has too many, or this one may not.
    pub fn refused(&self) -> Option<NetError> {
        let lost = NetError::Lost { peer: self.peer(), reason: "the connection ended".into() };
        let for_good = [FailureCode::NotServed, FailureCode::Busy, FailureCode::NotAdmitted];
        match refusal_or(&self.connection, lost) {
            refused @ NetError::Refused { code, .. } if for_good.contains(&code) => Some(refused),
            _ => None,
        }
    }

    /// Ends the connection.
    pub fn close(&self) {
        close(&self.connection, FailureCode::Done);
    }

    /// How it runs at present.
    pub fn path(&self) -> Option<PathInfo> {
        PathInfo::of(&self.connection)
    }
}

/// What `Node` keeps of tunnels.
pub(crate) type TunnelsCell = Arc<std::sync::OnceLock<Tunnels>>;
