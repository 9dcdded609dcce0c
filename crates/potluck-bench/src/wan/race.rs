//! One figure: arms that race over the same prompts, what is measured of them, and what comes of it.

use potluck_wire::Codec;

use super::{
    bound::Bound,
    contest::{Arm, Case, How, Length, Round, equality, fight, ratios},
    figures::{ArmFigure, Figure, Ratio, Spread, round},
    stand::Stand,
    words::{Answered, Source},
};
use crate::Outcome;

/// The token that ends an answer of the demo model.
const END: Option<u32> = Some(2);

/// What the bound of an arm is called among the ratios.
const BOUND: &str = "bound";

/// What is measured of a round's answers, better when larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Tokens after the first of each answer, of all together, a second.
    Decode,
    /// Positions of the prompt a second, to the first token.
    Prefill(u32),
}

impl Measure {
    fn of(self, answers: &[Answered]) -> Option<f64> {
        let first = answers.iter().map(Answered::first_s).fold(f64::INFINITY, f64::min);
        match self {
            Self::Decode => {
                let last = answers.iter().map(Answered::seconds).fold(0.0, f64::max);
                let tokens: usize = answers.iter().map(|answer| answer.tokens.len().saturating_sub(1)).sum();
                (last > first && tokens > 0).then(|| tokens as f64 / (last - first))
            }
            Self::Prefill(positions) => (first > 0.0 && first.is_finite()).then(|| f64::from(positions) / first),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Decode => "tokens/s",
            Self::Prefill(_) => "positions/s",
        }
    }
}

/// One arm against another, or against its bound.
#[derive(Debug, Clone)]
pub(crate) struct Pairing {
    pub(crate) of: String,
    pub(crate) over: String,
    pub(crate) goal: Option<f64>,
}

impl Pairing {
    /// Against another arm.
    pub(crate) fn new(of: &str, over: &str, goal: Option<f64>) -> Self {
        Self { of: of.into(), over: over.into(), goal }
    }

    /// Against its bound.
    pub(crate) fn bound(of: &str, goal: Option<f64>) -> Self {
        Self::new(of, BOUND, goal)
    }
}

/// What is raced.
pub(crate) struct Race<'a> {
    pub(crate) part: &'a str,
    pub(crate) name: &'a str,
    pub(crate) paced: bool,
    pub(crate) codec: Codec,
    pub(crate) arms: Vec<Arm>,
    /// Prompts that are asked at once; a round each.
    pub(crate) groups: Vec<&'a [Case]>,
    pub(crate) length: Length,
    pub(crate) measure: Measure,
    pub(crate) pairings: Vec<Pairing>,
}

impl Race<'_> {
    /// Runs it.
    pub(crate) async fn run(&self, stand: &mut Stand, commit: &str) -> Outcome<Figure> {
        eprintln!("  {} {} ({})", self.part, self.name, if self.paced { "paced" } else { "real" });
        let rounds = fight(stand, &self.arms, &self.groups, self.length).await?;
        let at_once = self.groups.iter().map(|group| group.len()).max().unwrap_or_default();
        let mut figure = Figure {
            part: self.part.into(),
            name: self.name.into(),
            paced: self.paced,
            setting: stand.setting,
            codec: self.codec.to_string(),
            round: format!("{at_once} prompts at once, greedy, {} tokens at most", self.length.max_tokens),
            rounds: rounds.len(),
            lost: rounds.iter().map(|round| round.lost).sum(),
            unit: self.measure.unit().into(),
            commit: commit.into(),
            machine: super::machine(),
            arms: Vec::new(),
            ratios: Vec::new(),
            equality: if self.paced { Vec::new() } else { self.equal(&rounds) },
        };
        for (at, arm) in self.arms.iter().enumerate() {
            let measured = ArmFigure::of(&arm.name, &rounds, at, |answers| self.measure.of(answers));
            let bound = self.bound(stand, arm, &rounds, at);
            figure.arms.push(ArmFigure { bound, ..measured });
        }
        figure.ratios = self.pairings.iter().filter_map(|pairing| self.ratio(pairing, &figure, &rounds)).collect();
        Ok(figure)
    }

    /// What the arm could not exceed: of one session, over a chain.
    fn bound(&self, stand: &Stand, arm: &Arm, rounds: &[Round], at: usize) -> Option<f64> {
        let one = rounds.iter().all(|round| round.answers[at].len() == 1);
        let How::Chain { chain, speculation } = &arm.how else { return None };
        // Traversals of drafts overlap: there is no time that each of them has to take.
        if speculation.source != Source::Off {
            return None;
        }
        let codec = stand.codec(chain).filter(|_| one)?;
        // Of stages that take turns each could have all cores, however few it is given to share them with the others.
        let bound = Bound { setting: &stand.setting, paces: &stand.paces, codec, shared: !self.paced };
        Some(round(match self.measure {
            // Prompts of several lengths have no bound together.
            Measure::Prefill(1) => return None,
            Measure::Decode => bound.rate(),
            Measure::Prefill(positions) => f64::from(positions) / bound.prefill_s(positions).0,
        }))
    }

    fn ratio(&self, pairing: &Pairing, figure: &Figure, rounds: &[Round]) -> Option<Ratio> {
        let find = |name: &str| self.arms.iter().position(|arm| arm.name == name);
        let of = find(&pairing.of)?;
        let values = if pairing.over == BOUND {
            let bound = figure.arms[of].bound?;
            rounds.iter().filter_map(|round| Some(self.measure.of(&round.answers[of])? / bound)).collect()
        } else {
            ratios(rounds, of, find(&pairing.over)?, |answers| self.measure.of(answers))
        };
        let Pairing { of, over, goal } = pairing.clone();
        Some(Ratio { of, over, value: Spread::of(&values), goal })
    }

    fn equal(&self, rounds: &[Round]) -> Vec<super::figures::Equality> {
        let compare = |(at, arm): (usize, &Arm)| {
            let answers =
                rounds.iter().zip(&self.groups).flat_map(|(round, group)| group.iter().zip(&round.answers[at]));
            // What was not recorded cannot be compared.
            let known = answers.filter(|(case, _)| !case.recorded.tokens.is_empty());
            let asked = |case: &'_ Case| case.recorded.tokens.len().min(arm.tokens as usize);
            let pairs: Vec<(&Case, &[u32], &[u32])> =
                known.map(|(case, answer)| (case, &answer.tokens[..], &case.recorded.tokens[..asked(case)])).collect();
            (!pairs.is_empty()).then(|| equality([&arm.name, "the unsliced model"], &pairs, END))
        };
        self.arms.iter().enumerate().filter_map(compare).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_answers_count_together_from_the_first_token_to_the_last() {
        let answer =
            |at_s: &[f64]| Answered { tokens: vec![7; at_s.len()], at_s: at_s.to_vec(), ..Answered::default() };
        let answers = [answer(&[1.0, 2.0, 3.0]), answer(&[2.0, 3.0, 5.0])];
        assert_eq!(Measure::Decode.of(&answers), Some(4.0 / 4.0));
        assert_eq!(Measure::Decode.of(&answers[..1]), Some(1.0));
        assert_eq!(Measure::Decode.of(&[answer(&[1.0])]), None);
        assert_eq!(Measure::Prefill(2_048).of(&answers), Some(2_048.0));
        assert_eq!(Measure::Prefill(2_048).of(&[]), None);
    }
}
