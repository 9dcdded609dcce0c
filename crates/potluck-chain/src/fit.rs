//! What a step costs, learned from steps that were answered: so much for each, and so much for each of its rows.

/// Classes of steps by their size: 1 row, 2, 3 to 4, and so on. The last has all that are larger.
const CLASSES: usize = 12;

/// Part that the newest step has in the mean of its class, once there are more: about the last ten count.
const NEWEST: f64 = 0.1;

/// What a class keeps of its weight at each step of another class: what was seen long ago yields where newer steps contradict.
const KEPT: f64 = 0.98;

/// Weight that a class keeps for ever. Steps of one size alone cannot tell the two costs apart: what larger or smaller ones
/// cost once is all that is known, and must outlive a long answer.
const WEIGHT_MIN: f64 = 1e-3;

/// A step counts as at most that many usual deviations away from what was expected: one that met a pause changes little.
const DEVIATIONS_MAX: f64 = 3.0;

/// No step is that quick, nor that slow: a clock was wrong.
const SECONDS_MIN: f64 = 1e-7;
const SECONDS_MAX: f64 = 1e5;

/// Least and largest usual deviation, as a share of what is expected.
const SPREAD: [f64; 2] = [0.02, 1.0];

/// Time of a step: `fixed + per_row * rows`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Seconds that a step of any size takes, such as a pass over the weights, a wake-up, a hand-over.
    pub fixed: f64,
    /// Seconds for each row.
    pub per_row: f64,
}

impl Fit {
    /// Seconds of a step of so many rows.
    pub fn seconds(&self, rows: usize) -> f64 {
        self.fixed + self.per_row * rows as f64
    }
}

/// Steps of about one size.
#[derive(Debug, Clone, Copy, Default)]
struct Class {
    /// None yet where it is 0.
    weight: f64,
    /// Means.
    rows: f64,
    seconds: f64,
}

/// Measured steps, of which old ones are forgotten.
///
/// A recursive least-squares fit of two costs in which errors count as shares of the time, since noise grows with it, and in
/// which each class of sizes forgets by itself: a long answer, whose steps have one row each, does not make it forget what a
/// chunk costs. Single steps that took unusually long count little (Huber, "Robust Estimation of a Location Parameter", 1964).
///
/// It is a line for a stage's steps of up to hundreds of rows, from which prompts are cut. What drafts cost is read off a curve
/// (`draft/cost.rs`), which has a point for each of the few sizes that they have: engines are far from a line there, a step's delays
/// are part of it, and a row more or less decides.
#[derive(Debug, Clone, Default)]
pub struct StepTimes {
    classes: [Class; CLASSES],
    /// How far steps usually are from what was expected of them, as a share of it.
    spread: f64,
}

impl StepTimes {
    /// A step of so many rows took so many seconds. One without rows, or with a time that no step
    /// takes, says nothing.
    pub fn observe(&mut self, rows: usize, seconds: f64) {
        if rows == 0 || !(SECONDS_MIN..SECONDS_MAX).contains(&seconds) {
            return;
        }
        let class = class(rows);
        let known = self.classes[class].weight > 0.0;
        // Of a size that is new the fit says little, and a deviation from it nothing.
        let seconds = if known { self.tamed(rows, seconds) } else { seconds };
        for (at, other) in self.classes.iter_mut().enumerate() {
            if at != class && other.weight > 0.0 {
                other.weight = (other.weight * KEPT).max(WEIGHT_MIN);
            }
        }
        let own = &mut self.classes[class];
        own.weight = own.weight.mul_add(1.0 - NEWEST, 1.0);
        let part = 1.0 / own.weight;
        own.rows += (rows as f64 - own.rows) * part;
        own.seconds += (seconds - own.seconds) * part;
    }

    /// What steps cost; none before the first. Where all had about one size, rows have all of the cost: what a fixed part would
    /// be is not known, and larger steps are not underestimated.
    pub fn fit(&self) -> Option<Fit> {
        // Weighted by the square of the time: an error counts as a share of it.
        let seen = self.classes.iter().filter(|class| class.weight > 0.0);
        let points = seen.map(|class| (class.weight / (class.seconds * class.seconds), class.rows, class.seconds));
        let [mut w, mut wr, mut wrr, mut wt, mut wrt] = [0.0; 5];
        let mut count = 0;
        for (weight, rows, seconds) in points {
            count += 1;
            w += weight;
            wr += weight * rows;
            wrr += weight * rows * rows;
            wt += weight * seconds;
            wrt += weight * rows * seconds;
        }
        let through_zero = Fit { fixed: 0.0, per_row: wrt / wrr };
        match count {
            0 => return None,
            1 => return Some(through_zero),
            _ => {}
        }
        // Around the means, where nothing cancels.
        let (rows, seconds) = (wr / w, wt / w);
        let per_row = (wrt / w - rows * seconds) / (wrr / w - rows * rows);
        let fixed = seconds - per_row * rows;
        Some(match (fixed >= 0.0, per_row >= 0.0) {
            (true, true) => Fit { fixed, per_row },
            (true, false) => Fit { fixed: seconds, per_row: 0.0 },
            _ => through_zero,
        })
    }

    /// The time, no further from what is expected than is usual.
    fn tamed(&mut self, rows: usize, seconds: f64) -> f64 {
        let Some(expected) = self.fit().map(|fit| fit.seconds(rows)).filter(|expected| *expected > 0.0) else {
            return seconds;
        };
        let error = seconds / expected - 1.0;
        let [least, most] = SPREAD;
        let far = DEVIATIONS_MAX * self.spread.clamp(least, most);
        self.spread += (error.abs().min(far).min(most) - self.spread) * NEWEST;
        expected * (1.0 + error.clamp(-far.min(0.9), far))
    }
}

fn class(rows: usize) -> usize {
    rows.clamp(1, 1 << (CLASSES - 1)).next_power_of_two().ilog2() as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn near(fit: Fit, fixed: f64, per_row: f64, share: f64) -> bool {
        [1, 8, 64, 512].into_iter().all(|rows| {
            let truth = fixed + per_row * rows as f64;
            (fit.seconds(rows) / truth - 1.0).abs() < share
        })
    }

    proptest! {
        #[test]
        fn exact_times_are_fitted_exactly(
            fixed in 0.0..0.1, per_row in 1e-6..0.01, sizes in prop::collection::vec(1..512_usize, 4..40),
        ) {
            let mut times = StepTimes::default();
            for rows in [1, 512].into_iter().chain(sizes) {
                times.observe(rows, fixed + per_row * rows as f64);
            }
            let fit = times.fit().unwrap();
            prop_assert!(near(fit, fixed, per_row, 1e-6), "{fit:?}");
        }

        #[test]
        fn anything_gives_costs_that_can_be(steps in prop::collection::vec((prop_oneof![0..2_000_usize, any::<usize>()], any::<f64>()), 0..50)) {
            let mut times = StepTimes::default();
            for (rows, seconds) in steps {
                times.observe(rows, seconds.abs() % 1e3);
            }
            if let Some(fit) = times.fit() {
                prop_assert!(fit.fixed >= 0.0 && fit.per_row >= 0.0 && fit.seconds(512).is_finite(), "{fit:?}");
            }
        }

        #[test]
        fn noise_and_pauses_change_little(
            fixed in 1e-4..0.05, per_row in 1e-5..0.002, seed: u64,
        ) {
            let (mut times, mut chance) = (StepTimes::default(), Chance(seed | 1));
            for _ in 0..300 {
                let rows = [1, 1, 1, 4, 16, 128, 256, 512][(chance.next() * 8.0) as usize];
                let noise = 0.95 + 0.1 * chance.next();
                // One in twenty meets something else that computes.
                let pause = if chance.next() < 0.05 { 1.0 + 9.0 * chance.next() } else { 1.0 };
                times.observe(rows, (fixed + per_row * rows as f64) * noise * pause);
            }
            let fit = times.fit().unwrap();
            prop_assert!(near(fit, fixed, per_row, 0.15), "{fit:?} instead of {fixed} + {per_row} a row");
        }
    }

    /// As even as a test needs it.
    struct Chance(u64);

    impl Chance {
        fn next(&mut self) -> f64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    #[test]
    fn a_long_answer_does_not_make_it_forget_what_a_chunk_costs() {
        let mut times = StepTimes::default();
        let seconds = |rows: usize| 0.01 + 0.001 * rows as f64;
        [256, 256, 128].into_iter().for_each(|rows| times.observe(rows, seconds(rows)));
        (0..100_000).for_each(|_| times.observe(1, seconds(1)));
        assert!(near(times.fit().unwrap(), 0.01, 0.001, 0.01), "{:?}", times.fit());
    }

    #[test]
    fn a_machine_that_has_become_slower_is_believed_after_some_steps() {
        let mut times = StepTimes::default();
        for slower in [1.0, 2.0, 0.5] {
            for _ in 0..40 {
                for rows in [1, 256] {
                    times.observe(rows, slower * (0.01 + 0.001 * rows as f64));
                }
            }
            assert!(near(times.fit().unwrap(), 0.01 * slower, 0.001 * slower, 0.1), "{slower}: {:?}", times.fit());
        }
    }

    #[test]
    fn steps_of_one_size_cost_by_the_row() {
        let mut times = StepTimes::default();
        assert_eq!(times.fit(), None);
        [f64::NAN, f64::INFINITY, 0.0, -1.0].into_iter().for_each(|seconds| times.observe(1, seconds));
        times.observe(0, 1.0);
        assert_eq!(times.fit(), None, "those say nothing");
        times.observe(4, 0.02);
        let fit = times.fit().unwrap();
        assert!(fit.fixed == 0.0 && (fit.per_row - 0.005).abs() < 1e-12, "{fit:?}");
    }
}
