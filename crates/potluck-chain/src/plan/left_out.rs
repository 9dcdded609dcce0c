//! Why a machine has no part in a plan.

use std::collections::BTreeSet;

use potluck_core::{LayerRange, ModelId};
use serde::Serialize;

use super::{
    cost::Costs,
    facts::{Machine, Who},
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
            return unusable(costs, machine);
        }
        match (found.with_machine.get(&i), open.with_machine.get(&i)) {
            (Some(us), _) => Reason::NotBetter { tokens_per_s: 1e6 / us, chosen_tokens_per_s: 1e6 / decode_us },
            (None, Some(_)) => Reason::Private,
            _ if route.len() == 1 => Reason::NotNeeded,
            _ => Reason::NoNeighbour,
        }
    };
    let absent = |i: &usize| !route.iter().any(|piece| piece.machine == *i);
    let indices = (0..machines.len()).filter(absent);
    indices.map(|i| LeftOut { who: machines[i].who, reason: reason(i, &machines[i]) }).collect()
}

/// Why no stage of the model can be on this machine.
fn unusable(costs: &Costs<'_>, machine: &Machine) -> Reason {
    let Costs { model, wish, .. } = costs;
    let may_load = wish.may_load || machine.who == Who::Own;
    match &machine.loaded {
        Some(loaded) if loaded.spec.model == model.model => {
            if loaded.free_caches == 0 {
                return Reason::NoFreeCache;
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
