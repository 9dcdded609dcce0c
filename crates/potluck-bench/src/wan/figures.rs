//! What is reported: figures, each with its setting, its arms and their ratios.

use std::{fs, path::Path};

use potluck_client::DraftCounts;
use serde::{Deserialize, Serialize};

use super::{
    contest::{ALONE, RPC, Round},
    net::Setting,
    words::Answered,
};
use crate::{Outcome, row::quantile};

/// The shape of a batch alone moves a logit of the demo model by up to so much (docs/benchmarks.md): where the
/// likeliest token is no further ahead, another may take its place.
pub(crate) const NEAR_TIE: f32 = 0.4;

/// Everything that was measured so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Of what commit the latest figures are, and on what machine.
    pub(crate) commit: String,
    pub(crate) machine: String,
    pub(crate) model: String,
    /// What the stages take that paced ones sleep for and bounds are made of.
    #[serde(default)]
    pub(crate) stages: Vec<StageTime>,
    pub(crate) figures: Vec<Figure>,
}

/// What one stage takes, with the machine's cores to itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageTime {
    /// As `a..b`.
    pub(crate) layers: String,
    pub(crate) threads: u16,
    /// `(rows of a step, milliseconds)`, with logits for every row where the stage gives any.
    pub(crate) ms: Vec<(u32, f64)>,
}

/// One thing that was measured, under one setting.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// `plain`, `novel` and so on.
    pub(crate) part: String,
    pub(crate) name: String,
    /// Stages sleep for their measured time and answer from a recording; false: they compute, on this machine's cores
    /// together. What is not over such a chain always computes: see [`kind`](Self::kind).
    pub(crate) paced: bool,
    pub(crate) setting: Setting,
    pub(crate) codec: String,
    /// What one round is, in words.
    pub(crate) round: String,
    pub(crate) rounds: usize,
    /// How often a chain lost a peer meanwhile, and was opened again.
    pub(crate) lost: usize,
    /// What was measured of each arm.
    pub(crate) unit: String,
    /// Of what commit, and on what machine.
    pub(crate) commit: String,
    #[serde(default)]
    pub(crate) machine: String,
    pub(crate) arms: Vec<ArmFigure>,
    pub(crate) ratios: Vec<Ratio>,
    pub(crate) equality: Vec<Equality>,
    /// What the planner predicts of a token a traversal over the chain, in tokens a second; of the curves.
    #[serde(default)]
    pub(crate) predicted: Option<f64>,
}

/// Median and quartiles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Self {
        let [low, median, high] = [0.25, 0.5, 0.75].map(|share| round(quantile(values, share)));
        Self { low, median, high }
    }
}

/// What was measured of one arm.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ArmFigure {
    pub(crate) name: String,
    /// In the figure's unit.
    pub(crate) value: Spread,
    /// Seconds to the first token.
    pub(crate) first_s: Spread,
    /// Tokens after the first for each traversal after the prompt.
    pub(crate) tokens_per_traversal: f64,
    /// Bytes that all machines together sent over their lines for each token of the answers, packets' headers and the
    /// prompt's steps included.
    pub(crate) bytes_per_token: f64,
    /// Packets likewise, acknowledgements included. 0: not counted, by a bench of before.
    #[serde(default)]
    pub(crate) packets_per_token: f64,
    /// Of the drafted tokens whose turn came, those that were the target's own; none where nothing was drafted.
    pub(crate) accepted: Option<f64>,
    /// Rows that were sent, and forwards of the draft model, for each token.
    pub(crate) rows_per_token: f64,
    pub(crate) forwards_per_token: f64,
    /// What no implementation exceeds with these stages and lines and as many sessions, in the figure's unit. None with
    /// drafts, whose traversals overlap, and where it is not over these stages.
    pub(crate) bound: Option<f64>,
}

/// One arm against another, round by round. More is better.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ratio {
    pub(crate) of: String,
    pub(crate) over: String,
    pub(crate) value: Spread,
    pub(crate) goal: Option<f64>,
}

/// Whose tokens were whose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Equality {
    pub(crate) of: String,
    pub(crate) with: String,
    /// Answers that are equal throughout, of how many.
    pub(crate) answers: [usize; 2],
    /// Tokens that are equal up to the first that is not, of as many as both have.
    pub(crate) tokens: [usize; 2],
    pub(crate) parted: Vec<Parting>,
}

/// Where two answers part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parting {
    pub(crate) prompt: String,
    /// Token of the answer, from 0.
    pub(crate) at: usize,
    /// By how much the likeliest token's logit exceeded the next there, in the unsliced model's own run; none where
    /// that run had parted before.
    pub(crate) margin: Option<f32>,
}

impl Report {
    /// What was measured before, or nothing.
    pub(crate) fn read(path: &Path) -> Outcome<Self> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(serde_json::from_str(&text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the place of what was measured of the same thing before.
    pub(crate) fn put(&mut self, figure: Figure) {
        let same = |old: &Figure| {
            (&old.part, &old.name, old.paced, old.setting, &old.codec)
                == (&figure.part, &figure.name, figure.paced, figure.setting, &figure.codec)
        };
        match self.figures.iter_mut().find(|old| same(old)) {
            Some(old) => *old = figure,
            None => self.figures.push(figure),
        }
    }

    /// What a stage takes now.
    pub(crate) fn put_stage(&mut self, stage: StageTime) {
        self.stages.retain(|old| (&old.layers, old.threads) != (&stage.layers, stage.threads));
        self.stages.push(stage);
    }

    pub(crate) fn write(&self, path: &Path) -> Outcome<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(fs::write(path, serde_json::to_string_pretty(self)? + "\n")?)
    }
}

impl Equality {
    /// Partings that no near-tie explains, as far as their margins are known.
    pub(crate) fn beyond_near_ties(&self) -> usize {
        self.parted.iter().filter(|parting| parting.margin.is_some_and(|margin| margin > NEAR_TIE)).count()
    }
}

impl Figure {
    /// `paced` or `real`, of one of its arms: llama.cpp's RPC and the machine that holds it all compute in both.
    pub(crate) fn kind(&self, arm: &str) -> &'static str {
        if self.paced && ![RPC, ALONE].contains(&arm) { "paced" } else { "real" }
    }

    /// The same of a ratio.
    pub(crate) fn kind_of_ratio(&self, ratio: &Ratio) -> String {
        match (self.kind(&ratio.of), self.kind(&ratio.over)) {
            (of, over) if of == over => of.into(),
            (of, over) => format!("{of} ÷ {over}"),
        }
    }

    /// The line of each arm and ratio, for people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let kind = if self.paced { "paced" } else { "real" };
        let title = format!(
            "{} {} ({kind}, {}, {}): {} rounds",
            self.part,
            self.name,
            self.codec,
            self.setting.words(),
            self.rounds
        );
        let arms = self.arms.iter().map(|arm| {
            let bound = arm.bound.map_or(String::new(), |bound| {
                format!("; bound {bound:.2}, share {:.3}", arm.value.median / bound)
            });
            let drafts = arm.accepted.map_or(String::new(), |accepted| {
                let (rows, forwards) = (arm.rows_per_token, arm.forwards_per_token);
                format!("; of its drafts {accepted:.2} accepted, {rows:.2} rows and {forwards:.2} forwards a token")
            });
            let own = self.kind(&arm.name);
            let own = if own == kind { String::new() } else { format!(" ({own})") };
            format!(
                "  {:16} {:8.2} [{:.2} {:.2}] {}{own}; first token {:.3} s; {:.2} tokens a traversal, {:.0} bytes in {:.1} packets a token{drafts}{bound}",
                arm.name, arm.value.median, arm.value.low, arm.value.high, self.unit, arm.first_s.median, arm.tokens_per_traversal, arm.bytes_per_token, arm.packets_per_token
            )
        });
        let ratios = self.ratios.iter().map(|ratio| {
            let Spread { low, median, high } = ratio.value;
            let verdict = ratio.goal.map_or(String::new(), |goal| {
                format!("  goal {goal}: {}", if median >= goal { "met" } else { "MISSED" })
            });
            format!("  {} / {}: {median:.3} [{low:.3} {high:.3}]{verdict}", ratio.of, ratio.over)
        });
        let equal = self.equality.iter().map(|equality| {
            let Equality { of, with, answers, tokens, parted } = equality;
            let beyond = match equality.beyond_near_ties() {
                0 => String::new(),
                beyond => format!(", {beyond} of {} PARTED AT NO NEAR-TIE", parted.len()),
            };
            let ([equal, tokens], [whole, answers]) = (tokens, answers);
            format!("  {of} = {with}: {equal} of {tokens} tokens, {whole} of {answers} answers{beyond}")
        });
        let predicted = self.predicted.map(|rate| format!("  the planner predicts {rate:.2} tokens/s over the chain"));
        std::iter::once(title).chain(arms).chain(predicted).chain(ratios).chain(equal).collect()
    }
}

impl ArmFigure {
    /// Of an arm's answers, by what is measured of each.
    pub(crate) fn of(name: &str, rounds: &[Round], arm: usize, measure: impl Fn(&[Answered]) -> Option<f64>) -> Self {
        let answers = || rounds.iter().flat_map(|round| &round.answers[arm]);
        let values: Vec<f64> = rounds.iter().filter_map(|round| measure(&round.answers[arm])).collect();
        let first: Vec<f64> = answers().map(Answered::first_s).collect();
        let share = |part: u64, whole: u64| if whole > 0 { round(part as f64 / whole as f64) } else { 0.0 };
        let after = answers().map(|answer| answer.tokens.len().saturating_sub(1) as u64).sum();
        let tokens = answers().map(|answer| answer.tokens.len() as u64).sum();
        let counts = |count: fn(&DraftCounts) -> usize| answers().map(|answer| count(&answer.drafts) as u64).sum();
        let drafted: u64 = counts(|drafts| drafts.drafted);
        Self {
            name: name.to_owned(),
            value: Spread::of(&values),
            first_s: Spread::of(&first),
            tokens_per_traversal: share(after, answers().map(|answer| answer.decode_steps).sum()),
            bytes_per_token: share(rounds.iter().map(|round| round.carried[arm].bytes).sum(), tokens),
            packets_per_token: share(rounds.iter().map(|round| round.carried[arm].packets).sum(), tokens),
            accepted: (drafted > 0).then(|| share(counts(|drafts| drafts.accepted), drafted)),
            rows_per_token: share(answers().map(|answer| answer.decode_rows).sum(), after),
            forwards_per_token: share(counts(|drafts| drafts.forwards), after),
            bound: None,
        }
    }
}

/// Four digits behind the point.
pub(crate) fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, rounds: usize) -> Figure {
        Figure {
            part: "plain".into(),
            name: name.into(),
            paced: false,
            setting: Setting::default(),
            codec: "f16".into(),
            round: "a prompt".into(),
            rounds,
            lost: 0,
            unit: "tokens/s".into(),
            commit: "abc".into(),
            machine: "a machine".into(),
            arms: Vec::new(),
            ratios: vec![Ratio {
                of: "chain".into(),
                over: "rpc".into(),
                value: Spread::of(&[1.0, 2.0, 3.0]),
                goal: Some(2.5),
            }],
            equality: Vec::new(),
            predicted: None,
        }
    }

    #[test]
    fn a_new_figure_takes_the_place_of_the_old_one_and_of_no_other() {
        let mut report = Report::default();
        [figure("a", 1), figure("b", 1), figure("a", 2)].into_iter().for_each(|figure| report.put(figure));
        let kept: Vec<_> = report.figures.iter().map(|figure| (figure.name.as_str(), figure.rounds)).collect();
        assert_eq!(kept, [("a", 2), ("b", 1)]);
        assert_eq!(serde_json::from_str::<Report>(&serde_json::to_string(&report).unwrap()).unwrap(), report);
    }

    #[test]
    fn a_goal_that_was_missed_is_said_to_be() {
        let lines = figure("a", 1).lines();
        assert_eq!(lines[1], "  chain / rpc: 2.000 [1.500 2.500]  goal 2.5: MISSED");
    }

    #[test]
    fn what_computes_in_a_paced_figure_is_called_real() {
        let figure = Figure { paced: true, ..figure("a", 1) };
        let ratio = |of: &str, over: &str| Ratio { of: of.into(), over: over.into(), ..figure.ratios[0].clone() };
        assert_eq!([RPC, ALONE, "plain"].map(|arm| figure.kind(arm)), ["real", "real", "paced"]);
        assert_eq!(figure.kind_of_ratio(&ratio("plain", RPC)), "paced ÷ real");
        assert_eq!(figure.kind_of_ratio(&ratio("plain", "bound")), "paced");
        let real = Figure { paced: false, ..figure.clone() };
        assert_eq!((real.kind("plain"), real.kind_of_ratio(&ratio("plain", RPC)).as_str()), ("real", "real"));
    }

    #[test]
    fn a_parting_beyond_a_near_tie_is_told() {
        let parting = |margin| Parting { prompt: "edit-1".into(), at: 3, margin };
        let parted = vec![parting(Some(0.39)), parting(Some(0.41)), parting(None)];
        let equality = Equality { of: "lookup".into(), with: "plain".into(), answers: [1, 4], tokens: [9, 20], parted };
        assert_eq!(equality.beyond_near_ties(), 1);
        let figure = Figure { equality: vec![equality], ratios: Vec::new(), ..figure("a", 1) };
        let line = "  lookup = plain: 9 of 20 tokens, 1 of 4 answers, 1 of 3 PARTED AT NO NEAR-TIE";
        assert_eq!(figure.lines()[1..], [line]);
    }

    #[test]
    fn the_results_of_before_are_read() {
        let text = include_str!("../../../../bench/results/wan.json");
        assert!(!serde_json::from_str::<Report>(text).unwrap().figures.is_empty());
    }
}
