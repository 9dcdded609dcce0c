//! What a batch gives back to each of its steps.

use std::ops::Range;

use potluck_core::{Hidden, Logits, Output, Rows, StageError, Step};

use super::{LlamaStage, group::Ready};

/// Whole rows of logits that a tail keeps of a session's last step, for a client that asks for more than the largest:
/// the last ones. Drafts to verify are fewer; scoring a text asks for no row again.
pub const KEPT_ROWS_MAX: usize = 32;

/// Whole rows of logits of a session's last step.
#[derive(Default)]
pub(super) struct Kept {
    /// Which rows of the step.
    rows: Vec<usize>,
    /// One row after the other.
    values: Vec<f32>,
}

impl Kept {
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.values.clear();
    }

    fn push(&mut self, row: usize, logits: &[f32]) {
        self.rows.push(row);
        self.values.extend_from_slice(logits);
    }

    /// The logits of the step's row `row`, if they were kept.
    pub(super) fn row(&self, row: u16, vocabulary: usize) -> Option<&[f32]> {
        let at = self.rows.iter().position(|&kept| kept == usize::from(row))?;
        let start = at.checked_mul(vocabulary)?;
        self.values.get(start..start.checked_add(vocabulary)?)
    }
}

impl LlamaStage {
    /// The output of a step whose rows begin at `first_row` of the batch that just ran.
    pub(super) fn finish(&mut self, step: &Step, ready: &Ready, first_row: usize) -> Result<Output, StageError> {
        let output = match step.rows {
            Rows::Mean if self.shape.spec.tail => Output::Logits(vec![Logits::Whole(self.mean(ready, first_row)?)]),
            _ => self.output_of(step, ready, 0..ready.rows, first_row)?,
        };
        self.caches.get_mut(ready.cache)?.held = ready.start + ready.rows as u32;
        Ok(output)
    }

    /// The output of some rows of a step, which were all of the batch that just ran.
    pub(super) fn output(&mut self, step: &Step, ready: &Ready, rows: Range<usize>) -> Result<Output, StageError> {
        self.output_of(step, ready, rows, 0)
    }

    /// The same, where the first of them was `first_row` of the batch.
    fn output_of(
        &mut self,
        step: &Step,
        ready: &Ready,
        rows: Range<usize>,
        first_row: usize,
    ) -> Result<Output, StageError> {
        match self.shape.spec.tail {
            true => Ok(Output::Logits(self.logits(step, ready, rows, first_row)?)),
            false => Ok(Output::Hidden(self.hidden(ready, rows, first_row)?)),
        }
    }

    fn hidden(&self, ready: &Ready, of_step: Range<usize>, first_row: usize) -> Result<Hidden, StageError> {
        let width = self.shape.width as usize;
        let rows = self.context.captured().get(first_row * width..(first_row + of_step.len()) * width);
        let rows = rows.ok_or_else(|| StageError::Engine("a row is missing".into()))?;
        match rows.iter().position(|value| !value.is_finite()) {
            None => Ok(Hidden(rows.to_vec())),
            Some(at) => Err(not_finite(ready, of_step.start + at / width)),
        }
    }

    /// The mean of the step's hidden states as the output matrix sees them.
    fn mean(&self, ready: &Ready, first_row: usize) -> Result<Hidden, StageError> {
        let mut sum = vec![0f64; self.shape.width as usize];
        for row in 0..ready.rows {
            let state = self.context.state(first_row + row);
            let state = state.ok_or_else(|| StageError::Engine("a row's state is missing".into()))?;
            if !state.iter().all(|value| value.is_finite()) {
                return Err(not_finite(ready, row));
            }
            sum.iter_mut().zip(state).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        Ok(Hidden(sum.into_iter().map(|sum| (sum / ready.rows as f64) as f32).collect()))
    }

    /// The logits of some rows of a step, as far as they were asked for.
    fn logits(
        &mut self,
        step: &Step,
        ready: &Ready,
        of_step: Range<usize>,
        first_row: usize,
    ) -> Result<Vec<Logits>, StageError> {
        let asked = match step.rows {
            Rows::None | Rows::Mean => 0..0,
            Rows::Last => of_step.start.max(ready.rows - 1)..of_step.end,
            Rows::All => of_step.clone(),
        };
        let kept_from = ready.rows.saturating_sub(KEPT_ROWS_MAX);
        let cache = self.caches.get_mut(ready.cache)?;
        let mut out = Vec::with_capacity(asked.len());
        for row in asked {
            let logits = self.context.logits(first_row + row - of_step.start);
            let logits = logits.ok_or_else(|| StageError::Engine("a row of logits is missing".into()))?;
            if logits.iter().any(|value| value.is_nan()) {
                return Err(not_finite(ready, row));
            }
            if row >= kept_from {
                cache.kept.push(row, logits);
            }
            out.push(match step.top {
                0 => Logits::Whole(Hidden(logits.to_vec())),
                top => Logits::reduce(logits, top.into()),
            });
        }
        Ok(out)
    }
}

fn not_finite(ready: &Ready, row: usize) -> StageError {
    StageError::Engine(format!("the result at position {} is not finite", ready.start as usize + row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_rows_are_found_by_their_place_in_the_step() {
        let mut kept = Kept::default();
        kept.push(5, &[3.0, 4.0]);
        kept.push(4, &[1.0, 2.0]);
        assert_eq!(kept.row(4, 2), Some([1.0, 2.0].as_slice()));
        assert_eq!(kept.row(5, 2), Some([3.0, 4.0].as_slice()));
        assert_eq!((kept.row(3, 2), kept.row(6, 2), kept.row(u16::MAX, usize::MAX)), (None, None, None));
        kept.clear();
        assert_eq!(kept.row(4, 2), None);
    }
}
