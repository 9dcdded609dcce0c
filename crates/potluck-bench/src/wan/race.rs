//! One figure: arms that race over the same prompts, what is measured of them, and what comes of it.

use potluck_wire::Codec;

use super::{
    bound::Bound,
    contest::{Arm, Case, How, Length, Round, UNSLICED, equality, fight, ratios},
    figures::{ArmFigure, Equality, Figure, Ratio, Spread, round},
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

/// A parting in a figure whose margin is not known, and the text before it.
pub(crate) struct Unknown {
    pub(crate) equality: usize,
    pub(crate) parting: usize,
    pub(crate) text: Vec<u32>,
}

impl Race<'_> {
    /// Runs it.
    pub(crate) async fn run(&self, stand: &mut Stand, commit: &str) -> Outcome<(Figure, Vec<Unknown>)> {
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
            // Paced stages answer from the recording that they would be compared with.
            equality: if self.paced { Vec::new() } else { self.equal(&rounds) },
            predicted: None,
        };
        for (at, arm) in self.arms.iter().enumerate() {
            let measured = ArmFigure::of(&arm.name, &rounds, at, |answers| self.measure.of(answers));
            let bound = self.bound(stand, arm, &rounds, at);
            figure.arms.push(ArmFigure { bound, ..measured });
        }
        figure.ratios = self.pairings.iter().filter_map(|pairing| self.ratio(pairing, &figure, &rounds)).collect();
        let unknown = self.unknown(&figure, &rounds);
        Ok((figure, unknown))
    }

    /// Where drafts parted from plain behind the end of what the recording tells.
    fn unknown(&self, figure: &Figure, rounds: &[Round]) -> Vec<Unknown> {
        let mut unknown = Vec::new();
        for (equality, compared) in figure.equality.iter().enumerate().filter(|(_, compared)| compared.with != UNSLICED)
        {
            let Some(plain) = self.arms.iter().position(|arm| arm.name == compared.with) else { continue };
            for (parting, parted) in compared.parted.iter().enumerate().filter(|(_, parted)| parted.margin.is_none()) {
                let answers =
                    rounds.iter().zip(&self.groups).flat_map(|(round, group)| group.iter().zip(&round.answers[plain]));
                let text = answers.filter(|(case, _)| case.id == parted.prompt);
                let text = text.map(|(case, answer)| [&case.prompt[..], &answer.tokens[..parted.at]].concat());
                unknown.extend(text.take(1).map(|text| Unknown { equality, parting, text }));
            }
        }
        unknown
    }

    /// What the arm could not exceed over a chain, with as many sessions at once as it had.
    fn bound(&self, stand: &Stand, arm: &Arm, rounds: &[Round], at: usize) -> Option<f64> {
        let sessions = rounds.iter().map(|round| round.answers[at].len()).max()? as u32;
        let How::Chain { chain, speculation } = &arm.how else { return None };
        // Traversals of drafts overlap: there is no time that each of them has to take.
        if speculation.source != Source::Off {
            return None;
        }
        let codec = stand.codec(chain)?;
        // Of stages that take turns each could have all cores, however few it is given to share them with the others.
        let bound = Bound { setting: &stand.setting, paces: &stand.paces, codec, shared: !self.paced };
        Some(round(match self.measure {
            Measure::Decode => bound.rate_of(sessions),
            // Several prompts at once have no bound here.
            Measure::Prefill(_) if sessions > 1 => return None,
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

    /// Each arm against the unsliced model, and those that draft against the one of the same chain that does not.
    fn equal(&self, rounds: &[Round]) -> Vec<Equality> {
        let mut equal = self.equal_to_unsliced(rounds);
        equal.extend((0..self.arms.len()).filter_map(|at| self.equal_to_plain(rounds, at)));
        equal
    }

    fn equal_to_plain(&self, rounds: &[Round], at: usize) -> Option<Equality> {
        let plain = self.plain_of(at)?;
        let mut pairs: Vec<(&Case, &[u32], &[u32])> = Vec::new();
        for (round, group) in rounds.iter().zip(&self.groups) {
            let both = round.answers[at].iter().zip(&round.answers[plain]);
            pairs.extend(
                group.iter().zip(both).map(|(case, (ours, theirs))| (case, &ours.tokens[..], &theirs.tokens[..])),
            );
        }
        let names = [self.arms[at].name.as_str(), self.arms[plain].name.as_str()];
        (!pairs.is_empty()).then(|| equality(names, &pairs, END))
    }

    /// The arm without drafts over the same chain; none of an arm that has none itself.
    fn plain_of(&self, at: usize) -> Option<usize> {
        let chain_of = |arm: &Arm, drafts: bool| match &arm.how {
            How::Chain { chain, speculation } if (speculation.source != Source::Off) == drafts => Some(chain.clone()),
            _ => None,
        };
        let chain = chain_of(&self.arms[at], true)?;
        self.arms.iter().position(|arm| chain_of(arm, false).as_ref() == Some(&chain))
    }

    fn equal_to_unsliced(&self, rounds: &[Round]) -> Vec<Equality> {
        let compare = |(at, arm): (usize, &Arm)| {
            let answers =
                rounds.iter().zip(&self.groups).flat_map(|(round, group)| group.iter().zip(&round.answers[at]));
            // What was not recorded cannot be compared.
            let known = answers.filter(|(case, _)| !case.recorded.tokens.is_empty());
            let asked = |case: &'_ Case| case.recorded.tokens.len().min(arm.tokens as usize);
            let pairs: Vec<(&Case, &[u32], &[u32])> =
                known.map(|(case, answer)| (case, &answer.tokens[..], &case.recorded.tokens[..asked(case)])).collect();
            (!pairs.is_empty()).then(|| equality([&arm.name, UNSLICED], &pairs, END))
        };
        self.arms.iter().enumerate().filter_map(compare).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wan::{contest::RPC, words::Speculation};

    #[test]
    fn drafts_are_compared_with_the_same_chain_without() {
        let answer = |tokens: &[u32]| Answered { tokens: tokens.to_vec(), ..Answered::default() };
        let recorded = Answered { margins: vec![3.0, 0.2, 1.0], ..answer(&[5, 6, 7]) };
        let case = [Case { id: "edit-1".into(), prompt: vec![1], recorded }];
        let drafting = |name, chain| Arm::drafting(name, chain, Speculation { source: Source::Lookup, draft: None });
        let race = Race {
            part: "draftable",
            name: "decode",
            paced: false,
            codec: Codec::F16,
            arms: vec![
                Arm::rpc(),
                Arm::plain("other", "far"),
                Arm::plain("plain", "near"),
                drafting("lookup", "near"),
                drafting("alone", "nowhere"),
            ],
            groups: vec![&case[..]],
            length: Length { max_tokens: 3, ignore_eos: false },
            measure: Measure::Decode,
            pairings: Vec::new(),
        };
        assert_eq!((0..5).map(|at| race.plain_of(at)).collect::<Vec<_>>(), [None, None, None, Some(2), None]);
        let answers =
            [[5, 6, 7], [5, 6, 7], [5, 6, 7], [5, 8, 7], [5, 6, 7]].map(|tokens: [u32; 3]| vec![answer(&tokens)]);
        let rounds = [Round { answers: answers.into(), carried: Vec::new(), lost: 0 }];
        let equal = race.equal(&rounds);
        let names: Vec<_> = equal.iter().map(|equality| (equality.of.as_str(), equality.with.as_str())).collect();
        assert_eq!(names[..5], [RPC, "other", "plain", "lookup", "alone"].map(|of| (of, UNSLICED)));
        assert_eq!(names[5..], [("lookup", "plain")]);
        let parted = &equal[5].parted[0];
        assert_eq!((parted.prompt.as_str(), parted.at, parted.margin), ("edit-1", 1, Some(0.2)));
        // What the recording does not tell is asked for, with the text that both had said.
        let mut figure = Figure { equality: equal, ..Figure::default() };
        assert!(race.unknown(&figure, &rounds).is_empty());
        figure.equality[5].parted[0].margin = None;
        let unknown = race.unknown(&figure, &rounds);
        let told: Vec<_> = unknown.iter().map(|one| (one.equality, one.parting, &one.text[..])).collect();
        assert_eq!(told, [(5, 0, &[1, 5][..])]);
    }

    #[test]
    fn a_unit_is_of_what_is_measured() {
        let at = |seconds: f64| [Answered { tokens: vec![7], at_s: vec![seconds], ..Answered::default() }];
        let measure = Measure::Prefill(2_048);
        assert_eq!((measure.of(&at(8.0)), measure.unit()), (Some(256.0), "positions/s"));
    }

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
