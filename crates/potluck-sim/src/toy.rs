//! Arithmetic whose output proves which steps a stage saw.

use std::collections::BTreeMap;

use potluck_core::{
    CacheId, Hidden, Input, LayerRange, Logits, ModelId, Output, Rows, Stage, StageError, StageShape, StageSpec,
    StatePart, Step,
};

/// Values in a toy hidden state.
pub const WIDTH: u32 = 4;

/// Tokens of the toy vocabulary.
pub const VOCABULARY: u32 = 64;

/// Bytes of a toy cache that are given at a time: a few positions.
const PART_BYTES: usize = 48;

/// Largest toy hidden value: integers up to here survive the `f16` codec unchanged.
const VALUE_MAX: u64 = 2_048;

/// A stage whose every layer mixes its input with all inputs before it: a step that is lost, repeated, altered or out of
/// place changes every output that follows. How the layers are cut into stages changes nothing.
#[derive(Debug)]
pub struct ToyStage {
    shape: StageShape,
    /// For each cache and layer: the running state after each position.
    caches: BTreeMap<CacheId, Cache>,
}

#[derive(Debug, Clone, Default)]
struct Cache {
    positions: u32,
    states: Vec<Vec<u64>>,
    /// What another held, as far as it has come.
    coming: Vec<u8>,
    rows: Vec<Vec<f32>>,
}

/// The toy model that all stages are cut from.
pub fn model() -> ModelId {
    ModelId::from_bytes([0x70; 32])
}

/// The stage of `layers` of a toy model with `total` layers.
pub fn spec(layers: LayerRange, total: u32) -> StageSpec {
    StageSpec { model: model(), layers, head: layers.start() == 0, tail: layers.end() == total }
}

impl ToyStage {
    /// A stage with room for `caches` sessions of `context` positions.
    pub fn new(spec: StageSpec, caches: u16, context: u32) -> Self {
        let shape = StageShape {
            spec,
            width: WIDTH,
            vocabulary: VOCABULARY,
            caches,
            context,
            cache_bytes_per_position: 8 * u64::from(spec.layers.count()),
            weight_bytes: 0,
            exact: false,
        };
        Self { shape, caches: BTreeMap::new() }
    }

    fn run(&mut self, step: &Step) -> Result<Output, StageError> {
        let spec = self.shape.spec;
        let context = self.shape.context;
        let cache = self.caches.get_mut(&step.cache).ok_or(StageError::UnknownCache(step.cache))?;
        let count = step.positions(WIDTH);
        let held = cache.states[0].len() as u32;
        if step.start > held {
            return Err(StageError::Gap { start: step.start, held });
        }
        if !step.tree.fits(count) {
            return Err(StageError::BadInput("another tree than its rows".into()));
        }
        let end = step.start + step.tree.positions(count);
        if count == 0 || end > cache.positions {
            return Err(StageError::ContextFull { end, context });
        }
        let mut hidden = match (&step.input, spec.head) {
            (Input::Tokens(tokens), true) => embed(tokens),
            (Input::Hidden(hidden), false) => hidden.0.clone(),
            _ => return Err(StageError::BadInput("tokens enter at the head only".into())),
        };
        let trunk = step.tree.trunk(count);
        for (layer, states) in (spec.layers.start()..).zip(&mut cache.states) {
            states.truncate(step.start as usize);
            let root = states.last().copied().unwrap_or(0);
            let mut rows: Vec<u64> = Vec::with_capacity(count);
            for (at, row) in hidden.chunks_exact_mut(WIDTH as usize).enumerate() {
                let state = mix(step.tree.parent(at).map_or(root, |parent| rows[parent]), layer, row);
                rows.push(state);
                spread(state, row);
            }
            states.extend(&rows[..trunk]);
        }
        if !spec.tail {
            return Ok(Output::Hidden(Hidden(hidden)));
        }
        if step.rows == Rows::Mean {
            let mean = |at| hidden.iter().skip(at).step_by(WIDTH as usize).sum::<f32>() / count as f32;
            return Ok(Output::Logits(vec![Logits::Whole(Hidden((0..WIDTH as usize).map(mean).collect()))]));
        }
        cache.rows = hidden.chunks_exact(WIDTH as usize).map(logits).collect();
        let wanted = match step.rows {
            Rows::None | Rows::Mean => &[][..],
            Rows::Last => &cache.rows[count - 1..],
            Rows::All => &cache.rows[..],
        };
        let reduce = |row: &Vec<f32>| match step.top {
            0 => Logits::Whole(Hidden(row.clone())),
            top => Logits::reduce(row, top.into()),
        };
        Ok(Output::Logits(wanted.iter().map(reduce).collect()))
    }
}

impl Stage for ToyStage {
    fn shape(&self) -> &StageShape {
        &self.shape
    }

    fn open(&mut self, cache: CacheId, positions: u32) -> Result<(), StageError> {
        let (caches, context) = (self.shape.caches, self.shape.context);
        if positions > context {
            return Err(StageError::ContextFull { end: positions, context });
        }
        if !self.caches.contains_key(&cache) && self.caches.len() >= caches.into() {
            return Err(StageError::Busy { caches });
        }
        let states = vec![Vec::new(); self.shape.spec.layers.count() as usize];
        self.caches.insert(cache, Cache { positions, states, ..Cache::default() });
        Ok(())
    }

    fn fork(&mut self, from: CacheId, to: CacheId, positions: u32) -> Result<(), StageError> {
        let mut copy = self.caches.get(&from).cloned().ok_or(StageError::UnknownCache(from))?;
        let held = copy.states[0].len() as u32;
        if positions > held {
            return Err(StageError::Gap { start: positions, held });
        }
        copy.states.iter_mut().for_each(|states| states.truncate(positions as usize));
        self.open(to, copy.positions)?;
        self.caches.insert(to, copy);
        Ok(())
    }

    fn close(&mut self, cache: CacheId) {
        self.caches.remove(&cache);
    }

    fn forward(&mut self, steps: &mut [Step]) -> Vec<Result<Output, StageError>> {
        steps.iter().map(|step| self.run(step)).collect()
    }

    fn row(&mut self, cache: CacheId, row: u16) -> Result<Hidden, StageError> {
        let cache = self.caches.get(&cache).ok_or(StageError::UnknownCache(cache))?;
        let row = cache.rows.get(usize::from(row)).cloned();
        row.map(Hidden).ok_or_else(|| StageError::BadInput("no such row is kept".into()))
    }

    fn export(&mut self, cache: CacheId, offset: u64) -> Result<StatePart, StageError> {
        let states = &self.caches.get(&cache).ok_or(StageError::UnknownCache(cache))?.states;
        let all: Vec<u8> = states.iter().flatten().flat_map(|state| state.to_le_bytes()).collect();
        let rest = all.get(offset as usize..).ok_or_else(|| StageError::BadInput("no such part".into()))?;
        let (positions, total) = (states[0].len() as u32, all.len() as u64);
        Ok(StatePart { positions, total, offset, bytes: rest[..rest.len().min(PART_BYTES)].to_vec() })
    }

    fn import(&mut self, cache: CacheId, part: StatePart) -> Result<(), StageError> {
        let layers = self.shape.spec.layers.count() as usize;
        let into = self.caches.get_mut(&cache).ok_or(StageError::UnknownCache(cache))?;
        let bad = |why: &str| Err(StageError::BadInput(why.into()));
        if part.positions > into.positions || part.total != 8 * layers as u64 * u64::from(part.positions) {
            return bad("another stage's state");
        }
        if part.offset == 0 {
            into.coming.clear();
            into.states.iter_mut().for_each(Vec::clear);
        }
        if into.coming.len() as u64 != part.offset {
            return bad("a part that does not follow");
        }
        into.coming.extend(&part.bytes);
        if part.is_last() {
            let values: Vec<u64> = into
                .coming
                .chunks_exact(8)
                .map(|eight| eight.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
                .collect();
            into.states = values.chunks(part.positions.max(1) as usize).map(<[u64]>::to_vec).collect();
            into.coming.clear();
        }
        Ok(())
    }
}

/// What the unbroken, uncut model gives for the last of `tokens`: the largest logit's token.
pub fn greedy(tokens: &[u32], layers: u32) -> u32 {
    let mut hidden = embed(tokens);
    for layer in 0..layers {
        let mut state = 0;
        hidden.chunks_exact_mut(WIDTH as usize).for_each(|row| {
            state = mix(state, layer, row);
            spread(state, row);
        });
    }
    let last = &hidden[hidden.len() - WIDTH as usize..];
    match Logits::reduce(&logits(last), 1) {
        Logits::Top { largest, .. } => largest[0].0,
        Logits::Whole(_) => 0,
    }
}

fn embed(tokens: &[u32]) -> Vec<f32> {
    let mut hidden = vec![0.0; tokens.len() * WIDTH as usize];
    for (row, token) in hidden.chunks_exact_mut(WIDTH as usize).zip(tokens) {
        spread(scramble(u64::from(*token) + 1), row);
    }
    hidden
}

fn mix(state: u64, layer: u32, row: &[f32]) -> u64 {
    row.iter().fold(scramble(state ^ u64::from(layer) << 32), |hash, value| scramble(hash ^ u64::from(value.to_bits())))
}

fn spread(state: u64, row: &mut [f32]) {
    let mut state = state;
    for value in row {
        state = scramble(state);
        *value = (state % VALUE_MAX) as f32;
    }
}

fn logits(row: &[f32]) -> Vec<f32> {
    let seed = mix(0x10617, 0, row);
    (0..u64::from(VOCABULARY)).map(|token| (scramble(seed ^ token) % 4_096) as f32 / 256.0).collect()
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014).
fn scramble(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use potluck_core::Tree;

    use super::*;

    #[test]
    fn a_cut_changes_nothing_and_a_lost_step_everything() {
        let tokens = [3, 1, 4, 1, 5];
        let run = |parts: usize, tokens: &[u32]| {
            let ranges = LayerRange::new(0, 6).unwrap().split(parts).unwrap();
            let mut input = Input::Tokens(tokens.to_vec());
            for range in ranges {
                let mut stage = ToyStage::new(spec(range, 6), 1, 16);
                stage.open(CacheId(0), 16).unwrap();
                let step = Step { cache: CacheId(0), start: 0, input, rows: Rows::Last, top: 1, tree: Tree::chain() };
                match stage.forward(&mut [step]).remove(0).unwrap() {
                    Output::Hidden(hidden) => input = Input::Hidden(hidden),
                    Output::Logits(rows) => return rows,
                }
            }
            unreachable!("the last range is the tail")
        };
        let Logits::Top { largest, .. } = &run(1, &tokens)[0] else { panic!() };
        assert_eq!(largest[0].0, greedy(&tokens, 6));
        assert_eq!(run(1, &tokens), run(3, &tokens));
        assert_eq!(run(1, &tokens), run(6, &tokens));
        assert_ne!(run(3, &tokens), run(3, &[3, 1, 4, 5]));
        assert_ne!(run(3, &tokens), run(3, &[1, 3, 4, 1, 5]));
    }
}
