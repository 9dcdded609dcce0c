//! The search: routes over all layers, by number of stages and predicted time of a token.

use std::collections::BTreeMap;

use potluck_core::bounds::ROUTE_STAGES_MAX;

use super::{
    cost::Costs,
    facts::{MACHINES_MAX, Preference, Who},
    stage::Piece,
};

/// Partial routes that are kept at each boundary for each number of stages: the fastest, and as many of those that
/// leave the most memory unused. Small swarms are searched completely.
const BEAM: usize = 32;

/// Stages beyond the fewest for which routes are still looked for, to compare.
const FURTHER_STAGES: usize = 2;

/// A complete route.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) pieces: Vec<Piece>,
    pub(super) decode_us: f64,
}

/// The first stages of a route.
#[derive(Debug, Clone, Copy)]
struct Partial {
    /// Its last stage, and where the stages before it are kept.
    last: Option<Piece>,
    before: Option<usize>,
    /// Peers that it uses, a bit each.
    used: u128,
    /// Bytes that it newly takes on the own machine.
    own_bytes: u64,
    decode_us: f64,
    /// Memory of the peers that it uses: what others can no longer have.
    used_memory: u64,
}

const _: () = assert!(MACHINES_MAX <= u128::BITS as usize, "a set of machines is a number");

/// What the search found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The fastest route for each number of stages.
    pub(super) routes: BTreeMap<usize, Route>,
    /// For each machine the fastest complete route that it is part of, in microseconds a token.
    pub(super) with_machine: BTreeMap<usize, f64>,
    /// The last layer that any partial route reached.
    pub(super) reached: u32,
}

struct Search<'a> {
    costs: &'a Costs<'a>,
    preference: Preference,
    /// Partial routes that others continue.
    kept: Vec<Partial>,
    found: Found,
}

/// Looks for routes of up to a few more stages than the fewest. `by_start`: all stages, by first layer.
pub(super) fn search(costs: &Costs<'_>, by_start: &BTreeMap<u32, Vec<Piece>>, preference: Preference) -> Found {
    let mut search = Search { costs, preference, kept: Vec::new(), found: Found::default() };
    let start = Partial { last: None, before: None, used: 0, own_bytes: 0, decode_us: 0.0, used_memory: 0 };
    let mut level = BTreeMap::from([(0u32, vec![start])]);
    for stages in 1..=ROUTE_STAGES_MAX {
        level = search.advance(level, by_start);
        let enough = search.found.routes.keys().next().is_some_and(|fewest| stages >= fewest + FURTHER_STAGES);
        if level.is_empty() || enough {
            break;
        }
    }
    search.found
}

impl Search<'_> {
    /// All partial routes with one stage more, by where they end.
    fn advance(
        &mut self,
        level: BTreeMap<u32, Vec<Partial>>,
        by_start: &BTreeMap<u32, Vec<Piece>>,
    ) -> BTreeMap<u32, Vec<Partial>> {
        let whole = self.costs.model.layers.len() as u32;
        let mut next: BTreeMap<u32, Vec<Partial>> = BTreeMap::new();
        for (at, partials) in level {
            let Some(options) = by_start.get(&at) else { continue };
            for partial in partials {
                let before = self.kept.len();
                self.kept.push(partial);
                for piece in options {
                    let Some(longer) = self.extended(&partial, before, piece) else { continue };
                    let end = piece.layers.end();
                    self.found.reached = self.found.reached.max(end);
                    match end == whole {
                        true => self.complete(&longer),
                        false => next.entry(end).or_default().push(longer),
                    }
                }
            }
        }
        next.values_mut().for_each(|partials| *partials = best_of(std::mem::take(partials)));
        next
    }

    /// The partial route with one more stage, where the rules allow it.
    fn extended(&self, partial: &Partial, before: usize, piece: &Piece) -> Option<Partial> {
        let machine = &self.costs.machines[piece.machine];
        let whole = self.costs.model.layers.len() as u32;
        let (head, tail) = (piece.layers.start() == 0, piece.layers.end() == whole);
        let mut next = Partial { last: Some(*piece), before: Some(before), ..*partial };
        if machine.who == Who::Own {
            // An own stage is the first or the last of a route, with a peer between where it is both.
            let after_own = partial.last.is_some_and(|last| last.machine == piece.machine);
            next.own_bytes = partial.own_bytes.saturating_add(piece.new_bytes());
            if !(head || tail) || after_own || next.own_bytes > machine.memory_bytes {
                return None;
            }
        } else {
            let bit = 1u128 << piece.machine;
            if partial.used & bit != 0 || self.preference == Preference::Private && (head || tail) {
                return None;
            }
            next.used |= bit;
            next.used_memory = partial.used_memory.saturating_add(machine.memory_bytes);
        }
        next.decode_us += self.costs.hop_us(partial.last.as_ref(), piece) + piece.decode_us;
        Some(next)
    }

    fn complete(&mut self, partial: &Partial) {
        let pieces = self.pieces(partial);
        let decode_us = partial.decode_us + pieces.last().map_or(0.0, |tail| self.costs.answer_us(tail));
        for piece in &pieces {
            let best = self.found.with_machine.entry(piece.machine).or_insert(f64::INFINITY);
            *best = best.min(decode_us);
        }
        let stages = pieces.len();
        if self.found.routes.get(&stages).is_none_or(|best| decode_us < best.decode_us) {
            self.found.routes.insert(stages, Route { pieces, decode_us });
        }
    }

    /// The stages of a partial route, in order.
    fn pieces(&self, partial: &Partial) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = partial.last.into_iter().collect();
        let mut before = partial.before;
        while let Some(partial) = before.map(|index| self.kept[index]) {
            pieces.extend(partial.last);
            before = partial.before;
        }
        pieces.reverse();
        pieces
    }
}

/// The best of a crowd that ends at one boundary: the fastest, and those that use up the least memory.
fn best_of(mut partials: Vec<Partial>) -> Vec<Partial> {
    partials.sort_unstable_by(|a, b| a.decode_us.total_cmp(&b.decode_us));
    let mut best = Vec::with_capacity(2 * BEAM);
    let mut rest = take_undominated(&mut best, partials, BEAM);
    rest.sort_unstable_by(|a, b| a.used_memory.cmp(&b.used_memory).then(a.decode_us.total_cmp(&b.decode_us)));
    take_undominated(&mut best, rest, 2 * BEAM);
    best
}

/// Moves partial routes to `best` until it has so many, but for those that another is at least as good as. Returns
/// those that were not looked at.
fn take_undominated(best: &mut Vec<Partial>, partials: Vec<Partial>, up_to: usize) -> Vec<Partial> {
    let machine = |partial: &Partial| partial.last.map(|piece| piece.machine);
    let mut partials = partials.into_iter();
    while best.len() < up_to
        && let Some(partial) = partials.next()
    {
        let no_worse = |other: &Partial| {
            machine(other) == machine(&partial)
                && other.used & !partial.used == 0
                && other.own_bytes <= partial.own_bytes
                && other.decode_us <= partial.decode_us
        };
        if !best.iter().any(no_worse) {
            best.push(partial);
        }
    }
    partials.collect()
}
