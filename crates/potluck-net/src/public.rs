//! Peers find each other over the internet where nobody whom they know is left: in signed records under their keys ([pkarr]), which the
//! BitTorrent DHT ([BEP 44]) or a server keeps for anybody. Only who asks for it publishes itself, or looks others up.
//!
//! A record says where its key is to be found: relays, and addresses that are reached from everywhere. Whoever knows the key reads it,
//! and the nodes of the DHT do. What comes back is no more than a place to dial: the peer is the one whose key the handshake proves.
//!
//! [pkarr]: https://pkarr.org
//! [BEP 44]: https://www.bittorrent.org/beps/bep_0044.html

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use iroh::{
    Endpoint, EndpointAddr, EndpointId, RelayUrl, TransportAddr,
    address_lookup::{AddrFilter, AddressLookup, AddressLookupBuilder, EndpointData, PkarrPublisher, PkarrResolver},
};
use iroh_mainline_address_lookup::DhtAddressLookup;
use n0_future::StreamExt as _;
use n0_mainline::DhtBuilder;
use potluck_wire::ADDRESSES_MAX;
use tokio::{
    net::lookup_host,
    sync::OnceCell,
    time::{sleep, timeout},
};

use crate::{NetError, node::is_dialled, relay::Relays};

/// Head start of the addresses that were told, and of the local network.
pub(crate) const HEAD_START: Duration = Duration::from_secs(1);

/// How long a record is looked for. With the head start it leaves a dial time to use it.
const LOOK_FOR: Duration = Duration::from_secs(6);

/// Where the DHT is entered, as its programs do; resolved here, since the library would hold a thread up for it.
const ENTRIES: [&str; 3] = ["router.bittorrent.com:6881", "dht.transmissionbt.com:6881", "dht.libtorrent.org:25401"];

/// Longest that the name of one node may take to be resolved.
const RESOLVE_MAX: Duration = Duration::from_secs(1);

/// After which it is tried again to publish where there was no network.
const AGAIN: Duration = Duration::from_secs(15);

/// Relays and addresses of one record.
const PUBLISHED_MAX: usize = 8;

/// Where records lie. Read from `dht`, `dht:HOST:PORT` (a DHT of one's own, entered there) or the URL of a pkarr relay, by https; by
/// http on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicLookup {
    /// In the BitTorrent DHT.
    Dht {
        /// Where it is entered; none: where everybody does.
        bootstrap: Option<String>,
    },
    /// At a server that takes and gives them by HTTP.
    Pkarr(RelayUrl),
}

impl FromStr for PublicLookup {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let refused = || NetError::PublicLookup(text.chars().take(256).collect());
        if text == "dht" {
            return Ok(Self::Dht { bootstrap: None });
        }
        if let Some(at) = text.strip_prefix("dht:") {
            let (host, port) = at.rsplit_once(':').ok_or_else(refused)?;
            let fits = !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0);
            return if fits { Ok(Self::Dht { bootstrap: Some(at.to_owned()) }) } else { Err(refused()) };
        }
        let url: RelayUrl = text.parse().map_err(|_| refused())?;
        match url.scheme() {
            "https" => Ok(Self::Pkarr(url)),
            "http" if is_here(&url) => Ok(Self::Pkarr(url)),
            _ => Err(refused()),
        }
    }
}

impl fmt::Display for PublicLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dht { bootstrap: None } => f.write_str("dht"),
            Self::Dht { bootstrap: Some(at) } => write!(f, "dht:{at}"),
            Self::Pkarr(url) => write!(f, "{url}"),
        }
    }
}

impl PublicLookup {
    /// Whether nobody but this machine reads what lies there: then it may name this machine.
    fn is_here(&self) -> bool {
        match self {
            Self::Dht { bootstrap } => {
                let at = bootstrap.as_ref().and_then(|at| at.parse::<SocketAddr>().ok());
                at.is_some_and(|at| at.ip().is_loopback())
            }
            Self::Pkarr(url) => is_here(url),
        }
    }
}

fn is_here(url: &RelayUrl) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Records, as a node uses them.
#[derive(Debug)]
pub(crate) struct Records {
    endpoint: Endpoint,
    at: PublicLookup,
    publish: bool,
    lookup: OnceCell<Box<dyn AddressLookup>>,
}

/// What an endpoint publishes itself with. Looking up is done by [`Records`], which checks what comes.
#[derive(Debug)]
struct Publishes<T>(T);

impl<T: AddressLookup> AddressLookup for Publishes<T> {
    fn publish(&self, data: &EndpointData) {
        self.0.publish(data);
    }
}

impl Records {
    /// For that endpoint, which is published as well if asked for: as soon as there is a network to do so.
    pub(crate) fn start(endpoint: &Endpoint, at: &PublicLookup, publish: bool) -> Arc<Self> {
        let records = Arc::new(Self { endpoint: endpoint.clone(), at: at.clone(), publish, lookup: OnceCell::new() });
        if publish {
            let publishing = Arc::downgrade(&records);
            tokio::spawn(async move {
                while let Some(records) = publishing.upgrade()
                    && !records.endpoint.is_closed()
                    && records.lookup().await.is_none()
                {
                    sleep(AGAIN).await;
                }
            });
        }
        records
    }

    /// What looks up, made when it is first needed.
    async fn lookup(&self) -> Option<&dyn AddressLookup> {
        let made = self.lookup.get_or_try_init(|| self.make()).await;
        let made = made.inspect_err(|error| tracing::warn!(at = %self.at, %error, "nobody is looked up in public"));
        made.ok().map(AsRef::as_ref)
    }

    async fn make(&self) -> Result<Box<dyn AddressLookup>, String> {
        let (endpoint, filter) = (&self.endpoint, published(self.at.is_here()));
        let lookups = endpoint.address_lookup().map_err(|error| error.to_string())?;
        match &self.at {
            PublicLookup::Dht { bootstrap } => {
                let entries = match bootstrap {
                    Some(bootstrap) => resolve(&[bootstrap]).await,
                    None => resolve(&ENTRIES).await,
                };
                if entries.is_empty() {
                    return Err("no name of a node to enter by is known to DNS".into());
                }
                let mut dht = DhtBuilder::default();
                dht.bootstrap(&entries);
                let mut builder = DhtAddressLookup::builder().dht_builder(dht).addr_filter(filter);
                if self.publish {
                    builder = builder.secret_key(endpoint.secret_key().clone());
                }
                let dht = builder.build().map_err(|error| error.to_string())?;
                if self.publish {
                    lookups.add(Publishes(dht.clone()));
                }
                Ok(Box::new(dht))
            }
            PublicLookup::Pkarr(url) => {
                if self.publish {
                    let publisher = PkarrPublisher::builder(url.clone().into()).addr_filter(filter);
                    let publisher = publisher.into_address_lookup(endpoint).map_err(|error| error.to_string())?;
                    lookups.add(Publishes(publisher));
                }
                let resolver = PkarrResolver::builder(url.clone().into()).into_address_lookup(endpoint);
                Ok(Box::new(resolver.map_err(|error| error.to_string())?))
            }
        }
    }

    /// An address of that peer that is not known yet; none where no record names one in time.
    pub(crate) async fn find(&self, peer: EndpointId, known: &EndpointAddr, relays: &Relays) -> Option<EndpointAddr> {
        let here = self.at.is_here();
        let found = async {
            let mut answers = self.lookup().await?.resolve(peer)?;
            while let Some(answer) = answers.next().await {
                let Ok(addresses) = answer.inspect_err(|error| tracing::debug!(%error, "no record")) else { continue };
                let addresses = usable(&addresses.into_endpoint_addr(), here, relays);
                if addresses.iter().any(|address| !known.addrs.contains(address)) {
                    return Some(EndpointAddr::from_parts(peer, addresses));
                }
            }
            None
        };
        timeout(LOOK_FOR, found).await.ok().flatten()
    }
}

/// Addresses of these nodes; those that have none are left out.
async fn resolve(nodes: &[impl AsRef<str>]) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for node in nodes {
        if let Ok(Ok(addresses)) = timeout(RESOLVE_MAX, lookup_host(node.as_ref())).await {
            found.extend(addresses.filter(SocketAddr::is_ipv4));
        }
    }
    found
}

/// What a record says: relays, and addresses that are the same machine from everywhere.
fn published(here: bool) -> AddrFilter {
    AddrFilter::new(move |addresses| {
        let all = addresses.iter().filter(|address| match address {
            TransportAddr::Ip(at) => is_dialled(at) && (here || is_global(at.ip())),
            TransportAddr::Relay(url) => here || is_public(url),
            _ => false,
        });
        // The relay first: a record has room for some 1,000 bytes.
        let mut all: Vec<_> = all.cloned().collect();
        all.sort_by_key(|address| !matches!(address, TransportAddr::Relay(_)));
        all.truncate(PUBLISHED_MAX);
        Cow::Owned(all)
    })
}

/// A relay that is the same from everywhere, as far as its name tells.
fn is_public(relay: &RelayUrl) -> bool {
    let host = relay.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let address = host.parse::<IpAddr>();
    relay.scheme() == "https" && address.map_or_else(|_| host.contains('.') && !host.ends_with(".local"), is_global)
}

/// What may be dialled of what a record says, which whoever has the key has written.
fn usable(named: &EndpointAddr, here: bool, relays: &Relays) -> Vec<TransportAddr> {
    let addresses = named.ip_addrs().copied().filter(|at| is_dialled(at) && (here || is_global(at.ip())));
    let relay = named.relay_urls().next().map(ToString::to_string);
    let relays = relays.to_ask(relay.as_deref()).into_iter().map(TransportAddr::Relay);
    addresses.take(ADDRESSES_MAX).map(TransportAddr::Ip).chain(relays).collect()
}

/// One machine's, wherever it is dialled from: of IPv6 the global unicast range, of IPv4 what is not set apart (RFC 6890).
fn is_global(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let set_apart = match v4.octets() {
                [0 | 224.., ..] | [192, 0, 0, _] | [100, 64..128, ..] | [198, 18 | 19, ..] => true,
                _ => v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_documentation(),
            };
            !set_apart
        }
        IpAddr::V6(v6) => v6.segments()[0] & 0xe000 == 0x2000 && v6.segments()[..2] != [0x2001, 0xdb8],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_what_they_print() {
        for text in ["dht", "dht:router.example:6881", "https://pkarr.example/pkarr", "http://127.0.0.1:8080/"] {
            assert_eq!(text.parse::<PublicLookup>().unwrap().to_string(), text);
        }
        for text in ["", "dht:", "dht:host", "dht::1", "dht:host:0", "http://pkarr.example/", "ftp://x/", "DHT"] {
            assert!(text.parse::<PublicLookup>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_record_names_nothing_that_is_another_machine_elsewhere() {
        for text in ["8.8.8.8", "2606:4700::1111", "100.128.0.1", "172.32.0.1"] {
            assert!(is_global(text.parse().unwrap()), "{text}");
        }
        let not = ["10.0.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "169.254.1.1", "198.18.0.1", "0.0.0.0"];
        for text in not.iter().chain(&["::1", "fe80::1", "fd00::1", "2001:db8::1", "::ffff:10.0.0.1", "224.0.0.1"]) {
            assert!(!is_global(text.parse().unwrap()), "{text}");
        }
    }
}
