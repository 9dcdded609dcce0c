//! What a batch gives back to each of its steps.

use potluck_core::{Hidden, Logits, Output, Rows, StageError, Step};

use super::{LlamaStage, group::Ready};

/// Whole rows of logits that a tail keeps of a session's last step, for a client that asks for more than the largest:
/// the last ones. Drafts to verify are fewer; scoring a text asks for no row again.
pub const KEPT_ROWS_MAX: usize = 32;

/// Whole rows of logits of a session's last step.
#[derive(Default)]
pub(super) struct Kept {
    /// The step's row that the first of `values` belongs to.
    first: usize,
    values: Vec<f32>,
}

impl Kept {
    pub(super) fn clear(&mut self) {
        self.values.clear();
    }

    fn push(&mut self, row: usize, logits: &[f32]) {
        if self.values.is_empty() {
            self.first = row;
        }
        self.values.extend_from_slice(logits);
    }

    /// The logits of the step's row `row`, if they were kept.
    pub(super) fn row(&self, row: u16, vocabulary: usize) -> Option<&[f32]> {
        let start = usize::from(row).checked_sub(self.first)?.checked_mul(vocabulary)?;
        self.values.get(start..start.checked_add(vocabulary)?)
    }
}

impl LlamaStage {
    /// The output of a step whose rows begin at `first_row` of the batch that just ran.
    pub(super) fn finish(&mut self, step: &Step, ready: &Ready, first_row: usize) -> Result<Output, StageError> {
        let output = match self.shape.spec.tail {
            true if step.rows == Rows::Mean => Output::Logits(vec![Logits::Whole(self.mean(ready, first_row)?)]),
            true => Output::Logits(self.logits(step, ready, first_row)?),
            false => Output::Hidden(self.hidden(ready, first_row)?),
        };
        self.caches.get_mut(ready.cache)?.held = ready.start + ready.rows as u32;
        Ok(output)
    }

    fn hidden(&self, ready: &Ready, first_row: usize) -> Result<Hidden, StageError> {
        let width = self.shape.width as usize;
        let rows = self.context.captured().get(first_row * width..(first_row + ready.rows) * width);
        let rows = rows.ok_or_else(|| StageError::Engine("a row is missing".into()))?;
        match rows.iter().position(|value| !value.is_finite()) {
            None => Ok(Hidden(rows.to_vec())),
            Some(at) => Err(not_finite(ready, at / width)),
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

    fn logits(&mut self, step: &Step, ready: &Ready, first_row: usize) -> Result<Vec<Logits>, StageError> {
        let asked = match step.rows {
            Rows::None | Rows::Mean => 0..0,
            Rows::Last => ready.rows - 1..ready.rows,
            Rows::All => 0..ready.rows,
        };
        let kept_from = ready.rows.saturating_sub(KEPT_ROWS_MAX);
        let cache = self.caches.get_mut(ready.cache)?;
        let mut out = Vec::with_capacity(asked.len());
        for row in asked {
            let logits = self.context.logits(first_row + row);
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
        kept.push(4, &[1.0, 2.0]);
        kept.push(5, &[3.0, 4.0]);
        assert_eq!(kept.row(4, 2), Some([1.0, 2.0].as_slice()));
        assert_eq!(kept.row(5, 2), Some([3.0, 4.0].as_slice()));
        assert_eq!((kept.row(3, 2), kept.row(6, 2), kept.row(u16::MAX, usize::MAX)), (None, None, None));
        kept.clear();
        assert_eq!(kept.row(4, 2), None);
    }
}
