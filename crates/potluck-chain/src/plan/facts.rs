//! What the planner is told: the model, the machines, the wish.

use std::collections::BTreeSet;

use potluck_core::{LayerRange, ModelId, Offer, PeerId, StageSpec, StageSpeed};
use potluck_wire::Codec;
use serde::{Deserialize, Serialize};

/// Machines that are looked at. Further ones are left out with `TooMany`.
pub const MACHINES_MAX: usize = 128;

/// A model as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// Which.
    pub model: ModelId,
    /// Its layers, in order.
    pub layers: Vec<LayerFacts>,
    /// Bytes that the head of the chain holds beside its layers: the embedding table.
    pub head_bytes: u64,
    /// Bytes that the tail holds beside its layers: the output matrix.
    pub tail_bytes: u64,
    /// True if the output matrix is the embedding table: a stage that is both ends holds it once.
    pub tied: bool,
    /// Values in one hidden state.
    pub width: u32,
    /// Where it may be cut: `c` is between layers `c - 1` and `c`.
    pub cuts: Vec<u32>,
}

/// One layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerFacts {
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// Bytes of cache that one position takes in it.
    pub cache_bytes_per_position: u64,
}

/// Whose machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// The client's own.
    Own,
    /// A peer's.
    Peer(#[serde(with = "peer_text")] PeerId),
    /// A peer that the command would start on the client's machine, counted from 1: it has no id yet.
    Started(u16),
}

mod peer_text {
    use potluck_core::PeerId;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(peer: &PeerId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(peer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PeerId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// How fast a machine is, for stages that it has not loaded yet. What it reads of the weights decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Microseconds for one position of one session, for each byte of weights.
    pub decode_us_per_byte: f64,
    /// Microseconds for one position of a full chunk, for each byte of weights.
    pub prefill_us_per_byte: f64,
    /// True if it was measured with the model that is planned for; false if with another, or if it is a guess.
    pub measured: bool,
}

/// How far away a machine is from the client. Ignored for the own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Microseconds there and back.
    pub rtt_us: f64,
    /// Bytes a second, each way.
    pub bytes_per_second: f64,
}

/// A stage that a machine has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Which part of which model.
    pub spec: StageSpec,
    /// As measured there.
    pub speed: StageSpeed,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// Bytes of cache that one position takes.
    pub cache_bytes_per_position: u64,
    /// Positions that a session may grow to.
    pub context: u32,
    /// Sessions that it has room for.
    pub free_caches: u16,
}

/// A machine that may take a part.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// Whose.
    pub who: Who,
    /// Bytes for weights and caches of what it would load for this model.
    pub memory_bytes: u64,
    /// How fast what it would load is; none: nobody measured.
    pub speed: Option<Speed>,
    /// How far away.
    pub link: Link,
    /// What it has loaded already.
    pub loaded: Option<Loaded>,
    /// True where the user trusts it with what the first and the last layers see. The own machine always is.
    pub trusted: bool,
    /// Layers of the model whose weights are not there, and cannot be had in time: it takes no part with them, unless
    /// the wish is that machines may load. The embedding counts as the first layer's, the output matrix as the last one's.
    pub missing: BTreeSet<u32>,
}

/// What matters most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preference {
    /// The client's own machine is the first and the last stage: no peer is sent a token, or logits.
    Private,
    /// Tokens a second.
    Latency,
}

/// What is to be planned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wish {
    /// Positions that a session may grow to.
    pub positions: u32,
    /// Positions of a prefill step.
    pub chunk: u16,
    /// How hidden states travel.
    pub codec: Codec,
    /// None: private where the own machine can hold both ends, else latency.
    pub preference: Option<Preference>,
    /// True for a preview: machines may load what they have not loaded. The own machine always may.
    pub may_load: bool,
    /// At least so many layers at each end of the model stay on the own machine. 0: none need to. More than 0 is
    /// [`Preference::Private`], whatever `preference` says.
    pub hide_layers: u32,
    /// So many layers at each end are for machines alone that are trusted. 0: any machine may hold any.
    pub trusted_layers: u32,
    /// Sessions that the own machine's stages keep caches for: as many as are to be open at once.
    pub own_sessions: u16,
}

impl Wish {
    /// True where it keeps machines from layers that they could run.
    pub(super) fn is_strict(&self) -> bool {
        self.hide_layers > 0 || self.trusted_layers > 0
    }

    /// The same without what keeps machines from layers.
    pub(super) fn open(&self) -> Self {
        Self { hide_layers: 0, trusted_layers: 0, ..*self }
    }

    /// True where so many layers at each end of a model of `layers` touch this range.
    pub fn touches_ends(range: LayerRange, ends: u32, layers: u32) -> bool {
        ends > 0 && (range.start() < ends || range.end() > layers.saturating_sub(ends))
    }
}

impl ModelFacts {
    /// Bytes of weights of a stage. A single stage of a tied model holds the table once.
    pub fn weight_bytes(&self, range: LayerRange) -> u64 {
        let (head, tail) = (range.start() == 0, range.end() as usize == self.layers.len());
        let table = if head && !(tail && self.tied) { self.head_bytes } else { 0 };
        self.read_bytes(range).saturating_add(table)
    }

    /// Bytes of weights that each position reads: all but the embedding table, of which it reads a row.
    pub fn read_bytes(&self, range: LayerRange) -> u64 {
        let tail = if range.end() as usize == self.layers.len() { self.tail_bytes } else { 0 };
        self.sum(range, |layer| layer.weight_bytes).saturating_add(tail)
    }

    /// Bytes of a session's cache in a stage.
    pub fn cache_bytes(&self, range: LayerRange, positions: u32) -> u64 {
        self.sum(range, |layer| layer.cache_bytes_per_position).saturating_mul(positions.into())
    }

    fn sum(&self, range: LayerRange, of: impl Fn(&LayerFacts) -> u64) -> u64 {
        let layers = self.layers.get(range.start() as usize..range.end() as usize).unwrap_or_default();
        layers.iter().map(of).fold(0, u64::saturating_add)
    }
}

impl Machine {
    /// A peer, by what it offers: its stage, and how much more it would lend, as fast as that stage.
    pub fn of_offer(offer: &Offer, link: Link) -> Self {
        let shape = &offer.shape;
        let per_byte = |us: u64| us as f64 / shape.weight_bytes.max(1) as f64;
        let measured = offer.speed.decode_us > 0 && offer.speed.prefill_position_us > 0;
        let speed = Speed {
            decode_us_per_byte: per_byte(offer.speed.decode_us),
            prefill_us_per_byte: per_byte(offer.speed.prefill_position_us),
            measured,
        };
        let loaded = Loaded {
            spec: shape.spec,
            speed: offer.speed,
            weight_bytes: shape.weight_bytes,
            cache_bytes_per_position: shape.cache_bytes_per_position,
            context: shape.context,
            free_caches: offer.free_caches,
        };
        Self {
            who: Who::Peer(offer.peer),
            memory_bytes: offer.free_bytes,
            speed: measured.then_some(speed),
            link,
            loaded: Some(loaded),
            trusted: false,
            missing: BTreeSet::new(),
        }
    }

    /// The client's own machine.
    pub fn own(memory_bytes: u64, speed: Speed) -> Self {
        let link = Link { rtt_us: 0.0, bytes_per_second: f64::INFINITY };
        let missing = BTreeSet::new();
        Self { who: Who::Own, memory_bytes, speed: Some(speed), link, loaded: None, trusted: true, missing }
    }
}
