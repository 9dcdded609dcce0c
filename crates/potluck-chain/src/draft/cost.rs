//! What a step costs, by its rows, as measured.

use super::scale::{Place, ascending};

/// Rows at which the time is measured; between them it is interpolated. Engines are not linear in the rows: they change
/// their kernels with the batch.
const MARKS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// Observations that an average remembers.
const MEMORY: f64 = 24.0;

/// Of a surprise at one mark, how much every mark shares: most of what drifts is the way, not the row.
const COMMON: f64 = 0.7;

/// Observations before a surprise counts as drift, and before an outlier is cut.
const FAMILIAR: f64 = 3.0;

/// Where nothing wider than a row was seen: what a further row costs, of the first.
const ROW_GUESS: f64 = 0.1;

/// Seconds by rows: an average at each mark, forgetting; ascending; a line where nothing was seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Curve {
    mean: [f64; MARKS.len()],
    seen: [f64; MARKS.len()],
    filled: [f64; MARKS.len()],
    widest: usize,
}

impl Curve {
    /// Whether anything was measured.
    pub(super) fn is_known(&self) -> bool {
        self.widest > 0
    }

    /// How often a single row was measured, as far as it is remembered.
    pub(super) fn singles(&self) -> f64 {
        self.seen[0]
    }

    /// The most rows that were measured.
    pub(super) fn widest(&self) -> usize {
        self.widest
    }

    /// Seconds for so many rows; 0 where nothing was measured.
    pub(super) fn at(&self, rows: f64) -> f64 {
        Place::of(rows, &MARKS).on(&self.filled)
    }

    /// Seconds that a further row costs in a step of about so many.
    pub(super) fn per_row(&self, rows: f64) -> f64 {
        let (low, high) = ((rows / 2.0).max(1.0), rows * 1.5 + 1.0);
        (self.at(high) - self.at(low)) / (high - low)
    }

    /// A step of `rows` took `seconds`. Returns what of it is beyond all that could be expected.
    pub(super) fn measured(&mut self, rows: usize, seconds: f64) -> f64 {
        let place = Place::of(rows as f64, &MARKS);
        let expected = place.on(&self.filled);
        let familiar = place.shares().iter().all(|(mark, share)| *share == 0.0 || self.seen[*mark] >= FAMILIAR);
        let taken = if familiar { seconds.min(3.0 * expected) } else { seconds };
        let surprise = taken - expected;
        // As slowly as the mark itself moves, and no faster than one that is known well enough.
        let pace: f64 = place.shares().iter().map(|(mark, share)| share / self.seen[*mark].max(MEMORY / 2.0)).sum();
        for mark in 0..MARKS.len() {
            let share = place.shares().iter().find(|(at, _)| *at == mark).map_or(0.0, |(_, share)| *share);
            if share > 0.0 {
                // The first time, the average starts at what the other marks let expect here.
                let before = if self.seen[mark] > 0.0 { self.mean[mark] } else { self.filled[mark] };
                self.seen[mark] = self.seen[mark] * (1.0 - share / MEMORY) + share;
                self.mean[mark] = before + surprise * share / self.seen[mark].max(1.0);
            } else if familiar {
                self.mean[mark] = (self.mean[mark] + COMMON * surprise * pace).max(0.0);
            }
        }
        self.widest = self.widest.max(rows);
        self.fill();
        seconds - taken
    }

    /// Draws the line through what was seen.
    fn fill(&mut self) {
        let seen: Vec<usize> = (0..MARKS.len()).filter(|mark| self.seen[*mark] > 0.0).collect();
        let (Some(first), Some(last)) = (seen.first().copied(), seen.last().copied()) else { return };
        let per_row = self.slope(&seen);
        self.filled = self.mean;
        ascending(&mut self.filled, &self.seen.map(|seen| seen + 1e-9));
        for mark in 0..MARKS.len() {
            let from = |known: usize| self.filled[known] + per_row * (MARKS[mark] - MARKS[known]);
            self.filled[mark] = match (mark < first, mark > last, self.seen[mark] > 0.0) {
                (true, ..) => from(first).max(self.filled[first] * MARKS[mark] / MARKS[first]),
                (_, true, _) => from(last),
                (.., true) => self.filled[mark],
                _ => {
                    // Between two that were seen, the lower of which is filled already.
                    let above = seen.iter().copied().find(|known| *known > mark).unwrap_or(last);
                    let (low, high) = (MARKS[mark - 1], MARKS[above]);
                    let way = (MARKS[mark] - low) / (high - low);
                    self.filled[mark - 1] + way * (self.filled[above] - self.filled[mark - 1])
                }
            };
        }
    }

    /// Seconds a row, by least squares over what was seen; at least 0.
    fn slope(&self, seen: &[usize]) -> f64 {
        let weight: f64 = seen.iter().map(|mark| self.seen[*mark]).sum();
        let mean =
            |of: &dyn Fn(usize) -> f64| seen.iter().map(|mark| self.seen[*mark] * of(*mark)).sum::<f64>() / weight;
        let (rows, seconds) = (mean(&|mark| MARKS[mark]), mean(&|mark| self.mean[mark]));
        let spread = mean(&|mark| (MARKS[mark] - rows).powi(2));
        if seen.len() < 2 || spread <= 0.0 {
            return ROW_GUESS * seconds / rows;
        }
        (mean(&|mark| (MARKS[mark] - rows) * (self.mean[mark] - seconds)) / spread).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A laptop's stages: 9 ms for a row, 159 ms for 32.
    fn laptop(rows: usize) -> f64 {
        Place::of(rows as f64, &MARKS).on(&[0.009, 0.016, 0.025, 0.046, 0.082, 0.159, 0.313])
    }

    #[test]
    fn a_curve_is_learnt_from_a_few_widths() {
        let mut curve = Curve::default();
        for rows in [1, 1, 2, 4, 8, 1, 2, 4, 8] {
            curve.measured(rows, 0.05 + laptop(rows));
        }
        for rows in [1, 2, 3, 5, 8] {
            let (is, should) = (curve.at(rows as f64), 0.05 + laptop(rows));
            assert!((is - should).abs() < 0.01 * should, "{rows}: {is} instead of {should}");
        }
        let (is, should) = (curve.at(32.0), 0.05 + laptop(32));
        assert!((is - should).abs() < 0.15 * should, "{is} instead of {should}");
        assert!((curve.per_row(4.0) - 0.005).abs() < 0.001);
    }

    #[test]
    fn a_longer_way_is_noticed_at_all_widths() {
        let mut curve = Curve::default();
        for rows in [1, 8].repeat(10) {
            curve.measured(rows, 0.05 + laptop(rows));
        }
        let before = curve.at(1.0);
        for _ in 0..60 {
            curve.measured(8, 0.15 + laptop(8));
        }
        assert!((curve.at(8.0) - 0.15 - laptop(8)).abs() < 0.01);
        assert!(curve.at(1.0) - before > 0.04);
    }

    #[test]
    fn an_outlier_moves_little_and_is_told() {
        let mut curve = Curve::default();
        (0..10).for_each(|_| assert_eq!(curve.measured(1, 0.1), 0.0));
        assert!((curve.measured(1, 60.0) - 59.7).abs() < 1e-9);
        assert!(curve.at(1.0) < 0.13);
    }

    #[test]
    fn more_rows_never_cost_less() {
        let mut curve = Curve::default();
        for (rows, seconds) in [(1, 0.1), (4, 0.05), (2, 0.2), (16, 0.01), (64, 0.3)] {
            curve.measured(rows, seconds);
            assert!((1..64).all(|rows| curve.at(rows as f64) <= curve.at(rows as f64 + 1.0) + 1e-12));
        }
    }
}
