//! Which stages a machine could take, and what each would cost.

use std::collections::{BTreeMap, BTreeSet};

use potluck_core::LayerRange;

use super::facts::{Machine, ModelFacts, Speed, Who, Wish};

/// A stage on a machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Piece {
    /// Index of the machine.
    pub(super) machine: usize,
    pub(super) layers: LayerRange,
    /// True if it runs already.
    pub(super) loaded: bool,
    pub(super) weight_bytes: u64,
    pub(super) cache_bytes: u64,
    /// Bytes of the caches of further sessions.
    pub(super) further_bytes: u64,
    /// Microseconds for one position of one session.
    pub(super) decode_us: f64,
    /// Microseconds for a position of a full chunk.
    pub(super) prefill_us: f64,
}

/// Boundaries at which a stage may begin or end, ascending, both ends of the model included.
pub(super) fn boundaries(model: &ModelFacts) -> Vec<u32> {
    let layers = model.layers.len() as u32;
    let mut bounds: Vec<u32> = model.cuts.iter().copied().filter(|&cut| cut > 0 && cut < layers).collect();
    bounds.extend([0, layers]);
    bounds.sort_unstable();
    bounds.dedup();
    bounds
}

/// Stages that are looked at one and all. Of more, only those that fill their machine or reach an end.
const PIECES_MAX: usize = 4_000;

/// All stages that the search looks at, by first layer.
pub(super) fn by_start(model: &ModelFacts, wish: &Wish, machines: &[Machine]) -> BTreeMap<u32, Vec<Piece>> {
    let mut all: Vec<Piece> = (0..machines.len()).flat_map(|i| pieces(model, wish, machines, i)).collect();
    if all.len() > PIECES_MAX {
        all = filling(model, machines, all);
    }
    let mut by_start: BTreeMap<u32, Vec<Piece>> = BTreeMap::new();
    all.into_iter().for_each(|piece| by_start.entry(piece.layers.start()).or_default().push(piece));
    by_start
}

/// The stages that fill their peer, or end where the model or an own last stage begins: in a best route all but one
/// machine are full, and that one may as well be the last.
fn filling(model: &ModelFacts, machines: &[Machine], all: Vec<Piece>) -> Vec<Piece> {
    let whole = model.layers.len() as u32;
    let own = |piece: &Piece| machines[piece.machine].who == Who::Own;
    let mut ends: BTreeSet<u32> =
        all.iter().filter(|p| own(p) && p.layers.end() == whole).map(|p| p.layers.start()).collect();
    ends.insert(whole);
    let mut longest: BTreeMap<(usize, u32), u32> = BTreeMap::new();
    for piece in &all {
        let end = longest.entry((piece.machine, piece.layers.start())).or_default();
        *end = piece.layers.end().max(*end);
    }
    let full = |piece: &Piece| longest.get(&(piece.machine, piece.layers.start())) == Some(&piece.layers.end());
    all.into_iter().filter(|p| p.loaded || own(p) || full(p) || ends.contains(&p.layers.end())).collect()
}

/// All stages of the model that a machine could take, given its memory and whom the wish keeps from what.
pub(super) fn pieces(model: &ModelFacts, wish: &Wish, machines: &[Machine], machine: usize) -> Vec<Piece> {
    let mut pieces = possible(model, wish, machines, machine);
    pieces.retain(|piece| is_allowed(model, wish, &machines[machine], piece.layers));
    pieces
}

/// Whether the wish lets this machine hold these layers.
fn is_allowed(model: &ModelFacts, wish: &Wish, machine: &Machine, range: LayerRange) -> bool {
    let layers = model.layers.len() as u32;
    if machine.who != Who::Own {
        let hidden = Wish::touches_ends(range, wish.hide_layers, layers);
        return !hidden && (machine.trusted || !Wish::touches_ends(range, wish.trusted_layers, layers));
    }
    let here = wish.may_load || !machine.missing.iter().any(|&layer| range.contains(layer));
    // Whoever holds an end here holds all of it that is to be hidden.
    let hides = (range.start() > 0 || range.end() >= wish.hide_layers.min(layers))
        && (range.end() < layers || range.start() <= layers.saturating_sub(wish.hide_layers));
    here && hides
}

fn possible(model: &ModelFacts, wish: &Wish, machines: &[Machine], machine: usize) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = loaded_piece(model, wish, &machines[machine], machine).into_iter().collect();
    let may_load = wish.may_load || machines[machine].who == Who::Own;
    if !may_load {
        return pieces;
    }
    let bounds = boundaries(model);
    for (i, &start) in bounds.iter().enumerate() {
        for &end in &bounds[i + 1..] {
            let Ok(layers) = LayerRange::new(start, end) else { continue };
            match fresh_piece(model, wish, &machines[machine], machine, layers) {
                // A longer one fits even less.
                None => break,
                Some(piece) if pieces.iter().all(|other| other.layers != layers) => pieces.push(piece),
                Some(_) => {}
            }
        }
    }
    pieces
}

fn loaded_piece(model: &ModelFacts, wish: &Wish, machine: &Machine, index: usize) -> Option<Piece> {
    let loaded = machine.loaded.as_ref()?;
    let spec = loaded.spec;
    let whole = model.layers.len() as u32;
    let ends_match = spec.head == (spec.layers.start() == 0) && spec.tail == (spec.layers.end() == whole);
    let usable = spec.model == model.model
        && spec.layers.end() <= whole
        && ends_match
        && loaded.free_caches > 0
        && loaded.context >= wish.positions
        && loaded.speed.decode_us > 0;
    usable.then(|| Piece {
        machine: index,
        layers: spec.layers,
        loaded: true,
        weight_bytes: loaded.weight_bytes,
        cache_bytes: loaded.cache_bytes_per_position.saturating_mul(wish.positions.into()),
        further_bytes: 0,
        decode_us: loaded.speed.decode_us as f64,
        prefill_us: loaded.speed.prefill_position_us as f64,
    })
}

fn fresh_piece(model: &ModelFacts, wish: &Wish, machine: &Machine, index: usize, layers: LayerRange) -> Option<Piece> {
    let mut piece = Piece::fresh(model, wish, machine.speed?, index, layers);
    if machine.who == Who::Own {
        piece.further_bytes = piece.cache_bytes.saturating_mul(wish.own_sessions.saturating_sub(1).into());
    }
    (piece.new_bytes() <= machine.memory_bytes).then_some(piece)
}

impl Piece {
    /// A stage that is not loaded yet, on a machine of that speed, whether or not it fits.
    pub(super) fn fresh(model: &ModelFacts, wish: &Wish, speed: Speed, machine: usize, layers: LayerRange) -> Self {
        let read = model.read_bytes(layers) as f64;
        Self {
            machine,
            layers,
            loaded: false,
            weight_bytes: model.weight_bytes(layers),
            cache_bytes: model.cache_bytes(layers, wish.positions),
            further_bytes: 0,
            decode_us: read * speed.decode_us_per_byte,
            prefill_us: read * speed.prefill_us_per_byte,
        }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.cache_bytes)
    }

    /// Bytes that it would newly take on its machine.
    pub(super) fn new_bytes(&self) -> u64 {
        if self.loaded { 0 } else { self.bytes().saturating_add(self.further_bytes) }
    }
}
