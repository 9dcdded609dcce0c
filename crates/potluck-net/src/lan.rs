//! Peers of one swarm find each other on a local network: whoever has moved is looked up there by its key, with mDNS.
//!
//! A peer that announces itself answers, to all who ask for its swarm, with its key and its addresses, and nothing else. Who
//! dials asks only while the addresses that it was told do not answer, and is not found itself. What comes back may come from
//! anybody on that network: it is no more than a place to dial, and the peer is the one whose key the handshake proves.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use iroh::{
    Endpoint, EndpointAddr, EndpointId, TransportAddr,
    address_lookup::{AddrFilter, AddressLookup, EndpointData},
};
use iroh_mdns_address_lookup::{MdnsAddressLookup, MdnsAddressLookupBuilder};
use n0_future::StreamExt as _;
use potluck_grant::SwarmId;
use potluck_wire::ADDRESSES_MAX;
use tokio::time::timeout;

use crate::node::is_dialled;

/// Head start of the addresses that were told: one that answers within it is not looked up.
pub(crate) const HEAD_START: Duration = Duration::from_millis(400);

/// How long a peer is looked for. With the head start it is less than a dial takes to give up on an address that is dead, so
/// that looking in vain makes no dial longer.
const LOOK_FOR: Duration = Duration::from_millis(2_500);

/// Between two questions, while a peer is looked for.
const ASK_EVERY: Duration = Duration::from_millis(300);

/// Between the questions of peers that stay. They answer at once, whoever asks.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(10);

/// Characters of the hash that names a swarm: 48 bits, in a service's name, which has 15 characters at most.
const SERVICE_HASH_CHARS: usize = 12;

/// What a node does with the local network that it is on. A node on loopback does nothing there, whatever it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lan {
    /// Nothing: it dials the addresses that it is told, and no others.
    Off,
    /// It asks where a peer is, while the addresses that it was told do not answer.
    Ask,
    /// The same, and it answers who asks for its swarm: for those that others dial.
    Announce,
}

/// Looks peers up by their keys.
#[derive(Debug)]
pub(crate) struct Finder {
    id: EndpointId,
    service: String,
    /// What announces this node, as long as its endpoint is open.
    announcing: Weak<MdnsAddressLookup>,
    /// What asks for the dials that are under way, as long as there are any.
    asking: Mutex<Weak<MdnsAddressLookup>>,
}

/// What an endpoint publishes itself with. Looking up is the [`Finder`]'s, which checks what comes.
#[derive(Debug)]
struct Announced(Arc<MdnsAddressLookup>);

impl AddressLookup for Announced {
    fn publish(&self, data: &EndpointData) {
        self.0.publish(data);
    }
}

impl Finder {
    /// For that endpoint, in that swarm. Where the system lets nobody share mDNS' port, nobody finds this node: it is told to
    /// the log, and everything else works.
    pub(crate) fn start(endpoint: &Endpoint, swarm: SwarmId, announce: bool) -> Self {
        let (id, service) = (endpoint.id(), service(swarm));
        let mut finder = Self { id, service, announcing: Weak::new(), asking: Mutex::default() };
        if announce {
            let builder = finder.builder(ANNOUNCE_EVERY).addr_filter(published());
            if let (Some(mdns), Ok(lookups)) = (finder.build(builder), endpoint.address_lookup()) {
                finder.announcing = Arc::downgrade(&mdns);
                lookups.add(Announced(mdns));
            }
        }
        finder
    }

    /// An address of that peer that is not known yet; none where nobody names one in time.
    pub(crate) async fn find(&self, peer: EndpointId, known: &EndpointAddr) -> Option<EndpointAddr> {
        // Held until the peer is found: with the last dial the questions end.
        let mdns = self.mdns()?;
        let mut answers = mdns.resolve(peer)?;
        let found = async {
            loop {
                let addresses = answers.next().await?.ok()?.into_endpoint_addr();
                let usable = usable(addresses.ip_addrs());
                if usable.iter().any(|address| !known.addrs.contains(address)) {
                    return Some(EndpointAddr::from_parts(peer, usable));
                }
            }
        };
        timeout(LOOK_FOR, found).await.ok().flatten()
    }

    fn mdns(&self) -> Option<Arc<MdnsAddressLookup>> {
        if let Some(announcing) = self.announcing.upgrade() {
            return Some(announcing);
        }
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asking) = asking.upgrade() {
            return Some(asking);
        }
        let mdns = self.build(self.builder(ASK_EVERY).advertise(false))?;
        *asking = Arc::downgrade(&mdns);
        Some(mdns)
    }

    fn builder(&self, every: Duration) -> MdnsAddressLookupBuilder {
        MdnsAddressLookup::builder().service_name(&*self.service).discovery_cadence(every)
    }

    fn build(&self, builder: MdnsAddressLookupBuilder) -> Option<Arc<MdnsAddressLookup>> {
        let built = builder.build(self.id);
        built.inspect_err(|error| tracing::warn!(%error, "no mDNS here")).ok().map(Arc::new)
    }
}

/// The service that the peers of a swarm announce: it tells swarms apart, and names none to whoever does not know it already.
fn service(swarm: SwarmId) -> String {
    let mut hash = blake3::Hasher::new_derive_key("potluck 2026-11 name of a swarm in mDNS");
    let hash = hash.update(swarm.to_string().as_bytes()).finalize().to_hex();
    format!("ptl{}", &hash[..SERVICE_HASH_CHARS])
}

/// Addresses of this machine, and no relay: whoever hears it is on the same network. As many as a packet has room for.
fn published() -> AddrFilter {
    AddrFilter::new(|addresses| {
        let own = addresses.iter().filter(|address| matches!(address, TransportAddr::Ip(at) if is_dialled(at)));
        Cow::Owned(own.take(ADDRESSES_MAX).cloned().collect())
    })
}

/// What may be dialled of the addresses that a stranger named.
fn usable<'a>(addresses: impl Iterator<Item = &'a SocketAddr>) -> Vec<TransportAddr> {
    let usable = addresses.copied().filter(|at| is_dialled(at) && !at.ip().to_canonical().is_loopback());
    usable.take(ADDRESSES_MAX).map(TransportAddr::Ip).collect()
}

#[cfg(test)]
mod tests {
    use potluck_grant::Root;

    use super::*;

    #[test]
    fn a_swarm_is_told_from_others_and_not_named() {
        let [one, other] = [7, 8].map(|n| Root::from_bytes(&[n; 32]).public());
        let name = service(one);
        assert_eq!(name, service(one));
        assert_ne!(name, service(other));
        assert!(name.len() <= 15 && !one.to_string().contains(&name[3..]), "{name}");
    }

    #[test]
    fn what_strangers_name_is_dialled_only_where_it_can_be_a_peer() {
        let named =
            ["127.0.0.1:7", "[::1]:7", "0.0.0.0:7", "224.0.0.1:7", "255.255.255.255:7", "10.0.0.1:0", "10.0.0.1:7"];
        let named: Vec<SocketAddr> = named.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(usable(named.iter()), [TransportAddr::Ip(named[6])]);
        let many: Vec<_> = (1..=100).map(|port| SocketAddr::from(([10, 0, 0, 1], port))).collect();
        assert_eq!(usable(many.iter()).len(), ADDRESSES_MAX);
    }
}
