//! Where a model should run: on one machine if it fits, otherwise over the fewest that it fits, and how fast.
//!
//! [`plan`] looks at the own machine and at what peers offer, predicts the time of a token for each way, and says what
//! it chose and why, before anything is loaded:
//! ```
//! use potluck_chain::plan::*;
//! # use potluck_core::ModelId;
//! # use potluck_wire::Codec;
//! let layer = LayerFacts { weight_bytes: 100 << 20, cache_bytes_per_position: 1 << 10 };
//! let model = ModelFacts {
//!     model: ModelId::from_bytes([7; 32]),
//!     layers: vec![layer; 8],
//!     head_bytes: 50 << 20,
//!     tail_bytes: 50 << 20,
//!     tied: true,
//!     width: 2048,
//!     cuts: (1..8).collect(),
//! };
//! let own = Machine::own(2 << 30, Speed { decode_us_per_byte: 1e-4, prefill_us_per_byte: 1e-5, measured: false });
//! let wish = Wish {
//!     positions: 4096,
//!     chunk: 512,
//!     codec: Codec::F16,
//!     preference: None,
//!     may_load: true,
//!     hide_layers: 0,
//!     trusted_layers: 0,
//!     own_sessions: 1,
//! };
//! let preview = plan(&model, &[own], &wish)?;
//! assert_eq!(preview.stages.len(), 1);
//! println!("{}: {:.0} tokens/s", preview.verdict.reason, preview.decode_tokens_per_s);
//! # Ok::<(), PlanError>(())
//! ```
//! Decode: a token passes each stage and each hop once, so their times add up. Prefill: chunks fill the pipeline, so the
//! slowest stage or hop sets the pace. [`split_evenly`] is for machines that are known to be equal. No IO, no clock.

mod alone;
mod cost;
mod facts;
mod left_out;
mod lend;
mod mend;
mod placed;
mod preview;
mod search;
mod split;
mod stage;

#[cfg(test)]
mod pays;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

pub use alone::{Alone, Hindrance, alone};
pub use facts::{LayerFacts, Link, Loaded, MACHINES_MAX, Machine, ModelFacts, Preference, Speed, Who, Wish};
pub use left_out::{LeftOut, Reason};
pub use lend::{lend, lent_bytes};
pub use mend::{Lender, Mender, Turn, menders, missing};
pub use placed::{Here, placed};
pub use preview::{Alternative, PlannedStage, Preview, Sees, Verdict, VerdictKind};
pub use split::{SplitError, split_evenly};

use cost::Costs;
use preview::gigabytes;
use search::{Found, Route, search};

/// By how much more stages must be faster before `Preference::Latency` takes them: predictions err.
const FURTHER_STAGE_GAIN: f64 = 1.1;

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The caller: a model without layers.
    #[error("the model has no layers")]
    NoLayers,
    /// The user. Hint: lend more machines, or a shorter `--context`.
    #[error(
        "no route covers the model: it needs {}, the machines that are there ({machines}) offer {}, and nothing \
         continues after layer {reached}",
        gigabytes(*.needed_bytes),
        gigabytes(*.offered_bytes)
    )]
    NoRoute {
        /// Bytes of all weights and one session's cache.
        needed_bytes: u64,
        /// Bytes that all machines together would give.
        offered_bytes: u64,
        /// How many machines.
        machines: usize,
        /// Layers `0..reached` can be covered.
        reached: u32,
    },
    /// The user. Hint: `--prefer latency`, if peers may see the text.
    #[error(
        "this machine cannot hold both ends of the model: they need {}, it has {}; or no peers fill the middle",
        gigabytes(*.needed_bytes),
        gigabytes(*.memory_bytes)
    )]
    NotPrivate {
        /// Bytes of the smallest first and last stage.
        needed_bytes: u64,
        /// Bytes that it has.
        memory_bytes: u64,
    },
    /// The user. Hint: what is missing; or a smaller `--hide-layers`.
    #[error(
        "this machine cannot keep the first and the last {layers} layers to itself: {}",
        unhidden(*.needed_bytes, *.memory_bytes, *.missing)
    )]
    NotHidden {
        /// How many at each end.
        layers: u32,
        /// Bytes of the smallest first and last stage that hold them.
        needed_bytes: u64,
        /// Bytes that it gives.
        memory_bytes: u64,
        /// Of those layers, how many have weights that are not here.
        missing: u32,
    },
    /// The user. Hint: `potluck swarm trust KEY`.
    #[error(
        "no route covers the model where only trusted machines hold its first and last {layers} layers: {trusted} of the \
         {machines} peers that are there are trusted, and nothing continues after layer {reached}"
    )]
    NotTrusted {
        /// How many at each end.
        layers: u32,
        /// Peers that are there.
        machines: usize,
        /// Those of them that are trusted.
        trusted: usize,
        /// Layers `0..reached` can be covered.
        reached: u32,
    },
}

fn unhidden(needed: u64, memory: u64, missing: u32) -> String {
    if missing > 0 {
        return format!("the weights of {missing} of them are not here");
    }
    if needed > memory {
        return format!("they need {}, it gives {}", gigabytes(needed), gigabytes(memory));
    }
    "no peers fill the middle".to_owned()
}

/// Plans where a model runs.
///
/// One machine if the model fits one; otherwise the fewest stages that fit, and of those the fastest. With
/// [`Preference::Latency`] more stages are taken where they are predicted a tenth faster. With `Private` the own machine
/// is both ends, with as many layers of each as the wish says. Where pooling does not pay, the own machine alone is the plan: none
/// has other machines in it that is predicted slower, unless the own machine cannot or may not hold the whole model.
/// # Errors
/// See [`PlanError`].
pub fn plan(model: &ModelFacts, machines: &[Machine], wish: &Wish) -> Result<Preview, PlanError> {
    if model.layers.is_empty() {
        return Err(PlanError::NoLayers);
    }
    let considered = &machines[..machines.len().min(MACHINES_MAX)];
    let costs = Costs { model, machines: considered, wish };
    let by_start = stage::by_start(model, wish, considered);
    let looked_for = |preference| (preference, search(&costs, &by_start, preference));
    let hiding = (wish.hide_layers > 0).then_some(Preference::Private);
    let (preference, found) = match hiding.or(wish.preference) {
        Some(preference) => looked_for(preference),
        None => Some(looked_for(Preference::Private))
            .filter(|(_, found)| !found.routes.is_empty())
            .unwrap_or_else(|| looked_for(Preference::Latency)),
    };
    let Some(route) = choose(&found, preference) else { return Err(no_route(&costs, &found, preference)) };
    // What the wish costs is seen beside what there would be without it.
    let open = match (wish.is_strict(), preference) {
        (true, _) => search(&costs, &stage::by_start(model, &wish.open(), considered), Preference::Latency),
        (false, Preference::Private) => search(&costs, &by_start, Preference::Latency),
        (false, Preference::Latency) => Found::default(),
    };
    let usable: BTreeSet<usize> = by_start.values().flatten().map(|piece| piece.machine).collect();
    Ok(preview::of(&costs, machines, &usable, preference, route, &found, &open))
}

fn choose(found: &Found, preference: Preference) -> Option<&Route> {
    let (&stages, mut chosen) = found.routes.iter().next()?;
    if stages == 1 || preference == Preference::Private {
        return Some(chosen);
    }
    for route in found.routes.values().skip(1) {
        if chosen.decode_us > route.decode_us * FURTHER_STAGE_GAIN {
            chosen = route;
        }
    }
    Some(chosen)
}

fn no_route(costs: &Costs<'_>, found: &Found, preference: Preference) -> PlanError {
    let Costs { model, machines, wish } = costs;
    let range = |start, end| potluck_core::LayerRange::new(start, end);
    let bytes = |start, end| {
        range(start, end)
            .map_or(u64::MAX, |r| model.weight_bytes(r).saturating_add(model.cache_bytes(r, wish.positions)))
    };
    let bounds = stage::boundaries(model);
    let layers = model.layers.len() as u32;
    let peers = machines.iter().filter(|machine| machine.who != Who::Own);
    if wish.trusted_layers > 0 && (wish.hide_layers == 0 || own_ends_fit(costs)) {
        return PlanError::NotTrusted {
            layers: wish.trusted_layers.min(layers),
            machines: peers.clone().count(),
            trusted: peers.filter(|machine| machine.trusted).count(),
            reached: found.reached,
        };
    }
    if wish.hide_layers > 0 {
        return not_hidden(costs);
    }
    if preference == Preference::Private {
        let own = machines.iter().find(|machine| machine.who == Who::Own);
        let (first, last) = (bounds[1], bounds[bounds.len() - 2]);
        let needed_bytes =
            if first == layers { bytes(0, layers) } else { bytes(0, first).saturating_add(bytes(last, layers)) };
        return PlanError::NotPrivate { needed_bytes, memory_bytes: own.map_or(0, |own| own.memory_bytes) };
    }
    let offered = machines.iter().map(|machine| match (&machine.loaded, wish.may_load || machine.who == Who::Own) {
        (Some(loaded), false) => loaded.weight_bytes,
        _ => machine.memory_bytes,
    });
    PlanError::NoRoute {
        needed_bytes: bytes(0, layers),
        offered_bytes: offered.fold(0, u64::saturating_add),
        machines: machines.len(),
        reached: found.reached,
    }
}

/// What the smallest own ends that hide what is to be hidden take; and how many layers of them are not here.
fn hidden_ends(costs: &Costs<'_>) -> (u64, u32) {
    let Costs { model, machines, wish } = costs;
    let (layers, hide) = (model.layers.len() as u32, wish.hide_layers);
    let bounds = stage::boundaries(model);
    let first = bounds.iter().copied().find(|&bound| bound >= hide.min(layers)).unwrap_or(layers);
    let last = bounds.iter().rev().copied().find(|&bound| bound <= layers.saturating_sub(hide)).unwrap_or(0);
    let ends = if first >= last { vec![(0, layers)] } else { vec![(0, first), (last, layers)] };
    let bytes = |&(start, end): &(u32, u32)| {
        let range = potluck_core::LayerRange::new(start, end);
        let caches = |r| model.cache_bytes(r, wish.positions).saturating_mul(wish.own_sessions.max(1).into());
        range.map_or(u64::MAX, |r| model.weight_bytes(r).saturating_add(caches(r)))
    };
    let own = machines.iter().find(|machine| machine.who == Who::Own);
    // A machine that may run nothing here has none of them.
    let lacks = |layer: u32| own.is_none_or(|own| !wish.may_load && own.missing.contains(&layer));
    let missing = ends.iter().flat_map(|&(start, end)| start..end).filter(|&layer| lacks(layer)).count();
    (ends.iter().map(bytes).fold(0, u64::saturating_add), missing as u32)
}

fn own_ends_fit(costs: &Costs<'_>) -> bool {
    let (needed, missing) = hidden_ends(costs);
    let own = costs.machines.iter().find(|machine| machine.who == Who::Own);
    missing == 0 && own.is_some_and(|own| needed <= own.memory_bytes)
}

fn not_hidden(costs: &Costs<'_>) -> PlanError {
    let (needed_bytes, missing) = hidden_ends(costs);
    let own = costs.machines.iter().find(|machine| machine.who == Who::Own);
    let layers = costs.wish.hide_layers.min(costs.model.layers.len() as u32);
    PlanError::NotHidden { layers, needed_bytes, memory_bytes: own.map_or(0, |own| own.memory_bytes), missing }
}
