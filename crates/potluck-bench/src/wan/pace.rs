//! Paced stages: they take the time of a real one, and compute nothing.
//!
//! On one machine all engines share the cores, so stages that would run at once on machines of their own run one after
//! the other. A paced stage sleeps for as long as the real one was measured to take for so many rows, with the cores to
//! itself, and so overlaps with others as it would elsewhere. What it passes on has the right size and a likely
//! distribution; the last stage answers from a recording of what the real model said, so accepted drafts are exactly
//! the true ones.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use potluck_core::{
    CacheId, Hidden, Input, Logits, Output, Rows, Stage, StageCommand, StageError, StageReply, StageShape, StageSpec,
    Step,
};
use potluck_net::StagePort;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// The seconds that a stage takes for so many rows, as measured, and what it is like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pace {
    /// `(rows, seconds)` in rising order of rows, with logits for every row where the stage gives any.
    pub(crate) answering: Vec<(u32, f64)>,
    /// The same without logits: the last stage in a prefill.
    pub(crate) silent: Vec<(u32, f64)>,
    pub(crate) width: u32,
    pub(crate) vocabulary: u32,
    pub(crate) context: u32,
    pub(crate) caches: u16,
}

impl Pace {
    /// Seconds for a batch of which so many rows have logits and so many have none.
    pub(crate) fn seconds(&self, answering: u32, silent: u32) -> f64 {
        let rows = answering + silent;
        let (all, none) = (between(&self.answering, rows), between(&self.silent, rows));
        // The output matrix takes its share for the rows that want it, and whole passes over it for the first of them.
        match (answering, silent) {
            (_, 0) => all,
            (0, _) => none,
            (some, _) => none + (between(&self.answering, some) - between(&self.silent, some)).max(0.0),
        }
    }
}

/// The value at `rows`, on straight lines between the points, and on the last line beyond them.
fn between(points: &[(u32, f64)], rows: u32) -> f64 {
    let at = points.partition_point(|(measured, _)| *measured < rows);
    let (Some(&(_, first)), Some(&(most, last))) = (points.first(), points.last()) else { return 0.0 };
    match (at.checked_sub(1).map(|before| points[before]), points.get(at)) {
        (None, _) => first,
        (Some(_), None) => last * f64::from(rows) / f64::from(most),
        (Some((low, start)), Some(&(high, end))) => {
            start + (end - start) * f64::from(rows - low) / f64::from(high - low)
        }
    }
}

/// What the real model said: for each cache, the tokens of the prompt and of its answer.
pub(crate) type Recordings = Arc<Mutex<HashMap<CacheId, Vec<u32>>>>;

/// A stage that takes its time and computes nothing.
#[derive(Debug)]
struct Paced {
    shape: StageShape,
    pace: Pace,
    recordings: Recordings,
    /// Positions of the last step's rows, by cache: whole rows are asked for by their place in it.
    last: HashMap<CacheId, Vec<u32>>,
}

/// How far the recorded token is ahead: more than any bias or penalty takes away.
const AHEAD: f32 = 30.0;

impl Paced {
    fn run(&mut self, step: &mut Step) -> Output {
        let width = self.shape.width as usize;
        let positions = step.positions(self.shape.width);
        let at: Vec<u32> = step.tree.depths(positions).iter().map(|depth| step.start + depth).collect();
        let hidden = match std::mem::replace(&mut step.input, Input::Tokens(Vec::new())) {
            Input::Hidden(hidden) => hidden,
            Input::Tokens(tokens) => Hidden(tokens.iter().flat_map(|token| likely(*token, width)).collect()),
        };
        let rows = match (self.shape.spec.tail, step.rows) {
            (false, _) => return Output::Hidden(hidden),
            (true, Rows::None | Rows::Mean) => 0..0,
            (true, Rows::Last) => positions.saturating_sub(1)..positions,
            (true, Rows::All) => 0..positions,
        };
        let logits = at[rows].iter().map(|position| self.logits(step.cache, *position, step.top)).collect();
        self.last.insert(step.cache, at);
        Output::Logits(logits)
    }

    /// The recorded token first, and as many others far behind it as were asked for.
    fn logits(&self, cache: CacheId, position: u32, top: u16) -> Logits {
        let token = self.recorded(cache, position);
        if top == 0 {
            return Logits::Whole(self.whole(token));
        }
        let others = (0..self.shape.vocabulary).filter(|other| *other != token).map(|other| (other, 0.0));
        let largest = std::iter::once((token, AHEAD)).chain(others).take(top.into()).collect();
        Logits::Top { largest, log_sum_exp: AHEAD }
    }

    fn whole(&self, token: u32) -> Hidden {
        Hidden((0..self.shape.vocabulary).map(|other| if other == token { AHEAD } else { 0.0 }).collect())
    }

    /// The token that follows `position`; what follows the recording's end is nothing in particular.
    fn recorded(&self, cache: CacheId, position: u32) -> u32 {
        let recordings = self.recordings.lock().unwrap_or_else(PoisonError::into_inner);
        recordings.get(&cache).and_then(|tokens| tokens.get(position as usize + 1)).copied().unwrap_or_default()
    }

    fn seconds(&self, steps: &[Step]) -> f64 {
        let (mut answering, mut silent) = (0, 0);
        for step in steps {
            let positions = step.positions(self.shape.width) as u32;
            let answered = match step.rows {
                Rows::None | Rows::Mean => 0,
                Rows::Last => positions.min(1),
                Rows::All => positions,
            };
            answering += answered;
            silent += positions - answered;
        }
        self.pace.seconds(answering, silent)
    }
}

impl Stage for Paced {
    fn shape(&self) -> &StageShape {
        &self.shape
    }

    fn open(&mut self, _: CacheId, _: u32) -> Result<(), StageError> {
        Ok(())
    }

    fn fork(&mut self, _: CacheId, _: CacheId, _: u32) -> Result<(), StageError> {
        Ok(())
    }

    fn close(&mut self, cache: CacheId) {
        self.last.remove(&cache);
    }

    fn forward(&mut self, steps: &mut [Step]) -> Vec<Result<Output, StageError>> {
        let begun = Instant::now();
        let due = Duration::from_secs_f64(self.seconds(steps));
        let outputs = steps.iter_mut().map(|step| Ok(self.run(step))).collect();
        thread::sleep(due.saturating_sub(begun.elapsed()));
        outputs
    }

    fn row(&mut self, cache: CacheId, row: u16) -> Result<Hidden, StageError> {
        let rows = self.last.get(&cache).map_or(&[][..], Vec::as_slice);
        Ok(self.whole(rows.get(usize::from(row)).map_or(0, |position| self.recorded(cache, *position))))
    }
}

/// A hidden state as models have them: most values small, one in a hundred large, two of them massive.
fn likely(token: u32, width: usize) -> Vec<f32> {
    let mut chance = fastrand::Rng::with_seed(token.into());
    let value = |channel: usize| {
        // The sum of four is near enough to a bell.
        let bell = (0..4).map(|_| chance.f32() - 0.5).sum::<f32>();
        match channel {
            7 | 311 => 3_000.0 + 200.0 * bell,
            _ if channel.is_multiple_of(97) => 40.0 * bell,
            _ => 2.0 * bell,
        }
    };
    (0..width).map(value).collect()
}

/// Starts such a stage on a thread of its own, which ends with the port.
pub(crate) fn start(spec: StageSpec, pace: Pace, recordings: Recordings) -> (StageShape, StagePort) {
    let shape = StageShape {
        spec,
        width: pace.width,
        vocabulary: pace.vocabulary,
        caches: pace.caches,
        context: pace.context,
        cache_bytes_per_position: 0,
        weight_bytes: 0,
        exact: false,
    };
    let (commands, mut asked) = mpsc::channel::<StageCommand>(64);
    let (answered, replies) = mpsc::channel::<StageReply>(64);
    let mut stage = Paced { shape: shape.clone(), pace, recordings, last: HashMap::new() };
    thread::spawn(move || {
        while let Some(command) = asked.blocking_recv() {
            let begun = Instant::now();
            let Some(mut reply) = command.apply(&mut stage) else { continue };
            if let StageReply::Forwarded { compute_us, .. } = &mut reply {
                *compute_us = begun.elapsed().as_micros() as u64;
            }
            if answered.blocking_send(reply).is_err() {
                return;
            }
        }
    });
    (shape, StagePort { commands, replies })
}

#[cfg(test)]
mod tests {
    use potluck_core::{LayerRange, ModelId, Tree};

    use super::*;

    fn pace() -> Pace {
        let silent = vec![(1, 0.0), (4, 0.0)];
        Pace { answering: vec![(1, 0.0), (4, 0.0)], silent, width: 4, vocabulary: 100, context: 16, caches: 1 }
    }

    #[test]
    fn times_lie_on_lines_between_what_was_measured() {
        let points = [(1, 1.0), (2, 1.5), (4, 3.5), (8, 7.0)];
        let times: Vec<f64> = [0, 1, 2, 3, 4, 6, 16].iter().map(|rows| between(&points, *rows)).collect();
        assert_eq!(times, [1.0, 1.0, 1.5, 2.5, 3.5, 5.25, 14.0]);
        assert_eq!(between(&[], 3), 0.0);
    }

    #[test]
    fn only_rows_with_logits_pay_for_them() {
        let pace = Pace { answering: vec![(1, 3.0), (8, 10.0)], silent: vec![(1, 1.0), (8, 4.0)], ..pace() };
        assert_eq!(pace.seconds(8, 0), 10.0);
        assert_eq!(pace.seconds(0, 8), 4.0);
        assert_eq!(pace.seconds(1, 7), 4.0 + 2.0);
    }

    #[test]
    fn a_tail_says_what_was_recorded_at_each_position() {
        let spec = StageSpec {
            model: ModelId::from_bytes([0; 32]),
            layers: LayerRange::new(1, 2).unwrap(),
            head: false,
            tail: true,
        };
        let recordings = Recordings::default();
        recordings.lock().unwrap().insert(CacheId(3), vec![10, 11, 12, 13]);
        let (shape, _port) = start(spec, pace(), recordings.clone());
        let mut stage = Paced { shape, pace: pace(), recordings, last: HashMap::new() };
        let input = Input::Hidden(Hidden(vec![0.0; 8]));
        let mut steps = [Step { cache: CacheId(3), start: 1, input, rows: Rows::All, top: 2, tree: Tree::chain() }];
        let outputs = stage.forward(&mut steps);
        let Ok(Output::Logits(rows)) = &outputs[0] else { panic!("{outputs:?}") };
        let first = |row: &Logits| match row {
            Logits::Top { largest, .. } => (largest[0].0, largest.len()),
            Logits::Whole(_) => panic!("not the whole row"),
        };
        assert_eq!(rows.iter().map(first).collect::<Vec<_>>(), [(12, 2), (13, 2)]);
        let whole = stage.row(CacheId(3), 1).unwrap().0;
        assert_eq!(whole.iter().position(|logit| *logit > 0.0), Some(13));
        // Two guesses for the position behind the first row, and one behind the second of them.
        let (input, tree) = (Input::Hidden(Hidden(vec![0.0; 16])), Tree::new(vec![0, 0, 0, 2]).unwrap());
        let mut steps = [Step { cache: CacheId(3), start: 0, input, rows: Rows::All, top: 2, tree }];
        let outputs = stage.forward(&mut steps);
        let Ok(Output::Logits(rows)) = &outputs[0] else { panic!("{outputs:?}") };
        assert_eq!(rows.iter().map(first).collect::<Vec<_>>(), [(11, 2), (12, 2), (12, 2), (13, 2)]);
    }
}
