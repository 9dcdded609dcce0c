//! What a plan is, before anything is loaded: `potluck model plan --json`.

use std::collections::BTreeSet;

use potluck_core::LayerRange;
use serde::{Serialize, Serializer};

use super::{
    alone::{self, Alone},
    cost::Costs,
    facts::{Machine, Preference, Who, Wish},
    left_out::{self, LeftOut},
    search::{Found, Route},
    stage::Piece,
};

/// A plan, and what to expect of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preview {
    /// The model's id.
    pub model: String,
    /// The stages, in order, over all layers.
    pub stages: Vec<PlannedStage>,
    /// Bytes of weights over all stages.
    pub weight_bytes: u64,
    /// Bytes of one session's cache over all stages.
    pub cache_bytes: u64,
    /// Positions that the session may grow to.
    pub positions: u32,
    /// Whose wish decided.
    pub preference: Preference,
    /// Predicted, for a long prompt.
    pub prefill_tokens_per_s: f64,
    /// Predicted: milliseconds of one full chunk down the whole route, with no other behind it.
    pub chunk_ms: f64,
    /// Predicted.
    pub decode_tokens_per_s: f64,
    /// Predicted, on all hops in decode.
    pub bytes_per_position: f64,
    /// The user's own machine by itself, where it is known how fast that is.
    pub alone: Option<Alone>,
    /// Whether pooling pays, and why.
    pub verdict: Verdict,
    /// Other numbers of stages that were looked at.
    pub alternatives: Vec<Alternative>,
    /// The machines without a part.
    pub left_out: Vec<LeftOut>,
}

/// A stage of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedStage {
    /// Where.
    pub who: Who,
    /// Its layers, as `[first, one past the last]`.
    #[serde(serialize_with = "as_pair")]
    pub layers: LayerRange,
    /// Looks tokens up.
    pub head: bool,
    /// Makes logits.
    pub tail: bool,
    /// What whoever runs it can read of the conversation.
    pub sees: Sees,
    /// True if it runs already; false if it would have to be loaded.
    pub loaded: bool,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// Bytes of one session's cache in it.
    pub cache_bytes: u64,
    /// Bytes of memory that it takes: both together.
    pub memory_bytes: u64,
    /// Milliseconds that one token takes in it.
    pub decode_ms: f64,
    /// Milliseconds that one token takes to reach it.
    pub hop_ms: f64,
    /// Milliseconds from the client to it and back.
    pub rtt_ms: f64,
}

/// What whoever runs a stage is sent, and so can read, of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Sees {
    /// It is the client's own machine.
    Own,
    /// Hidden states: no token, but published attacks read much of a prompt back from them.
    HiddenStates,
    /// The tokens of the prompt and of the answer: the head of the chain.
    Prompt,
    /// The logits of the answer, and hidden states of all of it: the tail of the chain.
    Answer,
    /// Both ends.
    Everything,
}

impl Sees {
    /// Of a stage on the client's machine, or on another, that is the head or the tail or neither.
    pub const fn of(own: bool, head: bool, tail: bool) -> Self {
        match (own, head, tail) {
            (true, ..) => Self::Own,
            (_, true, true) => Self::Everything,
            (_, true, false) => Self::Prompt,
            (_, false, true) => Self::Answer,
            (_, false, false) => Self::HiddenStates,
        }
    }

    /// In words, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Own => "yours",
            Self::HiddenStates => "sees hidden states",
            Self::Prompt => "sees the text",
            Self::Answer => "sees the answer",
            Self::Everything => "sees everything",
        }
    }
}

fn as_pair<S: Serializer>(range: &LayerRange, serializer: S) -> Result<S::Ok, S::Error> {
    [range.start(), range.end()].serialize(serializer)
}

/// Whether pooling pays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// In a word.
    pub kind: VerdictKind,
    /// In words and numbers, for people.
    pub reason: String,
}

/// Whether pooling pays, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum VerdictKind {
    /// One machine does it all.
    Single,
    /// Several machines are needed.
    Pooled,
}

/// A plan with another number of stages.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Alternative {
    /// How many stages.
    pub stages: usize,
    /// Predicted.
    pub decode_tokens_per_s: f64,
    /// True if no peer would see tokens or logits.
    pub private: bool,
}

pub(super) fn of(
    costs: &Costs<'_>,
    machines: &[Machine],
    usable: &BTreeSet<usize>,
    preference: Preference,
    route: &Route,
    found: &Found,
    open: &Found,
) -> Preview {
    let pieces = &route.pieces;
    let sum = |of: fn(&Piece) -> u64| pieces.iter().map(of).fold(0, u64::saturating_add);
    let decode_us = costs.decode_us(pieces);
    let alternatives = alternatives(pieces.len(), preference, found, open);
    let alone = alone::of_own(costs.model, machines, costs.wish);
    Preview {
        model: costs.model.model.to_string(),
        stages: (0..pieces.len()).map(|i| planned(costs, pieces, i)).collect(),
        weight_bytes: sum(|piece| piece.weight_bytes),
        cache_bytes: sum(|piece| piece.cache_bytes),
        positions: costs.wish.positions,
        preference,
        prefill_tokens_per_s: f64::from(costs.wish.chunk) * 1e6 / costs.chunk_us(pieces).max(1.0),
        decode_tokens_per_s: per_second(decode_us),
        bytes_per_position: costs.bytes_per_position(pieces),
        chunk_ms: costs.chunk_alone_us(pieces) / 1e3,
        verdict: verdict(costs, pieces, decode_us, &alternatives, alone),
        alone,
        left_out: left_out::reasons(costs, machines, usable, pieces, decode_us, found, open),
        alternatives,
    }
}

pub(super) fn per_second(us: f64) -> f64 {
    1e6 / us.max(1.0)
}

pub(super) fn planned(costs: &Costs<'_>, pieces: &[Piece], i: usize) -> PlannedStage {
    let piece = &pieces[i];
    let machine = &costs.machines[piece.machine];
    let before = i.checked_sub(1).map(|i| &pieces[i]);
    let (head, tail) = (piece.layers.start() == 0, piece.layers.end() as usize == costs.model.layers.len());
    PlannedStage {
        who: machine.who,
        layers: piece.layers,
        head,
        tail,
        sees: Sees::of(machine.who == Who::Own, head, tail),
        loaded: piece.loaded,
        weight_bytes: piece.weight_bytes,
        cache_bytes: piece.cache_bytes,
        memory_bytes: piece.bytes(),
        decode_ms: piece.decode_us / 1e3,
        hop_ms: costs.hop_us(before, piece) / 1e3,
        rtt_ms: if machine.who == Who::Own { 0.0 } else { machine.link.rtt_us / 1e3 },
    }
}

fn alternatives(chosen: usize, preference: Preference, found: &Found, open: &Found) -> Vec<Alternative> {
    let list = |found: &Found, private: bool| -> Vec<Alternative> {
        let of = |(&stages, route): (&usize, &Route)| Alternative {
            stages,
            decode_tokens_per_s: per_second(route.decode_us),
            private,
        };
        found.routes.iter().map(of).collect()
    };
    let private = preference == Preference::Private;
    let mut all: Vec<Alternative> = list(found, private).into_iter().filter(|other| other.stages != chosen).collect();
    all.extend(list(open, false));
    all
}

fn verdict(
    costs: &Costs<'_>,
    pieces: &[Piece],
    decode_us: f64,
    alternatives: &[Alternative],
    alone: Option<Alone>,
) -> Verdict {
    let rate = per_second(decode_us);
    let size = |pieces: &[Piece]| gigabytes(pieces.iter().map(Piece::bytes).sum());
    let faster = alternatives.iter().filter(|other| !other.private && other.decode_tokens_per_s > rate * 1.02);
    let best = faster.max_by(|a, b| a.decode_tokens_per_s.total_cmp(&b.decode_tokens_per_s));
    if let [only] = pieces {
        let place = match costs.machines[only.machine].who {
            Who::Own => "this machine".to_owned(),
            Who::Peer(peer) => format!("peer {}", peer.short()),
            Who::Started(number) => format!("peer {number}"),
        };
        let pooled = alternatives.iter().filter(|other| other.stages > 1);
        let pooled = pooled.max_by(|a, b| a.decode_tokens_per_s.total_cmp(&b.decode_tokens_per_s));
        let compared = pooled.map_or(String::new(), |other| {
            format!("; {} stages are predicted at {:.1}", other.stages, other.decode_tokens_per_s)
        });
        let reason = format!("{} fit {place}, so it runs there: {rate:.1} tokens/s predicted{compared}", size(pieces));
        return Verdict { kind: VerdictKind::Single, reason };
    }
    let largest = costs.machines.iter().map(|machine| machine.memory_bytes).max().unwrap_or(0);
    let (layers, Wish { hide_layers, trusted_layers, .. }) = (costs.model.layers.len() as u32, *costs.wish);
    let trusted = trusted_layers.min(layers);
    let need = match alternatives.iter().any(|other| other.stages == 1) {
        _ if hide_layers > 0 => {
            format!("this machine keeps the first and the last {} layers, as asked for", hide_layers.min(layers))
        }
        _ if trusted == layers => "only trusted machines may hold a layer".to_owned(),
        _ if trusted > 0 => format!("only trusted machines may hold the first and the last {trusted} layers"),
        true => "this machine keeps both ends, so that no peer is sent text".to_owned(),
        false if !costs.wish.may_load => "no peer serves all of it".to_owned(),
        false => format!("no machine has room for all of it (the largest gives {})", gigabytes(largest)),
    };
    let compared = best.map_or(String::new(), |other| match other.stages {
        1 => format!("; one machine alone is predicted at {:.1}, but would see the text", other.decode_tokens_per_s),
        n => format!("; {n} stages are predicted at {:.1}", other.decode_tokens_per_s),
    });
    let hindered = alone.filter(|alone| alone.decode_tokens_per_s > rate).and_then(|alone| {
        let rate = alone.decode_tokens_per_s;
        Some(format!("; this machine alone would make {rate:.1}, but {}", alone.hindrance?))
    });
    let hindered = hindered.unwrap_or_default();
    let reason = format!(
        "{} over {} stages, for {need}: {rate:.1} tokens/s predicted{compared}{hindered}",
        size(pieces),
        pieces.len()
    );
    Verdict { kind: VerdictKind::Pooled, reason }
}

pub(super) fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}
