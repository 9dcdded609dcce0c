//! Why a machine has no part in a plan.

use std::collections::BTreeSet;

use potluck_core::{LayerRange, ModelId, StageSpeed};
use serde::Serialize;

use super::{
    cost::Costs,
    facts::{Machine, Who, Wish},
    search::Found,
    stage::{self, Piece},
};

/// A machine that has no part, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeftOut {
    /// Whose.
    pub who: Who,
    /// Why.
    #[serde(flatten)]
    pub reason: Reason,
}

/// Why a machine has no part in a plan.
#[derive(Debug, Clone, PartialEq, Serialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// It serves another model.
    #[error("it serves another model ({})", .model.chars().take(10).collect::<String>())]
    OtherModel {
        /// Which.
        model: String,
    },
    /// Nobody measured how fast it is.
    #[error("its speed is not known")]
    SpeedUnknown,
    /// Its stage is about to be there.
    #[error("it is loading its layers")]
    Loading,
    /// All its caches are taken.
    #[error("it has no room for another session")]
    NoFreeCache,
    /// Its sessions are too short.
    #[error("its sessions hold {holds} positions; {needed} are needed")]
    ContextTooShort {
        /// Positions that it gives.
        holds: u32,
        /// Positions needed.
        needed: u32,
    },
    /// Not even the smallest stage fits.
    #[error("it would give {free_bytes} bytes; the smallest stage needs {needed_bytes}")]
    TooSmall {
        /// Bytes of the smallest stage.
        needed_bytes: u64,
        /// Bytes that it would give.
        free_bytes: u64,
    },
    /// Its stage connects to no route over all layers.
    #[error("no route over all layers passes its stage")]
    NoNeighbour,
    /// A route with it was looked at, and is not better.
    #[error("the best route with it makes {tokens_per_s:.1} tokens/s; the chosen one {chosen_tokens_per_s:.1}")]
    NotBetter {
        /// Predicted, with it.
        tokens_per_s: f64,
        /// Predicted, as chosen.
        chosen_tokens_per_s: f64,
    },
    /// Fewer stages are enough.
    #[error("the model fits fewer machines")]
    NotNeeded,
    /// Private: this machine is not the user's own, and it could only be an end.
    #[error("it could only hold an end of the model, which stays private")]
    Private,
    /// Only trusted machines may hold the layers that it could.
    #[error("it is not trusted with the first and the last {layers} layers")]
    NotTrusted {
        /// How many at each end.
        layers: u32,
    },
    /// The layers that it could hold stay on the own machine.
    #[error("the first and the last {layers} layers, which it holds some of, stay on this machine")]
    Hidden {
        /// How many at each end.
        layers: u32,
    },
    /// The weights are not there.
    #[error("the weights of {layers} layers are not there")]
    NotHere {
        /// Of how many layers.
        layers: usize,
    },
    /// More machines than are looked at.
    #[error("more machines offered than are looked at")]
    TooMany,
}

/// The reasons of all machines that `route` does not use.
pub(super) fn reasons(
    costs: &Costs<'_>,
    machines: &[Machine],
    usable: &BTreeSet<usize>,
    route: &[Piece],
    decode_us: f64,
    found: &Found,
    open: &Found,
) -> Vec<LeftOut> {
    let reason = |i: usize, machine: &Machine| {
        if i >= costs.machines.len() {
            return Reason::TooMany;
        }
        if !usable.contains(&i) {
            return kept_from(costs, i).unwrap_or_else(|| unusable(costs, machine));
        }
        match (found.with_machine.get(&i), open.with_machine.get(&i)) {
            (Some(us), _) => Reason::NotBetter { tokens_per_s: 1e6 / us, chosen_tokens_per_s: 1e6 / decode_us },
            (None, Some(_)) if !machine.trusted && costs.wish.trusted_layers > 0 => not_trusted(costs),
            (None, Some(_)) => Reason::Private,
            _ if route.len() == 1 => Reason::NotNeeded,
            _ => Reason::NoNeighbour,
        }
    };
    let absent = |i: &usize| !route.iter().any(|piece| piece.machine == *i);
    let indices = (0..machines.len()).filter(absent);
    indices.map(|i| LeftOut { who: machines[i].who, reason: reason(i, &machines[i]) }).collect()
}

fn not_trusted(costs: &Costs<'_>) -> Reason {
    Reason::NotTrusted { layers: costs.wish.trusted_layers.min(costs.model.layers.len() as u32) }
}

/// Why a machine that could run something of the model may not.
fn kept_from(costs: &Costs<'_>, index: usize) -> Option<Reason> {
    let Costs { model, machines, wish } = costs;
    let machine = &machines[index];
    if machine.who == Who::Own && !wish.may_load && !machine.missing.is_empty() {
        return Some(Reason::NotHere { layers: machine.missing.len() });
    }
    if !wish.is_strict() || stage::pieces(model, &wish.open(), machines, index).is_empty() {
        return None;
    }
    let trusting = Wish { trusted_layers: 0, ..**wish };
    if !stage::pieces(model, &trusting, machines, index).is_empty() {
        return Some(not_trusted(costs));
    }
    Some(Reason::Hidden { layers: wish.hide_layers.min(model.layers.len() as u32) })
}

/// Why no stage of the model can be on this machine.
fn unusable(costs: &Costs<'_>, machine: &Machine) -> Reason {
    let Costs { model, wish, .. } = costs;
    let may_load = wish.may_load || machine.who == Who::Own;
    match &machine.loaded {
        Some(loaded) if loaded.spec.model == model.model => {
            if loaded.free_caches == 0 {
                return if loaded.speed == StageSpeed::UNKNOWN { Reason::Loading } else { Reason::NoFreeCache };
            }
            if loaded.context < wish.positions {
                return Reason::ContextTooShort { holds: loaded.context, needed: wish.positions };
            }
            if loaded.speed.decode_us == 0 {
                return Reason::SpeedUnknown;
            }
        }
        Some(loaded) if !may_load => return Reason::OtherModel { model: text(loaded.spec.model) },
        _ => {}
    }
    if may_load && machine.speed.is_some() {
        let bounds = stage::boundaries(model);
        let sizes = bounds.windows(2).filter_map(|pair| LayerRange::new(pair[0], pair[1]).ok());
        let bytes = |r| model.weight_bytes(r).saturating_add(model.cache_bytes(r, wish.positions));
        return Reason::TooSmall {
            needed_bytes: sizes.map(bytes).min().unwrap_or(0),
            free_bytes: machine.memory_bytes,
        };
    }
    if machine.speed.is_none() { Reason::SpeedUnknown } else { Reason::NoNeighbour }
}

fn text(model: ModelId) -> String {
    model.to_string()
}
