//! A row of logits, reduced to what sampling mostly needs.

use std::cmp::Ordering;

use crate::{Logits, bounds};

/// Terms of the sum that are computed together: wide enough for any vector unit.
const TERMS: usize = 64;

impl Logits {
    /// Reduces a whole row to its `top` largest values and the log-sum-exp.
    ///
    /// Both a remote tail and a client that holds the output matrix itself reduce with this function, so that the
    /// sampler sees the same numbers either way. NaN counts as the smallest value. It is on the path of every token.
    pub fn reduce(row: &[f32], top: usize) -> Self {
        let top = top.min(row.len()).min(bounds::TOP_LOGITS_MAX);
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_sum_exp = if max.is_finite() { (f64::from(max) + sum_exp(row, max).ln()) as f32 } else { max };
        Self::Top { largest: largest(row, top), log_sum_exp }
    }
}

/// `sum(exp(logit - max))` in f64, in order of token id.
fn sum_exp(row: &[f32], max: f32) -> f64 {
    let mut terms = [0.0; TERMS];
    let mut sum = 0.0;
    for chunk in row.chunks(TERMS) {
        for (term, &logit) in terms.iter_mut().zip(chunk) {
            *term = if logit.is_nan() { 0.0 } else { exp(f64::from(logit) - f64::from(max)) };
        }
        sum = terms[..chunk.len()].iter().fold(sum, |sum, term| sum + term);
    }
    sum
}

/// `exp(x)` for `x <= 0`, to 1e-14 of its value, without a branch or a table: the compiler makes vectors of it.
fn exp(x: f64) -> f64 {
    /// Added to a small number it leaves the nearest whole number in the lowest bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    // Below it the result is no normal number, and nothing beside the largest term, which is 1.
    let x = x.max(-700.0);
    let n = (x * std::f64::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let series =
        [1.0, 2.0, 6.0, 24.0, 120.0, 720.0, 5_040.0, 40_320.0, 362_880.0, 3_628_800.0, 39_916_800.0, 479_001_600.0];
    let value = series.iter().rev().fold(0.0, |sum, factorial| (sum + 1.0 / factorial) * r) + 1.0;
    value * f64::from_bits((n + (ROUND + 1_023.0)).to_bits() << 52)
}

/// The `top` largest, in falling order; ties: lower id first.
fn largest(row: &[f32], top: usize) -> Vec<(u32, f32)> {
    let value = |logit: f32| if logit.is_nan() { f32::NEG_INFINITY } else { logit };
    let order = |a: &(u32, f32), b: &(u32, f32)| match value(b.1).total_cmp(&value(a.1)) {
        Ordering::Equal => a.0.cmp(&b.0),
        order => order,
    };
    // Most logits are below the least of what was found so far, and cost one comparison.
    let mut found: Vec<(u32, f32)> = Vec::with_capacity(2 * top);
    let mut least = None;
    for (id, &logit) in (0u32..).zip(row) {
        if top == 0 || least.is_some_and(|least| value(logit) < least) {
            continue;
        }
        if found.len() == 2 * top {
            found.select_nth_unstable_by(top - 1, order);
            found.truncate(top);
            least = Some(value(found[top - 1].1));
        }
        found.push((id, logit));
    }
    found.sort_unstable_by(order);
    found.truncate(top);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reduce_keeps_the_largest_and_breaks_ties_by_id() {
        let Logits::Top { largest, log_sum_exp } = Logits::reduce(&[1.0, 3.0, 3.0, f32::NAN, -1.0], 3) else {
            panic!("a reduction is never whole")
        };
        assert_eq!(largest, [(1, 3.0), (2, 3.0), (0, 1.0)]);
        let exact = (1f64.exp() + 2.0 * 3f64.exp() + (-1f64).exp()).ln() as f32;
        assert!((log_sum_exp - exact).abs() < 1e-6, "{log_sum_exp} {exact}");
    }

    #[test]
    fn exp_is_that_of_the_standard_library() {
        for at in 0..7_000 {
            let x = -f64::from(at) * 0.1003;
            let (own, std) = (exp(x), x.max(-700.0).exp());
            assert!((own / std - 1.0).abs() < 1e-13, "exp({x}) is {std:e}, not {own:e}");
        }
        assert_eq!(exp(0.0), 1.0);
    }

    proptest::proptest! {
        #[test]
        fn the_largest_are_those_of_a_whole_sort(
            row in proptest::collection::vec(proptest::prelude::prop_oneof![-3i8..3, -100i8..100], 0..400),
            top in 0usize..40,
        ) {
            let row: Vec<f32> = row.into_iter().map(|n| if n == 99 { f32::NAN } else { n.into() }).collect();
            let mut all: Vec<(u32, f32)> = (0..).zip(row.iter().map(|&l| if l.is_nan() { f32::NEG_INFINITY } else { l })).collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            all.truncate(top);
            let got: Vec<u32> = largest(&row, top).into_iter().map(|(id, _)| id).collect();
            proptest::prop_assert_eq!(got, all.into_iter().map(|(id, _)| id).collect::<Vec<_>>());
        }
    }
}
