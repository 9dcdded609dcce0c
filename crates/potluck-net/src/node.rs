//! One endpoint with one key.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use iroh::{
    Endpoint, EndpointAddr, EndpointId, TransportAddr, Watcher as _,
    endpoint::{Connection, IdleTimeout, PortmapperConfig, QuicTransportConfig, VarInt, presets},
};
use potluck_core::{PeerId, SecretKey, bounds::STAGE_SESSIONS_MAX, with_causes};
use potluck_grant::Gate;
use potluck_wire::{ADDRESSES_MAX, ALPN, CONTROL_BYTES_MAX, PeerAddress, TUNNEL_ALPN};
use tokio::{sync::watch, time::timeout};

use crate::{
    Door, Lan, Lending, NetDeadlines, NetError, Orders, Shelf,
    connect::Links,
    lan::Finder,
    public::{PublicLookup, Records},
    relay::{RelayUse, Relays},
    tunnel::{DATAGRAM_BYTES, TunnelsCell},
    upload::Upload,
};

/// Streams that one connection may have open from the other side: a client's or a neighbour's stream for each session
/// that a stage can hold, and some to greet and to ask for offers. The next one waits, for as long as
/// [`NetDeadlines::open_stream`].
pub(crate) const CONNECTION_STREAMS_MAX: u32 = 2 * STAGE_SESSIONS_MAX as u32 + 16;

/// Bytes that may be under way on one stream before they are read. More than some 2.5 MiB has been seen to end
/// connections with "too many gaps in stream buffer".
const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// Bytes that may be under way on one connection before they are read.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// The same before the greeting, which is one stream and one control frame each way.
const GREETING_WINDOW_BYTES: u32 = CONTROL_BYTES_MAX as u32;

/// A fresh socket may be written to once the reactor has turned. First packets that wait for that share one waker in
/// iroh 1.4.1: of several dials at once all but one lost theirs, and sent it again a second later.
const SOCKET_SETTLES: Duration = Duration::from_millis(1);

const _: () = assert!(STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES, "one stream fits its connection");

/// Who a node is, and whom it lets in.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its key.
    pub key: SecretKey,
    /// Its own grant, which it shows to everybody.
    pub grant: Vec<u8>,
    /// The swarm's gate.
    pub gate: Gate,
}

/// Where a node listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    /// On this machine only, on a free port.
    Loopback,
    /// On every interface, on a free port.
    Any,
    /// On this address.
    Address(SocketAddr),
}

impl Bind {
    fn is_loopback(self) -> bool {
        match self {
            Self::Loopback => true,
            Self::Any => false,
            Self::Address(at) => at.ip().is_loopback(),
        }
    }
}

/// What a node is made of.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Who it is.
    pub identity: Identity,
    /// Where it listens.
    pub bind: Bind,
    /// What it does with the local network that it is on.
    pub lan: Lan,
    /// The relays of the swarm, for networks that reach nothing else.
    pub relay: Option<RelayUse>,
    /// How long each wait may last.
    pub deadlines: NetDeadlines,
}

/// One endpoint with one key: listens, dials, and keeps one connection to each peer.
#[derive(Debug, Clone)]
pub struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) identity: Arc<Identity>,
    pub(crate) deadlines: NetDeadlines,
    pub(crate) links: Links,
    /// Those for tunnels.
    pub(crate) tunnel_links: Links,
    pub(crate) finder: Option<Arc<Finder>>,
    pub(crate) records: Option<Arc<Records>>,
    pub(crate) relays: Relays,
    pub(crate) door: Arc<OnceLock<Door>>,
    pub(crate) shelf: Arc<OnceLock<Shelf>>,
    /// Nothing of the shelf is given away for now.
    pub(crate) rests: Arc<AtomicBool>,
    /// How fast streams may be written to.
    pub(crate) upload: Arc<OnceLock<Upload>>,
    pub(crate) orders: Arc<OnceLock<Orders>>,
    pub(crate) lending: Arc<OnceLock<Lending>>,
    pub(crate) tunnels: TunnelsCell,
    /// Counts what was taken back.
    pub(crate) revoked: watch::Sender<u64>,
}

impl Node {
    /// Binds the node's socket.
    ///
    /// # Errors
    /// `Bind`; `Relay` where the relay's URL is none.
    pub async fn bind(config: NodeConfig) -> Result<Self, NetError> {
        let NodeConfig { identity, bind, lan, relay, deadlines } = config;
        let (mut relays, pass) = Relays::read(relay)?;
        let mut builder = Endpoint::builder(presets::Minimal)
            .secret_key(iroh::SecretKey::from_bytes(&identity.key.to_bytes()))
            .alpns(vec![ALPN.to_vec(), TUNNEL_ALPN.to_vec()])
            .clear_address_lookup()
            .transport_config(transport(&deadlines));
        #[cfg(feature = "undefended")]
        if !potluck_core::Defence::Encryption.stands() {
            builder = builder.crypto_provider(crate::null::provider());
        }
        builder = relays.configure(builder, &identity, pass.as_ref());
        let at = match &bind {
            Bind::Any => "any port".to_owned(),
            Bind::Loopback => "loopback".to_owned(),
            Bind::Address(address) => address.to_string(),
        };
        let refused = |error: &dyn std::error::Error| NetError::Bind { at: at.clone(), reason: with_causes(error) };
        builder = match bind {
            Bind::Any => builder,
            Bind::Loopback => {
                let local = SocketAddr::from(([127, 0, 0, 1], 0));
                let builder = builder.clear_ip_transports().portmapper_config(PortmapperConfig::Disabled);
                builder.bind_addr(local).map_err(|error| refused(&error))?
            }
            Bind::Address(address) => {
                builder.clear_ip_transports().bind_addr(address).map_err(|error| refused(&error))?
            }
        };
        let endpoint = builder.bind().await.map_err(|error| refused(&error))?;
        relays.keep(&endpoint, &identity, pass.as_ref());
        let finder = (lan != Lan::Off && !bind.is_loopback())
            .then(|| Arc::new(Finder::start(&endpoint, identity.gate.swarm(), lan == Lan::Announce)));
        tokio::time::sleep(SOCKET_SETTLES).await;
        Ok(Self {
            endpoint,
            identity: Arc::new(identity),
            deadlines,
            links: Links::default(),
            tunnel_links: Links::default(),
            finder,
            records: None,
            relays,
            door: Arc::default(),
            shelf: Arc::default(),
            rests: Arc::default(),
            upload: Arc::default(),
            orders: Arc::default(),
            lending: Arc::default(),
            tunnels: TunnelsCell::default(),
            revoked: watch::Sender::new(0),
        })
    }

    /// Whether whoever wants parts of models is turned away for now: the machine's owner has it.
    pub fn rest(&self, rests: bool) {
        self.rests.store(rests, Ordering::Relaxed);
    }

    /// Sends that many bytes a second at most, on all streams together that are opened from now on: steps and parts of models alike, none
    /// of which is echoed then. Greetings, the answers of an upstream and tunnels are not limited; headers of packets, and what is sent
    /// again since it was lost, not counted. It is said once.
    pub fn limit_upload(&self, bytes_per_second: NonZeroU32) {
        let _ = self.upload.set(Upload::new(bytes_per_second));
    }

    /// The same node, which looks peers up there as well, and is found there where it is published.
    #[must_use]
    pub fn with_public_lookup(mut self, at: &PublicLookup, publish: bool) -> Self {
        self.records = Some(Records::start(&self.endpoint, at, publish));
        self
    }

    /// The node's id.
    pub fn id(&self) -> PeerId {
        self.identity.key.peer_id()
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it is reached, as far as it knows.
    pub fn address(&self) -> PeerAddress {
        let addr = self.endpoint.addr();
        let mut addresses: Vec<_> = addr.ip_addrs().map(ToString::to_string).collect();
        let bound = self.endpoint.bound_sockets();
        // A socket on loopback is not among the addresses that are published, but it is how this machine reaches us.
        let local = bound.iter().filter(|socket| socket.ip().is_loopback()).map(ToString::to_string);
        addresses.extend(local.filter(|text| !addr.ip_addrs().any(|known| known.to_string() == *text)));
        addresses.truncate(ADDRESSES_MAX);
        // Where it listens, whether or not a relay has answered yet.
        let relay = self.at_relay().or_else(|| self.relays.home(None));
        PeerAddress { peer: self.id(), addresses, relay }
    }

    /// Whether one of this node's relays lets it listen, waited for as long as for a connection: why none does, if so. None where
    /// the node has no relay.
    pub async fn relay_answers(&self) -> Option<Result<(), String>> {
        if self.relays.is_empty() {
            return None;
        }
        let mut states = self.endpoint.home_relay_status();
        let within = timeout(self.deadlines.connect, self.endpoint.online()).await;
        Some(within.map_err(|_| {
            let states = states.get();
            let denied = states.iter().find_map(|state| state.auth_denied_reason());
            let denied = denied.map(|code| format!("it refuses this machine's grant ({code})"));
            let told = denied.or_else(|| states.iter().find_map(|state| state.last_error().map(ToString::to_string)));
            told.unwrap_or_else(|| format!("no answer within {} s", self.deadlines.connect.as_secs_f32()))
        }))
    }

    /// The relay that lets this node listen at present.
    pub fn at_relay(&self) -> Option<String> {
        let connected = self.endpoint.home_relay_status().get().into_iter().find(|state| state.is_connected())?;
        self.relays.home(Some(connected.url()))
    }

    /// Closes every connection and the socket.
    pub async fn close(&self) {
        self.endpoint.close().await;
    }
}

/// Both sides have greeted: what a stranger may not use is given. Streams are taken from whoever dialled, and only then.
pub(crate) fn lift_limits(connection: &Connection) {
    let accepted = connection.side().is_server();
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(if accepted { CONNECTION_STREAMS_MAX } else { 0 }));
}

/// A connection starts with what a greeting takes: [`lift_limits`] gives the rest.
fn transport(deadlines: &NetDeadlines) -> QuicTransportConfig {
    // A connection outlives its last path by nothing: where the path is idle for too long, so is the connection.
    let idle = IdleTimeout::try_from(deadlines.path_idle).ok();
    QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(GREETING_WINDOW_BYTES))
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
        .max_idle_timeout(idle)
        .keep_alive_interval(deadlines.keep_alive())
        .default_path_max_idle_timeout(deadlines.path_idle)
        .default_path_keep_alive_interval(deadlines.keep_alive())
        .build()
}

pub(crate) fn peer_id(id: EndpointId) -> PeerId {
    PeerId::from_bytes(*id.as_bytes())
}

/// The transport's form of an address, which may come from anybody: what cannot be dialled is left out, which may be all.
///
/// # Errors
/// `Unreachable` where the id is no key.
pub(crate) fn endpoint_addr(address: &PeerAddress, relays: &Relays) -> Result<EndpointAddr, NetError> {
    let id = EndpointId::from_bytes(address.peer.as_bytes())
        .map_err(|error| NetError::Unreachable { peer: address.peer, reason: error.to_string() })?;
    let ips = address.addresses.iter().take(ADDRESSES_MAX).filter_map(|text| text.parse::<SocketAddr>().ok());
    let ips = ips.filter(is_dialled).map(TransportAddr::Ip);
    let relays = relays.to_ask(address.relay.as_deref()).into_iter().map(TransportAddr::Relay);
    Ok(EndpointAddr::from_parts(id, ips.chain(relays)))
}

/// One machine's, as far as an address can tell.
pub(crate) fn is_dialled(at: &SocketAddr) -> bool {
    let ip = at.ip();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    at.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_from_a_stranger_is_made_sense_of_or_refused() {
        let none = Relays::default();
        let peer = SecretKey::from_bytes(&[1; 32]).peer_id();
        let address = |texts: &[&str], relay: Option<&str>| PeerAddress {
            peer,
            addresses: texts.iter().map(|text| (*text).into()).collect(),
            relay: relay.map(Into::into),
        };
        let mixed =
            ["127.0.0.1:7", "nonsense", "0.0.0.0:7", "224.0.0.1:7", "255.255.255.255:7", "1.2.3.4:0", "[::1]:9"];
        let usable = endpoint_addr(&address(&mixed, None), &none).unwrap();
        let mut found: Vec<_> = usable.ip_addrs().map(ToString::to_string).collect();
        found.sort_unstable();
        assert_eq!(found, ["127.0.0.1:7", "[::1]:9"]);
        for hopeless in [address(&[], None), address(&["[ff02::1]:1"], Some("no url"))] {
            assert!(endpoint_addr(&hopeless, &none).unwrap().is_empty());
        }
        let no_key = PeerAddress { peer: PeerId::from_bytes([2; 32]), ..address(&["127.0.0.1:7"], None) };
        assert!(matches!(endpoint_addr(&no_key, &none), Err(NetError::Unreachable { .. })));
    }
}
