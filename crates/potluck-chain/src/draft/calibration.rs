//! What a source's confidence is worth.

use super::{
    Source,
    scale::{Place, ascending},
};

/// Confidences at which acceptance is measured; between them it is interpolated. Dense near 1, where a chain's length
/// is decided.
const MARKS: [f64; 13] = [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0];

/// The weight of the prior, in observations: that a source means what it says.
const PRIOR: f64 = 4.0;

/// The weight of a mark without observations when the curve is made monotone.
const UNSEEN: f64 = 0.25;

/// Observations at one mark after which the oldest has lost all but 1/e of its weight.
const MEMORY: f64 = 128.0;

/// No draft is certain.
const CERTAINTY_MAX: f64 = 0.995;

/// The probability that the target accepts a draft whose parent it accepted, by its source and confidence.
///
/// For each source a curve over the confidence, a Beta prior at each mark whose mean is the confidence itself, older
/// observations forgotten, made monotone (pool adjacent violators: Barlow et al., 1972): a higher confidence never means
/// a lower probability.
#[derive(Debug, Clone, Default)]
pub struct Calibration {
    curves: [Curve; Source::ALL.len()],
}

#[derive(Debug, Clone)]
struct Curve {
    seen: [f64; MARKS.len()],
    accepted: [f64; MARKS.len()],
    fitted: [f64; MARKS.len()],
}

impl Default for Curve {
    fn default() -> Self {
        Self { seen: [0.0; MARKS.len()], accepted: [0.0; MARKS.len()], fitted: MARKS }
    }
}

impl Calibration {
    /// A draft whose parent the target accepted was itself accepted or not. Drafts that were never sent count as well.
    /// A confidence that is not between 0 and 1 says nothing, and is left out.
    pub fn judged(&mut self, source: Source, confidence: f32, accepted: bool) {
        if (0.0..=1.0).contains(&confidence) {
            self.curves[source as usize].judged(confidence.into(), accepted);
        }
    }

    /// The probability that the target accepts such a draft where it accepted its parent: 0 to 0.995.
    pub fn probability(&self, source: Source, confidence: f32) -> f64 {
        let confidence = if confidence.is_nan() { 0.0 } else { f64::from(confidence) };
        Place::of(confidence, &MARKS).on(&self.curves[source as usize].fitted).min(CERTAINTY_MAX)
    }
}

impl Curve {
    fn judged(&mut self, confidence: f64, accepted: bool) {
        for (mark, share) in Place::of(confidence, &MARKS).shares() {
            let kept = 1.0 - share / MEMORY;
            self.seen[mark] = self.seen[mark] * kept + share;
            self.accepted[mark] = self.accepted[mark] * kept + if accepted { share } else { 0.0 };
        }
        self.fit();
    }

    /// The posterior means, made monotone.
    fn fit(&mut self) {
        for (mark, prior) in MARKS.iter().enumerate() {
            self.fitted[mark] = (self.accepted[mark] + PRIOR * prior) / (self.seen[mark] + PRIOR);
        }
        // Where two disagree, a mark that was seen outweighs one that is a mere belief.
        ascending(&mut self.fitted, &self.seen.map(|seen| seen + UNSEEN));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn before_anything_is_known_a_source_is_believed() {
        let calibration = Calibration::default();
        for confidence in [0.0f32, 0.13, 0.5, 0.77, 0.95] {
            let probability = calibration.probability(Source::Model, confidence);
            assert!((probability - f64::from(confidence)).abs() < 1e-6);
        }
        assert_eq!(calibration.probability(Source::Model, 1.0), CERTAINTY_MAX);
        assert_eq!(calibration.probability(Source::Model, f32::NAN), 0.0);
    }

    #[test]
    fn a_boaster_is_found_out_and_a_change_is_noticed() {
        let mut calibration = Calibration::default();
        for round in 0..200 {
            calibration.judged(Source::Model, 0.92, round % 4 == 0);
        }
        assert!((calibration.probability(Source::Model, 0.92) - 0.25).abs() < 0.08);
        assert_eq!(calibration.probability(Source::Lookup, 0.9), f64::from(0.9f32), "the other source is not touched");
        for _ in 0..300 {
            calibration.judged(Source::Model, 0.92, true);
        }
        assert!(calibration.probability(Source::Model, 0.92) > 0.85);
    }

    #[test]
    fn what_is_no_confidence_teaches_nothing() {
        let mut calibration = Calibration::default();
        for confidence in [f32::NAN, -0.5, 7.0] {
            calibration.judged(Source::Lookup, confidence, true);
        }
        assert_eq!(calibration.probability(Source::Lookup, 0.5), 0.5);
    }

    proptest! {
        #[test]
        fn more_confidence_is_never_worth_less(judged in proptest::collection::vec((0.0f32..=1.0, any::<bool>()), 0..300)) {
            let mut calibration = Calibration::default();
            for (confidence, accepted) in judged {
                calibration.judged(Source::Model, confidence, accepted);
            }
            let curve: Vec<f64> = (0..=100).map(|c| calibration.probability(Source::Model, c as f32 / 100.0)).collect();
            prop_assert!(curve.is_sorted_by(|a, b| *a <= b + 1e-12));
            prop_assert!(curve.iter().all(|probability| (0.0..=1.0).contains(probability)));
        }
    }
}
