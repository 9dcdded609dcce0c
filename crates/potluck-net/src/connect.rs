//! Connections that we make: one to each peer, greeted, kept and reused.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use iroh::{
    EndpointAddr,
    endpoint::{ConnectError, ConnectingError, Connection, ConnectionError},
};
use potluck_core::{PeerId, with_causes};
use potluck_grant::Member;
use potluck_wire::{ALPN, FEATURE_CHECKS, FailureCode, PeerAddress, Welcome};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep, timeout},
};

use crate::{
    NetError, Node, PathInfo,
    echo::Echoes,
    greet::{close, greet},
    lan,
    node::{endpoint_addr, lift_limits},
    public,
    stream::Halves,
    tunnel::lift_tunnel_limits,
};

/// After which a second attempt to reach a peer by its relay begins.
const ATTEMPT_AGAIN: Duration = Duration::from_secs(4);

/// A connection to a member of the swarm: both have shown their grants.
#[derive(Debug, Clone)]
pub struct Link {
    pub(crate) connection: Connection,
    /// Where both sides know them.
    pub(crate) echoes: Option<Echoes>,
    /// The peer, as its grant has proven.
    pub(crate) member: Member,
    /// The peer.
    pub peer: PeerId,
    /// What it allows, and its grant.
    pub welcome: Welcome,
    /// Where its address came from.
    pub found: Found,
}

/// Where the address came from at which a peer answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It was told: by a contact, an offer, an invitation.
    Told,
    /// Looked up on the local network by the peer's key: what was told did not answer.
    Lan,
    /// Looked up in a public record, likewise.
    Public,
}

/// One attempt or connection for each peer: whoever comes second waits for the first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links(Arc<Mutex<HashMap<PeerId, Arc<OnceCell<Link>>>>>);

impl Links {
    /// The peer's place, emptied if its connection is gone.
    fn place(&self, peer: PeerId) -> Arc<OnceCell<Link>> {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|_, place| match place.get() {
            Some(link) => link.connection.close_reason().is_none(),
            // An attempt that failed leaves nothing behind; one under way is held by whoever made it.
            None => Arc::strong_count(place) > 1,
        });
        links.entry(peer).or_default().clone()
    }

    /// All that stand.
    pub(crate) fn all(&self) -> Vec<Link> {
        let links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links.values().filter_map(|place| place.get().cloned()).collect()
    }

    fn standing(&self, peer: PeerId) -> Option<Link> {
        let links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links.get(&peer)?.get().cloned()
    }
}

impl Node {
    /// How the connection to that peer runs at present; none where no connection to it stands.
    pub fn path_to(&self, peer: PeerId) -> Option<PathInfo> {
        self.links.standing(peer)?.path()
    }

    /// How the connections to peers run that this node has made and that stand, each peer once.
    pub fn paths(&self) -> Vec<PathInfo> {
        self.links.all().iter().filter_map(Link::path).collect()
    }

    /// A greeted connection to that peer: the one that stands, or a new one.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`, `NotMember` or `Protocol`, within the deadlines of connecting and greeting.
    pub async fn connect(&self, to: &PeerAddress) -> Result<Link, NetError> {
        self.link(&self.links, to, ALPN).await
    }

    /// The connection to that peer that stands among these, or a new one of that protocol.
    pub(crate) async fn link(&self, links: &Links, to: &PeerAddress, alpn: &'static [u8]) -> Result<Link, NetError> {
        let place = links.place(to.peer);
        // Whoever waits for another's attempt waits no longer than for its own.
        let patience = self.deadlines.connect + self.deadlines.greet;
        let attempt = timeout(patience, place.get_or_try_init(|| self.dial(to, alpn))).await;
        attempt
            .unwrap_or_else(|_| {
                let reason = format!("no connection within {} s", patience.as_secs_f32());
                Err(NetError::Unreachable { peer: to.peer, reason })
            })
            .cloned()
    }

    /// A connection to whoever holds that key, before any word. Where the addresses do not answer at once, the peer is looked
    /// up on the local network and in public records as well, and whichever leads to it first counts.
    pub(crate) async fn shake_hands(&self, to: &PeerAddress, alpn: &[u8]) -> Result<(Connection, Found), NetError> {
        let unreachable = |reason: String| NetError::Unreachable { peer: to.peer, reason };
        let address = endpoint_addr(to, &self.relays)?;
        let unused = to.relay.is_some() && address.relay_urls().next().is_none();
        let unreachable = |reason: String| {
            unreachable(match (unused, self.relays.is_empty()) {
                (false, _) => reason,
                (true, true) => reason + "; it listens at a relay, too, and this machine is at none (--relay)",
                (true, false) => reason + "; it listens at another relay, which is not asked: not https",
            })
        };
        if address.is_empty() && self.finder.is_none() && self.records.is_none() {
            return Err(match to.relay {
                Some(_) => unreachable("none of its addresses is known".into()),
                None => NetError::Address(to.addresses.join(", ")),
            });
        }
        let seconds = self.deadlines.connect.as_secs_f32();
        // Boxed: every future that dials would be as deep.
        timeout(self.deadlines.connect, Box::pin(self.reach(address, alpn)))
            .await
            .map_err(|_| unreachable(format!("no answer within {seconds} s")))?
            .map_err(unreachable)
    }

    async fn reach(&self, address: EndpointAddr, alpn: &[u8]) -> Result<(Connection, Found), String> {
        let known = !address.is_empty();
        let told = async {
            if !known {
                return Err("none of its addresses is known, and nobody says where it is".to_owned());
            }
            let connected = self.attempt(&address, alpn).await;
            connected.map(|connection| (connection, Found::Told)).map_err(|error| with_causes(&error))
        };
        let on_lan = async {
            let finder = self.finder.as_ref()?;
            sleep(if known { lan::HEAD_START } else { Duration::ZERO }).await;
            let place = finder.find(address.id, &address).await?;
            let connected = self.endpoint.connect(place, alpn).await;
            connected.ok().map(|connection| (connection, Found::Lan))
        };
        let in_public = async {
            let records = self.records.as_ref()?;
            sleep(if known { public::HEAD_START } else { Duration::ZERO }).await;
            let place = records.find(address.id, &address, &self.relays).await?;
            let connected = self.attempt(&place, alpn).await;
            connected.ok().map(|connection| (connection, Found::Public))
        };
        let looked_up = async { first_ok(async { on_lan.await.ok_or(()) }, in_public).await.ok() };
        first_ok(told, looked_up).await
    }

    /// A connection to that address. A peer that has just started may be on its way to its relay, and what is sent to it meanwhile is
    /// lost, and is sent again ever more rarely: so by relay a second attempt begins while the first one still waits.
    async fn attempt(&self, address: &EndpointAddr, alpn: &[u8]) -> Result<Connection, ConnectError> {
        let attempt = || self.endpoint.connect(address.clone(), alpn);
        if address.relay_urls().next().is_none() {
            return attempt().await;
        }
        let begun = Instant::now();
        let mut first = pin!(attempt());
        let mut second = pin!(async {
            sleep(ATTEMPT_AGAIN).await;
            attempt().await
        });
        tokio::select! {
            connected = &mut first => match connected {
                // Whoever says no says it again; a second one that waits already may be let in.
                Err(error) if !is_silence(&error) && begun.elapsed() < ATTEMPT_AGAIN => Err(error),
                Err(_) => second.await,
                connected => connected,
            },
            connected = &mut second => match connected {
                Err(_) => first.await,
                connected => connected,
            },
        }
    }

    async fn dial(&self, to: &PeerAddress, alpn: &'static [u8]) -> Result<Link, NetError> {
        let peer = to.peer;
        let unreachable = |reason: String| NetError::Unreachable { peer, reason };
        let (connection, found) = self.shake_hands(to, alpn).await?;
        let greeted = timeout(self.deadlines.greet, greet(&connection, &self.identity)).await;
        let greeted = greeted.unwrap_or_else(|_| {
            Err(unreachable(format!("no welcome within {} s", self.deadlines.greet.as_secs_f32())))
        });
        match greeted {
            Ok((welcome, member)) => {
                let mut echoes = None;
                if alpn == ALPN {
                    lift_limits(&connection);
                    echoes = Echoes::agreed(&connection, welcome.features);
                } else {
                    lift_tunnel_limits(&connection);
                }
                Ok(Link { connection, echoes, peer, welcome, member, found })
            }
            Err(error) => {
                close(&connection, error.failure().code);
                Err(error)
            }
        }
    }
}

/// What comes first of both; where neither leads anywhere, what the first one says of it.
async fn first_ok<T, E>(
    first: impl Future<Output = Result<T, E>>,
    other: impl Future<Output = Option<T>>,
) -> Result<T, E> {
    let (mut first, mut other) = (pin!(first), pin!(other));
    tokio::select! {
        biased;
        reached = &mut first => match reached {
            Err(error) => other.await.ok_or(error),
            reached => reached,
        },
        reached = &mut other => match reached {
            Some(reached) => Ok(reached),
            None => first.await,
        },
    }
}

/// Whether nobody has answered, which says nothing of the next attempt.
fn is_silence(error: &ConnectError) -> bool {
    let source = match error {
        ConnectError::Connection { source, .. } => source,
        ConnectError::Connecting { source: ConnectingError::ConnectionError { source, .. }, .. } => source,
        _ => return false,
    };
    matches!(source, ConnectionError::TimedOut)
}

impl Link {
    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// How it runs at present.
    pub fn path(&self) -> Option<PathInfo> {
        PathInfo::of(&self.connection)
    }

    /// How often the peer's machine has acknowledged what it was sent. One to which nothing gets through does not.
    pub(crate) fn acknowledgements(&self) -> u64 {
        let received = self.connection.stats().frame_rx;
        received.acks + received.path_acks
    }

    /// Opens a stream, within the node's deadline.
    pub(crate) async fn open_stream(&self, node: &Node) -> Result<Halves, NetError> {
        let lost = |reason: String| NetError::Lost { peer: self.peer, reason };
        match timeout(node.deadlines.open_stream, self.connection.open_bi()).await {
            Ok(Ok((send, recv))) => {
                let checks = self.welcome.features & FEATURE_CHECKS != 0;
                Ok(Halves { send, recv, echoes: self.echoes.clone(), checks, upload: node.upload.get().cloned() })
            }
            Ok(Err(error)) => Err(lost(error.to_string())),
            Err(_) => {
                let code = FailureCode::Deadline;
                Err(lost(format!("{code}: no stream within {} s", node.deadlines.open_stream.as_secs_f32())))
            }
        }
    }
}
