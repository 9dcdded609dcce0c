//! The text through the chain, once for each codec.

use std::time::{Duration, Instant};

use potluck_core::{CacheId, Hidden, Input, Logits, Output, Rows, Stage, Step, Tree};
use potluck_model::proof::{At, Expected, Measured, Table, Tally};
use potluck_wire::Codec;

use super::{CODECS, MeasureError, step_positions};

/// The cache of what is left as it is.
const PLAIN: CacheId = CacheId(0);

/// The cache of the same in other steps.
const HALVED: CacheId = CacheId(1);

/// The first of the codecs' caches.
const FIRST: u16 = 2;

/// Positions that were scored, of how many.
pub type Progress = (u32, u32);

/// What the chain said at one position.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// From 0, as they were given.
    pub passage: usize,
    /// From the passage's beginning.
    pub position: u32,
    /// The codec, and where it was; none: hidden states travelled as they are.
    pub codec: Option<(Codec, At)>,
    /// A value for each token of the vocabulary.
    pub logits: &'a [f32],
}

/// Hidden states of a step, or the logits of one of its positions.
type Row = Vec<f32>;

/// One codec at one place or at all, and what it has changed so far.
struct Trial {
    codec: Codec,
    at: At,
    cache: CacheId,
    tally: Tally,
    encode: Duration,
    decode: Duration,
    values: u64,
    bytes: Vec<u8>,
}

/// The chain, and what is scored with it.
struct Bench<'a> {
    stages: &'a mut [Box<dyn Stage>],
    cuts: Vec<u32>,
    width: usize,
}

/// How many sessions [`measure`] needs caches for, over a chain with so many cuts.
pub fn caches(cuts: usize, each_cut: bool) -> u16 {
    let places = 1 + if each_cut { cuts } else { 0 };
    FIRST + (CODECS.len() * places) as u16 + 1
}

/// Scores `passages` (tokens, the last of each a target only) with each of [`CODECS`] at all cuts of the chain, and with
/// `each_cut` at each alone. The stages are exact, with as many caches as [`caches`] says and room for the longest
/// passage.
///
/// # Errors
/// See [`MeasureError`].
pub fn measure(
    stages: &mut [Box<dyn Stage>],
    passages: &[Vec<u32>],
    each_cut: bool,
    progress: impl FnMut(Progress),
) -> Result<Table, MeasureError> {
    watch(stages, passages, each_cut, progress, |_| {})
}

/// [`measure`], which shows `see` each position's logits: first the unchanged ones of a step, then those of each codec.
///
/// # Errors
/// See [`MeasureError`].
pub fn watch(
    stages: &mut [Box<dyn Stage>],
    passages: &[Vec<u32>],
    each_cut: bool,
    mut progress: impl FnMut(Progress),
    mut see: impl FnMut(Seen<'_>),
) -> Result<Table, MeasureError> {
    let nothing = |why: &str| MeasureError::Nothing(why.into());
    if stages.len() < 2 || passages.iter().any(|passage| passage.len() < 2) || passages.is_empty() {
        return Err(nothing("no cut, or no text"));
    }
    if !stages.iter().all(|stage| stage.shape().exact) {
        return Err(nothing("the stages are not exact"));
    }
    let cuts: Vec<u32> = stages[1..].iter().map(|stage| stage.shape().spec.layers.start()).collect();
    let shape = stages[0].shape();
    let (width, vocabulary) = (shape.width, stages[stages.len() - 1].shape().vocabulary);
    let places = [At::AllCuts].into_iter().chain(cuts.iter().filter(|_| each_cut).map(|&cut| At::Cut(cut)));
    // What is not changed comes out unchanged: else the comparison would be of something else.
    let same = std::iter::once((Codec::F32, At::AllCuts));
    let all = same.chain(places.flat_map(|at| CODECS.map(|codec| (codec, at))));
    let mut trials: Vec<Trial> = all.zip(FIRST..).map(|((codec, at), cache)| Trial::new(codec, at, cache)).collect();
    let mut bench = Bench { stages, cuts, width: width as usize };
    let total: usize = passages.iter().map(|passage| passage.len() - 1).sum();
    let (mut scored, mut nll, mut halved) = (0, 0.0, Tally::default());
    for (number, passage) in passages.iter().enumerate() {
        let mut show = |codec, start: u32, rows: &[Row]| {
            for (position, logits) in (start..).zip(rows) {
                see(Seen { passage: number, position, codec, logits });
            }
        };
        bench.open(passage.len() as u32 - 1, trials.len())?;
        let (inputs, targets) = (&passage[..passage.len() - 1], &passage[1..]);
        let step = step_positions(vocabulary);
        for (start, (tokens, targets)) in (0..).step_by(step).zip(inputs.chunks(step).zip(targets.chunks(step))) {
            let (between, logits) = bench.plain(PLAIN, start, tokens)?;
            show(None, start, &logits);
            let expected = expect(logits, targets, start)?;
            nll += expected.iter().map(Expected::nll).sum::<f64>();
            let (mut at, mut rows) = (start, Vec::with_capacity(tokens.len()));
            for half in tokens.chunks(tokens.len().div_ceil(2)) {
                rows.extend(bench.plain(HALVED, at, half)?.1);
                at += half.len() as u32;
            }
            compare(&mut halved, &expected, &rows, start)?;
            for trial in &mut trials {
                let rows = bench.run(trial, start, &between)?;
                show(Some((trial.codec, trial.at)), start, &rows);
                compare(&mut trial.tally, &expected, &rows, start)?;
            }
            scored += tokens.len() as u32;
            progress((scored, total as u32));
        }
    }
    let mut rows: Vec<Measured> = trials.into_iter().map(Trial::measured).collect();
    let same = rows.remove(0).change;
    if same.loss != 0.0 || same.loss_error != 0.0 || same.agreed != scored {
        return Err(MeasureError::NotExact);
    }
    let nll = nll / f64::from(scored);
    Ok(Table { positions: scored, width, cuts: bench.cuts, nll, halved: halved.change(), rows })
}

fn expect(logits: Vec<Vec<f32>>, targets: &[u32], start: u32) -> Result<Vec<Expected>, MeasureError> {
    whole(logits.len(), targets.len())?;
    let rows = (start..).zip(logits).zip(targets);
    rows.map(|((position, row), &target)| {
        Expected::new(row, target).map_err(|error| MeasureError::NotFinite { position, error })
    })
    .collect()
}

/// Refuses rows of which some are missing: the rest would be compared with others'.
fn whole(rows: usize, positions: usize) -> Result<(), MeasureError> {
    match rows == positions {
        true => Ok(()),
        false => Err(MeasureError::Nothing(format!("{rows} rows of logits came for {positions} positions"))),
    }
}

fn compare(tally: &mut Tally, expected: &[Expected], rows: &[Vec<f32>], start: u32) -> Result<(), MeasureError> {
    whole(rows.len(), expected.len())?;
    for ((position, expected), row) in (start..).zip(expected).zip(rows) {
        tally.add(expected, row).map_err(|error| MeasureError::NotFinite { position, error })?;
    }
    Ok(())
}

impl Trial {
    fn new(codec: Codec, at: At, cache: u16) -> Self {
        let (tally, bytes) = Default::default();
        let (encode, decode) = Default::default();
        Self { codec, at, cache: CacheId(cache), tally, encode, decode, values: 0, bytes }
    }

    /// What the next stage takes in, where the codec is at the cut before `layer`.
    fn through(&mut self, hidden: &[f32], width: usize, layer: u32) -> Result<Vec<f32>, MeasureError> {
        if self.at != At::AllCuts && self.at != At::Cut(layer) {
            return Ok(hidden.to_vec());
        }
        let codec = self.codec;
        let failed = |error| MeasureError::Codec { codec, error };
        self.bytes.clear();
        let begun = Instant::now();
        codec.encode(hidden, width, &mut self.bytes).map_err(failed)?;
        let encoded = Instant::now();
        let decoded = codec.decode(&self.bytes, hidden.len() / width, width).map_err(failed)?;
        self.decode += encoded.elapsed();
        self.encode += encoded - begun;
        self.values += hidden.len() as u64;
        Ok(decoded)
    }

    fn measured(self) -> Measured {
        let each = |time: Duration| time.as_secs_f64() * 1e9 / self.values.max(1) as f64;
        let (encode_ns, decode_ns) = (each(self.encode), each(self.decode));
        Measured { codec: self.codec, at: self.at, change: self.tally.change(), encode_ns, decode_ns }
    }
}

impl Bench<'_> {
    /// Empty caches for every session.
    fn open(&mut self, positions: u32, trials: usize) -> Result<(), MeasureError> {
        for stage in self.stages.iter_mut() {
            for cache in 0..FIRST + trials as u16 {
                stage.open(CacheId(cache), positions)?;
            }
        }
        Ok(())
    }

    /// The step as it is: what leaves each stage but the last, and the logits.
    fn plain(&mut self, cache: CacheId, start: u32, tokens: &[u32]) -> Result<(Vec<Row>, Vec<Row>), MeasureError> {
        let mut between: Vec<Row> = Vec::with_capacity(self.cuts.len());
        let mut input = Input::Tokens(tokens.to_vec());
        for at in 0..self.cuts.len() {
            let hidden = self.hidden(at, cache, start, input)?;
            input = Input::Hidden(Hidden(hidden.clone()));
            between.push(hidden);
        }
        let logits = self.logits(cache, start, input)?;
        Ok((between, logits))
    }

    /// The step with a codec, from the first stage on that it changes anything for; its own caches hold nothing before that.
    fn run(&mut self, trial: &mut Trial, start: u32, between: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, MeasureError> {
        let first = self.cuts.iter().position(|&cut| trial.at == At::AllCuts || trial.at == At::Cut(cut)).unwrap_or(0);
        let mut hidden = trial.through(&between[first], self.width, self.cuts[first])?;
        for at in first + 1..self.cuts.len() {
            let left = self.hidden(at, trial.cache, start, Input::Hidden(Hidden(hidden)))?;
            hidden = trial.through(&left, self.width, self.cuts[at])?;
        }
        self.logits(trial.cache, start, Input::Hidden(Hidden(hidden)))
    }

    fn hidden(&mut self, at: usize, cache: CacheId, start: u32, input: Input) -> Result<Vec<f32>, MeasureError> {
        match forward(&mut self.stages[at], cache, start, input, Rows::None)? {
            Output::Hidden(Hidden(values)) => Ok(values),
            Output::Logits(_) => Err(MeasureError::Nothing("a stage before the last is a tail".into())),
        }
    }

    fn logits(&mut self, cache: CacheId, start: u32, input: Input) -> Result<Vec<Vec<f32>>, MeasureError> {
        let tail = self.cuts.len();
        let no_tail = || MeasureError::Nothing("the last stage is no tail".into());
        let Output::Logits(rows) = forward(&mut self.stages[tail], cache, start, input, Rows::All)? else {
            return Err(no_tail());
        };
        let whole = |row| match row {
            Logits::Whole(Hidden(row)) => Ok(row),
            Logits::Top { .. } => Err(no_tail()),
        };
        rows.into_iter().map(whole).collect()
    }
}

fn forward(
    stage: &mut Box<dyn Stage>,
    cache: CacheId,
    start: u32,
    input: Input,
    rows: Rows,
) -> Result<Output, MeasureError> {
    let step = Step { cache, start, input, rows, top: 0, tree: Tree::chain() };
    match stage.forward(&mut [step]).pop() {
        Some(result) => Ok(result?),
        None => Err(MeasureError::Nothing("a stage gave no answer".into())),
    }
}
