//! A stage over llama.cpp: layers that are loaded, and the sessions' caches in them.

mod caches;
mod group;
mod load;
mod outputs;
mod pace;
mod state;
mod tree;

use std::time::{Duration, Instant};

use potluck_core::{CacheId, Hidden, Input, Output, Rows, Stage, StageError, StageShape, StatePart, Step, bounds};

use crate::llama::{Batch, Context, DecodeError, Rows as Content, Table};

use caches::Caches;
use group::{Ready, groups};
pub use outputs::KEPT_ROWS_MAX;
use pace::Pace;
use state::Passing;

/// A layer range that llama.cpp has loaded in this process.
///
/// It keeps the promises of [`Stage`]: a step may be sent again, from any start; sessions never see each other's rows;
/// a result that is not finite is an error and not sent on. llama.cpp aborts the process on some hostile models, so a
/// peer runs this in a child ([`EngineProcess`](crate::EngineProcess)).
pub struct LlamaStage {
    shape: StageShape,
    chunk: usize,
    entry: Entry,
    // Freed in this order: the context before the caches' bookkeeping matters to nobody, but before the model it must.
    context: Context,
    batch: Batch,
    caches: Caches,
    /// Threads for a single position, and for a batch; half of them while others compute here.
    threads: (u16, u16),
    pace: Pace,
    wipe_within: Option<Duration>,
    /// When the first session was closed whose cells still hold what they held.
    unwiped_since: Option<Instant>,
    /// What a cache holds, while it is given to somebody or comes from somebody.
    passing: Option<Passing>,
}

/// How a step's input enters the graph.
enum Entry {
    /// Hidden states of the stage before.
    Hidden,
    /// Tokens, looked up by us: the graph sees hidden states.
    Table(Table),
    /// Tokens, as they are: the whole model.
    Tokens,
}

impl std::fmt::Debug for LlamaStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LlamaStage").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Stage for LlamaStage {
    fn shape(&self) -> &StageShape {
        &self.shape
    }

    /// Opens `cache`; one that is open already is emptied.
    fn open(&mut self, cache: CacheId, positions: u32) -> Result<(), StageError> {
        self.close(cache);
        if positions > self.shape.context {
            return Err(StageError::ContextFull { end: positions, context: self.shape.context });
        }
        self.caches.open(cache, positions).map(|_| ())
    }

    fn fork(&mut self, from: CacheId, to: CacheId, positions: u32) -> Result<(), StageError> {
        let source = self.caches.get(from)?;
        let (source_slot, held) = (source.slot, source.held);
        if held < positions {
            return Err(StageError::Gap { start: positions, held });
        }
        if from == to {
            return self.truncate(from, positions);
        }
        self.close(to);
        let slot = self.caches.open(to, self.shape.context)?;
        if positions == 0 {
            return Ok(());
        }
        self.context.copy(source_slot, slot);
        self.caches.get_mut(to)?.held = held;
        self.truncate(to, positions).inspect_err(|_| self.close(to))
    }

    fn close(&mut self, cache: CacheId) {
        self.passing.take_if(|passing| passing.cache == cache);
        let Some(slot) = self.caches.close(cache) else { return };
        self.context.truncate(slot, 0);
        if self.wipe_within.is_none() {
            return;
        }
        self.batch.clear();
        self.context.reset_capture();
        // Nobody's positions stay behind: `seq_rm` only forgets where they were.
        if self.caches.is_empty() {
            self.context.wipe();
            self.unwiped_since = None;
        } else {
            self.unwiped_since.get_or_insert_with(Instant::now);
        }
    }

    fn forward(&mut self, steps: &mut [Step]) -> Vec<Result<Output, StageError>> {
        let mut results: Vec<Option<Result<Output, StageError>>> = steps.iter().map(|_| None).collect();
        let mut ready = Vec::with_capacity(steps.len());
        for index in 0..steps.len() {
            let twice = steps[..index].iter().any(|earlier| earlier.cache == steps[index].cache);
            match self.prepare(&steps[index], index, twice) {
                Ok(step) => ready.push(step),
                Err(error) => results[index] = Some(Err(error)),
            }
        }
        for group in groups(ready, self.chunk, self.shape.exact) {
            self.run(steps, &group, &mut results);
        }
        let unanswered = || Err(StageError::Engine("the step was left out".into()));
        results.into_iter().map(|result| result.unwrap_or_else(unanswered)).collect()
    }

    fn row(&mut self, cache: CacheId, row: u16) -> Result<Hidden, StageError> {
        let vocabulary = self.shape.vocabulary as usize;
        let kept = &self.caches.get(cache)?.kept;
        let row = kept.row(row, vocabulary).ok_or_else(|| {
            StageError::BadInput(format!("row {row} was not kept; a step keeps its last {KEPT_ROWS_MAX} rows"))
        })?;
        Ok(Hidden(row.to_vec()))
    }

    fn export(&mut self, cache: CacheId, offset: u64) -> Result<StatePart, StageError> {
        self.give_state(cache, offset)
    }

    fn import(&mut self, cache: CacheId, part: StatePart) -> Result<(), StageError> {
        self.take_state(cache, part)
    }
}

impl LlamaStage {
    /// Overwrites the cells of sessions that were closed, where it is time; how long until it is, where any are left.
    ///
    /// What open sessions hold is copied out of the way and back: llama.cpp overwrites all of a memory or nothing.
    pub fn tend(&mut self) -> Option<Duration> {
        let due = self.unwiped_since? + self.wipe_within?;
        let left = due.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(left);
        }
        self.unwiped_since = None;
        let lost = self.context.wipe_around(&self.caches.slots());
        // Their next steps find a gap, and they end.
        self.caches.lose(&lost);
        None
    }

    /// Checks `step` and cuts its cache back to its start.
    fn prepare(&mut self, step: &Step, index: usize, twice: bool) -> Result<Ready, StageError> {
        let cache = self.caches.get(step.cache)?;
        let (held, limit) = (cache.held, cache.limit);
        if twice {
            return Err(StageError::BadInput(format!("cache {:?} has two steps in one call", step.cache)));
        }
        let rows = self.check_input(step)?;
        if step.start > held {
            return Err(StageError::Gap { start: step.start, held });
        }
        let end = step.start.saturating_add(step.tree.positions(rows));
        if end > limit {
            return Err(StageError::ContextFull { end, context: limit });
        }
        self.truncate(step.cache, step.start)?;
        // Whoever computes in a cache is given nothing any more.
        self.passing.take_if(|passing| passing.cache == step.cache && !passing.leaves);
        let cache = self.caches.get_mut(step.cache)?;
        cache.kept.clear();
        let alone = step.rows == Rows::Mean || !step.tree.is_chain();
        Ok(Ready { index, cache: step.cache, slot: cache.slot, start: step.start, rows, alone })
    }

    /// The rows of `step`, if its input is what this stage takes.
    fn check_input(&self, step: &Step) -> Result<usize, StageError> {
        let bad = |why: String| Err(StageError::BadInput(why));
        let rows = step.positions(self.shape.width);
        match (&step.input, &self.entry) {
            (Input::Hidden(hidden), Entry::Hidden) if hidden.0.iter().all(|value| value.is_finite()) => {}
            (Input::Hidden(_), Entry::Hidden) => return bad("a hidden state is not finite".into()),
            (Input::Hidden(_), _) => return bad("the head of the chain takes tokens".into()),
            (Input::Tokens(_), Entry::Hidden) => return bad("only the head of the chain takes tokens".into()),
            (Input::Tokens(tokens), _) => {
                if let Some(token) = tokens.iter().find(|&&token| token >= self.shape.vocabulary) {
                    return bad(format!("token {token} is not in the vocabulary of {}", self.shape.vocabulary));
                }
            }
        }
        if rows == 0 || rows > self.chunk {
            return bad(format!("a step of {rows} rows; 1 to {} run at once", self.chunk));
        }
        if step.rows == Rows::Mean && (rows > bounds::MEAN_POSITIONS_MAX || step.top != 0) {
            return bad(format!("the mean of {rows} positions; of {} at most", bounds::MEAN_POSITIONS_MAX));
        }
        if !step.tree.fits(rows) {
            return bad(format!("a tree of {} rows for {rows}", step.tree.parents().len()));
        }
        if !step.tree.is_chain() && step.rows == Rows::Mean {
            return bad("a tree has no mean".into());
        }
        let whole_rows = if step.rows == Rows::All && step.top == 0 { rows } else { 1 };
        let bytes = whole_rows * self.shape.vocabulary as usize * size_of::<f32>();
        if self.shape.spec.tail && bytes > bounds::STEP_BYTES_MAX {
            let limit = bounds::STEP_BYTES_MAX;
            return bad(format!("{whole_rows} whole rows take {bytes} bytes; the limit is {limit}: ask for the top"));
        }
        Ok(rows)
    }

    fn truncate(&mut self, id: CacheId, start: u32) -> Result<(), StageError> {
        let cache = self.caches.get_mut(id)?;
        if cache.held > start {
            if !self.context.truncate(cache.slot, start) {
                return Err(StageError::CannotTruncate(start));
            }
            cache.held = start;
        }
        Ok(())
    }

    /// Runs the steps of `group` as one batch, and each alone where that fails.
    fn run(&mut self, steps: &[Step], group: &[Ready], results: &mut [Option<Result<Output, StageError>>]) {
        if let [ready] = group
            && !steps[ready.index].tree.is_chain()
        {
            results[ready.index] = Some(self.run_tree(&steps[ready.index], ready));
            return;
        }
        match self.decode(steps, group) {
            Ok(()) => {
                let mut first_row = 0;
                for ready in group {
                    let output = self.finish(&steps[ready.index], ready, first_row);
                    if output.is_err() {
                        let _ = self.undo(ready);
                    }
                    results[ready.index] = Some(output);
                    first_row += ready.rows;
                }
            }
            Err(error) => {
                let undone: Vec<_> = group.iter().map(|ready| self.undo(ready)).collect();
                for (ready, undone) in group.iter().zip(undone) {
                    match undone {
                        Ok(()) if group.len() > 1 => self.run(steps, std::slice::from_ref(ready), results),
                        Ok(()) => results[ready.index] = Some(Err(StageError::Engine(error.to_string()))),
                        Err(error) => results[ready.index] = Some(Err(error)),
                    }
                }
            }
        }
    }

    /// Drops whatever a failed step left in its cache.
    fn undo(&mut self, ready: &Ready) -> Result<(), StageError> {
        let cache = self.caches.get_mut(ready.cache)?;
        cache.kept.clear();
        cache.held = ready.start;
        match self.context.truncate(ready.slot, ready.start) {
            true => Ok(()),
            false => Err(StageError::CannotTruncate(ready.start)),
        }
    }

    fn decode(&mut self, steps: &[Step], group: &[Ready]) -> Result<(), Failure> {
        self.batch.clear();
        for ready in group {
            let step = &steps[ready.index];
            self.enter(&step.input, 0..ready.rows)?;
            for row in 0..ready.rows {
                let wanted = self.is_wanted(step.rows, row + 1 == ready.rows);
                self.batch.push(ready.slot, ready.start + row as u32, wanted);
            }
        }
        // Only then does llama.cpp keep them.
        let means = self.shape.spec.tail && group.iter().any(|ready| steps[ready.index].rows == Rows::Mean);
        if means {
            self.context.keep_states(true);
        }
        let start = Instant::now();
        let decoded = self.context.decode(&mut self.batch);
        if means {
            self.context.keep_states(false);
        }
        decoded?;
        if self.batch.len() == 1 && self.pace.took(start.elapsed().as_secs_f64()) {
            self.change_threads();
        }
        Ok(())
    }

    /// Puts the content of some rows of a step into the batch.
    fn enter(&mut self, input: &Input, rows: std::ops::Range<usize>) -> Result<(), Failure> {
        let width = self.shape.width as usize;
        let missing = || Failure::Input("the input does not fit the stage".into());
        let values = rows.start * width..rows.end * width;
        match (input, &mut self.batch.rows, &mut self.entry) {
            (Input::Hidden(hidden), Content::Hidden(into), _) => {
                into.extend_from_slice(hidden.0.get(values).ok_or_else(missing)?);
            }
            (Input::Tokens(tokens), Content::Hidden(into), Entry::Table(table)) => {
                table.look_up(tokens.get(rows).ok_or_else(missing)?, into)?;
            }
            (Input::Tokens(tokens), Content::Tokens(into), _) => {
                into.extend(tokens.get(rows).ok_or_else(missing)?.iter().map(|&t| t as i32));
            }
            _ => return Err(missing()),
        }
        Ok(())
    }

    /// Whether the graph is to give a row's output.
    fn is_wanted(&self, rows: Rows, last: bool) -> bool {
        match rows {
            _ if !self.shape.spec.tail => true,
            Rows::None => false,
            Rows::Last => last,
            Rows::All | Rows::Mean => true,
        }
    }

    fn change_threads(&mut self) {
        let halved = self.pace.is_halved();
        tracing::debug!(halved, "the number of threads changes");
        let share = |threads: u16| if halved { threads.div_ceil(2) } else { threads };
        self.context.use_threads(share(self.threads.0), share(self.threads.1));
    }
}

/// Why a batch gave nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Input(String),
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Input(why)
    }
}
