//! What the planner is told: the model, this machine, and who offers what.

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use potluck_chain::plan::{Here, LayerFacts, Link, Machine, ModelFacts, Speed};
use potluck_core::{LayerRange, Offer, PeerId, StageSpec};
use potluck_engine::KvType;
use potluck_model::{facts, slice};
use potluck_net::{Node, PathInfo, PathKind};
use potluck_store::Entry;
use potluck_wire::PeerAddress;
use sysinfo::{Disks, MemoryRefreshKind, RefreshKind, System};
use tokio::task::JoinSet;

use crate::{
    failure::Failure,
    models::{all_layers, cache_bytes, stage_bytes},
    speeds,
    stragglers::{most, rest},
    talk::Wanted,
};

/// Share of the free memory that a model may take: the rest is for what else the user does.
const MEMORY_SHARE: f64 = 0.8;

/// Bytes that are read to estimate a machine that has not answered yet.
const PROBE_BYTES: usize = 64 << 20;

/// Time of a whole chunk's position as a share of a single position's, where nobody measured: a chunk reads the weights once
/// for many positions.
const PREFILL_SHARE: f64 = 0.3;

/// Bytes a second that a direct path is taken to carry: a gigabit network.
const DIRECT_BYTES_PER_SECOND: f64 = 110e6;

/// The same, within one machine.
const LOOPBACK_BYTES_PER_SECOND: f64 = 500e6;

/// Microseconds there and back between two processes of one machine: a small frame over a QUIC stream that is kept open.
const LOOPBACK_RTT_US: f64 = 150.0;

/// The model as the planner sees it.
pub(crate) fn model_facts(entry: &Entry, kv: KvType) -> Result<ModelFacts, Failure> {
    let manifest = &entry.manifest;
    let all = all_layers(manifest)?;
    let cuts = slice::legal_cuts(manifest);
    let bytes = |layers, tail| stage_bytes(manifest, StageSpec { model: entry.id, layers, head: false, tail }, kv);
    let layer = |i| {
        let range = LayerRange::new(i, i + 1).map_err(|error| Failure::new("bad_model", error, ""))?;
        Ok(LayerFacts {
            weight_bytes: facts::layer_bytes(manifest, range),
            cache_bytes_per_position: cache_bytes(manifest, range, kv),
        })
    };
    let layers = (0..all.end()).map(layer).collect::<Result<Vec<_>, Failure>>()?;
    let weights: u64 = layers.iter().map(|layer| layer.weight_bytes).sum();
    let tied = facts::tied(manifest);
    let embedding = manifest.tensor(slice::EMBEDDING_TENSOR).map_or(0, |tensor| tensor.bytes);
    Ok(ModelFacts {
        model: entry.id,
        layers,
        head_bytes: embedding,
        tail_bytes: bytes(all, true).map_or(embedding, |whole| whole.weights.saturating_sub(weights)),
        tied,
        width: manifest.width(),
        cuts: (1..).zip(&cuts).filter(|(_, cut)| cut.is_ok()).map(|(layer, _)| layer).collect(),
    })
}

/// This machine: the memory that it gives, or most of what is free, and how fast it is.
pub(crate) fn own_machine(wanted: &Wanted<'_>) -> Result<Machine, Failure> {
    let known = known_machine(wanted)?;
    Ok(known.unwrap_or_else(|| Machine::own(wanted.memory.unwrap_or_else(free_memory), estimate())))
}

/// The same, where it was measured how fast it is.
pub(crate) fn known_machine(wanted: &Wanted<'_>) -> Result<Option<Machine>, Failure> {
    let speed = speeds::known(wanted.home, wanted.entry.id, wanted.settings)?;
    Ok(speed.map(|speed| Machine::own(wanted.memory.unwrap_or_else(free_memory), speed)))
}

/// Layers of the model whose weights are not on this machine, or not all of them.
pub(crate) fn missing_layers(entry: &Entry) -> BTreeSet<u32> {
    let manifest = &entry.manifest;
    let layers = manifest.layers();
    let last = layers.saturating_sub(1);
    let mut missing = BTreeSet::new();
    for tensor in manifest.tensors.iter().filter(|tensor| !entry.has(tensor)) {
        match tensor.layer {
            Some(layer) => drop(missing.insert(layer)),
            None if tensor.name == slice::EMBEDDING_TENSOR && facts::tied(manifest) => missing.extend([0, last]),
            None if tensor.name == slice::EMBEDDING_TENSOR => drop(missing.insert(0)),
            None if tensor.name.starts_with("output") => drop(missing.insert(last)),
            // Such as the frequencies of positions: any stage may need them.
            None => missing.extend(0..layers),
        }
    }
    missing
}

/// That machine, as what all stages of `--peers N` run on.
pub(crate) fn here(own: &Machine) -> Here {
    let link = Link { rtt_us: LOOPBACK_RTT_US, bytes_per_second: LOOPBACK_BYTES_PER_SECOND };
    Here { memory_bytes: own.memory_bytes, speed: own.speed.unwrap_or_else(estimate), link }
}

/// Bytes of memory that this machine can give: most of what is free.
pub(crate) fn free_memory() -> u64 {
    let system =
        System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()));
    (system.available_memory() as f64 * MEMORY_SHARE) as u64
}

/// Bytes that are free on the disk that holds this folder, where the system says so.
pub(crate) fn free_disk(folder: &Path) -> Option<u64> {
    let disks = Disks::new_with_refreshed_list();
    let disk = disks.iter().filter(|disk| folder.starts_with(disk.mount_point()));
    disk.max_by_key(|disk| disk.mount_point().as_os_str().len()).map(|disk| disk.available_space())
}

/// Decoding reads every weight once a token: so the speed of reading memory is a first guess.
fn estimate() -> Speed {
    let buffer = vec![1u64; PROBE_BYTES / size_of::<u64>()];
    let started = Instant::now();
    black_box(black_box(&buffer).iter().fold(0u64, |sum, &word| sum.wrapping_add(word)));
    let us_per_byte = started.elapsed().as_secs_f64() * 1e6 / PROBE_BYTES as f64;
    Speed { decode_us_per_byte: us_per_byte, prefill_us_per_byte: us_per_byte * PREFILL_SHARE, measured: false }
}

/// The peers behind offers, on the way to be asked for their distance.
#[derive(Debug)]
pub(crate) struct Distances {
    node: Node,
    begun: BTreeSet<PeerId>,
    asked: JoinSet<(PeerId, Result<Link, String>)>,
    reached: BTreeMap<PeerId, Link>,
    unreached: Vec<String>,
}

impl Distances {
    /// Of nobody yet.
    pub(crate) fn from(node: &Node) -> Self {
        let (begun, reached) = (BTreeSet::new(), BTreeMap::new());
        Self { node: node.clone(), begun, asked: JoinSet::new(), reached, unreached: Vec::new() }
    }

    /// Asks those of them that were not asked yet, at once, where their latest offers say.
    pub(crate) fn ask(&mut self, offers: &[Offer]) {
        for to in members(offers, &[]) {
            if self.begun.insert(to.peer) {
                let node = self.node.clone();
                self.asked.spawn(async move {
                    let link = node.connect(&to).await;
                    (to.peer, link.map(|link| figures(link.path())).map_err(|error| error.to_string()))
                });
            }
        }
    }

    fn note(&mut self, (peer, reached): (PeerId, Result<Link, String>)) -> bool {
        match reached {
            Ok(link) => drop(self.reached.insert(peer, link)),
            Err(error) => self.unreached.push(error),
        }
        self.reached.contains_key(&peer)
    }

    /// Waits for those that answer: for who is gone no longer than `moment` after the first of them.
    pub(crate) async fn most(&mut self, moment: Duration) {
        let mut asked = std::mem::take(&mut self.asked);
        most(&mut asked, moment, |answer| self.note(answer)).await;
        self.asked = asked;
    }

    /// Waits for those as well that were not waited for; whether there were any.
    pub(crate) async fn rest(&mut self) -> bool {
        let mut asked = std::mem::take(&mut self.asked);
        rest(&mut asked, |answer| {
            self.note(answer);
        })
        .await
    }

    /// Whether that one was reached.
    pub(crate) fn has_reached(&self, peer: PeerId) -> bool {
        self.reached.contains_key(&peer)
    }

    /// The machines of those that were reached so far.
    pub(crate) fn machines(&self, offers: &[Offer]) -> Vec<Machine> {
        let of = |offer| Some(Machine::of_offer(offer, *self.reached.get(&offer.peer)?));
        offers.iter().filter_map(of).collect()
    }

    /// Why others were not.
    pub(crate) fn unreached(self) -> Vec<String> {
        let late = self.asked.len();
        let late = (late > 0).then(|| format!("{late} more peers did not answer while others did"));
        self.unreached.into_iter().chain(late).collect()
    }
}

fn figures(path: Option<PathInfo>) -> Link {
    let loopback = path.is_some_and(|path| path.kind == PathKind::Loopback);
    Link {
        rtt_us: path.map_or(0.0, |path| path.rtt.as_secs_f64() * 1e6),
        bytes_per_second: if loopback { LOOPBACK_BYTES_PER_SECOND } else { DIRECT_BYTES_PER_SECOND },
    }
}

/// Where the peer of an offer is reached.
pub(crate) fn address(offer: &Offer) -> PeerAddress {
    let mut addresses = offer.addresses.clone();
    // Of a peer on this machine, loopback is the shortest way.
    addresses.sort_by_key(|text| !text.parse::<SocketAddr>().is_ok_and(|at| at.ip().is_loopback()));
    PeerAddress { peer: offer.peer, addresses, relay: offer.relay.clone() }
}

/// The latest offer of each peer: one that has moved, or serves something else, is still offering as it did until that offer expires.
pub(crate) fn latest<'a>(offers: impl IntoIterator<Item = &'a Offer>) -> BTreeMap<PeerId, &'a Offer> {
    let mut latest = BTreeMap::<PeerId, &Offer>::new();
    for offer in offers {
        let known = latest.entry(offer.peer).or_insert(offer);
        if offer.sequence > known.sequence {
            *known = offer;
        }
    }
    latest
}

/// Every member that offers something, where the latest of its offers says; then the contacts that offer nothing.
pub(crate) fn members<'a>(offers: impl IntoIterator<Item = &'a Offer>, contacts: &[PeerAddress]) -> Vec<PeerAddress> {
    let latest = latest(offers);
    let silent = contacts.iter().filter(|contact| !latest.contains_key(&contact.peer)).cloned();
    latest.values().copied().map(address).chain(silent).collect()
}

#[cfg(test)]
mod tests {
    use potluck_core::{ModelId, SecretKey, StageShape, StageSpeed};

    use super::*;

    fn member(n: u8, port: u16) -> PeerAddress {
        let peer = SecretKey::from_bytes(&[n; 32]).peer_id();
        PeerAddress { peer, addresses: vec![format!("10.0.0.{n}:{port}")], relay: None }
    }

    fn offer(start: u32, sequence: u64, from: PeerAddress) -> Offer {
        let layers = LayerRange::new(start, start + 1).unwrap();
        let spec = StageSpec { model: ModelId::from_bytes([7; 32]), layers, head: false, tail: false };
        let shape = StageShape {
            spec,
            width: 1,
            vocabulary: 1,
            caches: 1,
            context: 1,
            cache_bytes_per_position: 1,
            weight_bytes: 1,
            exact: true,
        };
        Offer {
            peer: from.peer,
            sequence,
            expires: 0,
            addresses: from.addresses,
            relay: from.relay,
            shape,
            speed: StageSpeed { decode_us: 1, prefill_position_us: 1 },
            free_caches: 1,
            free_bytes: 0,
        }
    }

    #[test]
    fn a_member_that_has_moved_is_where_its_latest_offer_says() {
        let (old, new, other) = (member(1, 1), member(1, 2), member(2, 1));
        // Whichever of its stages comes first.
        for (first, then) in [((2, &new), (1, &old)), ((1, &old), (2, &new))] {
            let offers = [offer(0, first.0, first.1.clone()), offer(5, then.0, then.1.clone())];
            let found = members(&offers, &[old.clone(), other.clone()]);
            assert_eq!(found, [new.clone(), other.clone()], "once, and then who offers nothing");
        }
    }
}
