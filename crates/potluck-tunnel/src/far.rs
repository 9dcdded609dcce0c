//! The side that reaches: a peer that may go away and come back, and streams to its services.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use potluck_core::PeerId;
use potluck_net::{NetError, Node, RecvStream, SendStream, Tunnel};
use potluck_wire::{Dial, PeerAddress, TunnelFrame};
use tokio::{
    sync::Mutex as AsyncMutex,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{debug, info};

use crate::{
    TunnelError,
    flows::{Flow, Flows},
    frame,
};

/// Longest that a new connection waits for a peer that is away.
pub(crate) const AWAY_MAX: Duration = Duration::from_secs(10);

/// Longest that a peer may take to answer a dial: longer than it takes to resolve and to dial.
const ANSWER_MAX: Duration = Duration::from_secs(17);

/// Between two attempts to reach a peer that is away.
pub(crate) const AGAIN: Duration = Duration::from_millis(250);

/// Longest that others may take to say where the peer is now.
const FIND_MAX: Duration = Duration::from_secs(2);

type Finding = Pin<Box<dyn Future<Output = Option<PeerAddress>> + Send>>;

/// Says where a peer is now; none where nobody knows better than before.
#[derive(Clone)]
pub struct FindPeer(Arc<dyn Fn() -> Finding + Send + Sync>);

impl FindPeer {
    /// By that function.
    pub fn new<F>(find: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Option<PeerAddress>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(find())))
    }

    /// Where it was.
    pub fn nowhere_else() -> Self {
        Self::new(|| std::future::ready(None))
    }
}

impl fmt::Debug for FindPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FindPeer")
    }
}

/// A peer, as whoever reaches its services sees it. Clones share one connection, which is made when it is needed.
#[derive(Debug, Clone)]
pub struct Far(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: Node,
    peer: PeerId,
    find: FindPeer,
    at: Mutex<PeerAddress>,
    /// Ends a connection that nothing has used for so long.
    idle_max: Option<Duration>,
    standing: AsyncMutex<Option<Standing>>,
}

/// A connection that stands, and its datagrams.
#[derive(Debug)]
struct Standing {
    tunnel: Tunnel,
    flows: Flows,
    used: Arc<Mutex<Instant>>,
    _reading: JoinSet<()>,
}

/// A stream to a service that was reached.
#[derive(Debug)]
pub(crate) struct Opened {
    tunnel: Tunnel,
    flows: Flows,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

impl Opened {
    /// As bytes both ways.
    pub(crate) fn into_halves(self) -> (Tunnel, SendStream, RecvStream) {
        (self.tunnel, self.send, self.recv)
    }

    /// As a flow of packets.
    pub(crate) fn into_flow(self) -> Flow {
        self.flows.begin(self.tunnel, self.send, self.recv)
    }
}

impl Far {
    /// The peer at that address, looked for by `find` where it is there no longer.
    pub fn new(node: Node, at: PeerAddress, find: FindPeer) -> Self {
        Self::made(node, at, find, None)
    }

    /// The same; a connection that nothing has used for so long ends, and is made again when it is needed: the other side has room for
    /// so many, and others want in.
    pub fn resting(node: Node, at: PeerAddress, find: FindPeer, idle_max: Duration) -> Self {
        Self::made(node, at, find, Some(idle_max))
    }

    fn made(node: Node, at: PeerAddress, find: FindPeer, idle_max: Option<Duration>) -> Self {
        let (peer, at, standing) = (at.peer, Mutex::new(at), AsyncMutex::new(None));
        Self(Arc::new(Inner { node, peer, find, at, idle_max, standing }))
    }

    /// Which peer.
    pub fn peer(&self) -> PeerId {
        self.0.peer
    }

    /// Where it was heard of last.
    pub fn at(&self) -> PeerAddress {
        self.0.at.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The ports that the tunnel's own packets are sent from.
    #[cfg(target_os = "linux")]
    pub(crate) fn own_ports(&self) -> Vec<u16> {
        self.0.node.own_ports()
    }

    /// Connects now, where no connection stands: what is wrong is known before anything asks for a service.
    ///
    /// # Errors
    /// `Net` where the peer refuses; `Away` where it was not reached.
    pub async fn reach(&self) -> Result<Tunnel, TunnelError> {
        self.stand(Instant::now() + AWAY_MAX).await.map(|(tunnel, _)| tunnel)
    }

    /// Reaches a service. A peer that is away is waited for.
    ///
    /// # Errors
    /// `NotReached`, as the peer says; `Away`, `Lost`, `Net`, `Protocol`.
    pub(crate) async fn open(&self, dial: &Dial) -> Result<Opened, TunnelError> {
        self.open_with(&TunnelFrame::Dial(dial.clone())).await
    }

    /// The same for whatever a stream begins with.
    pub(crate) async fn open_with(&self, first: &TunnelFrame) -> Result<Opened, TunnelError> {
        let until = Instant::now() + AWAY_MAX;
        loop {
            let (tunnel, flows) = self.stand(until).await?;
            match self.ask(&tunnel, flows, first).await {
                // What was lost before an answer has done nothing there: it may be asked for again.
                Err(TunnelError::Lost(_) | TunnelError::Net(NetError::Lost { .. }))
                    if tunnel.is_closed() && Instant::now() < until =>
                {
                    if let Some(refused) = tunnel.refused() {
                        return Err(refused.into());
                    }
                    debug!(peer = %self.0.peer.short(), "the connection was lost: a service is asked for again");
                    sleep(AGAIN).await;
                }
                answer => return answer,
            }
        }
    }

    async fn ask(&self, tunnel: &Tunnel, flows: Flows, first: &TunnelFrame) -> Result<Opened, TunnelError> {
        let peer = self.0.peer;
        let (mut send, mut recv) = tunnel.open().await?;
        let asked = async {
            // At once: a stream is there for the other side when something has come by it, and a service may speak first.
            frame::write(peer, &mut send, first).await?;
            frame::read(peer, &mut recv).await
        };
        match timeout(ANSWER_MAX, asked).await {
            Ok(Ok(TunnelFrame::Opened)) => Ok(Opened { tunnel: tunnel.clone(), flows, send, recv }),
            Ok(Ok(TunnelFrame::NotReached(why))) => Err(TunnelError::NotReached { peer, why }),
            Ok(Ok(other)) => Err(NetError::Unexpected { peer, got: other.kind(), expected: "opened" }.into()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(TunnelError::Lost(peer)),
        }
    }

    /// The connection that stands, or a new one.
    pub(crate) async fn stand(&self, until: Instant) -> Result<(Tunnel, Flows), TunnelError> {
        let away = || TunnelError::Away { peer: self.0.peer, seconds: AWAY_MAX.as_secs() };
        let mut standing = timeout_at(until, self.0.standing.lock()).await.map_err(|_| away())?;
        if let Some(Standing { tunnel, flows, used, .. }) = standing.as_ref()
            && !tunnel.is_closed()
        {
            *used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            return Ok((tunnel.clone(), flows.clone()));
        }
        *standing = None;
        let tunnel = timeout_at(until, self.connect()).await.map_err(|_| away())??;
        let (flows, mut reading) = (Flows::default(), JoinSet::new());
        reading.spawn(read_datagrams(tunnel.clone(), flows.clone()));
        let used = Arc::new(Mutex::new(Instant::now()));
        if let Some(idle_max) = self.0.idle_max {
            reading.spawn(end_idle(tunnel.clone(), used.clone(), idle_max));
        }
        *standing = Some(Standing { tunnel: tunnel.clone(), flows: flows.clone(), used, _reading: reading });
        Ok((tunnel, flows))
    }

    /// Tries until the peer is reached, or says no.
    async fn connect(&self) -> Result<Tunnel, TunnelError> {
        loop {
            match self.0.node.tunnel(&self.at()).await {
                Ok(tunnel) => return Ok(tunnel),
                Err(error @ (NetError::Refused { .. } | NetError::NotMember { .. } | NetError::Protocol { .. })) => {
                    return Err(error.into());
                }
                Err(error) => info!(peer = %self.0.peer.short(), %error, "the peer is away"),
            }
            sleep(AGAIN).await;
            if let Ok(Some(found)) = timeout(FIND_MAX, (self.0.find.0)()).await {
                *self.0.at.lock().unwrap_or_else(PoisonError::into_inner) = found;
            }
        }
    }
}

/// Ends a connection whose last stream or packet was so long ago.
async fn end_idle(tunnel: Tunnel, used: Arc<Mutex<Instant>>, idle_max: Duration) {
    /// What stands, what reads its datagrams, and this.
    const AT_REST: usize = 3;
    loop {
        sleep(idle_max / 4).await;
        let mut used = used.lock().unwrap_or_else(PoisonError::into_inner);
        if tunnel.clones() > AT_REST {
            *used = Instant::now();
        } else if used.elapsed() >= idle_max {
            return tunnel.close();
        }
    }
}

async fn read_datagrams(tunnel: Tunnel, flows: Flows) {
    while let Some(datagram) = tunnel.read_datagram().await {
        flows.deliver(&datagram);
    }
}
