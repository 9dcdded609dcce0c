//! What to draft in a round: source, depth, width, and whether a further window goes out.

use super::{
    Calibration, Node, Rule, Source, TREE_ROWS_MAX, Tree,
    account::Account,
    choice::{self, Offer},
    cost::Curve,
};

/// Windows that may be in flight.
pub const WINDOWS_MAX: usize = 16;

/// Observations that the averages of a session remember.
const MEMORY: f64 = 32.0;

/// Rounds between two trials of a source that did not pay: doubled by each that fails again.
const TRIAL_ROUNDS_MIN: u64 = 8;
const TRIAL_ROUNDS_MAX: u64 = 1_024;

/// Plain steps that are measured before anything is drafted.
const PLAIN_FIRST: f64 = 2.0;

/// Rounds after which a plain step is measured again: sooner where the claimed gain is small, for then it may be none.
const PLAIN_AGE_MIN: f64 = 16.0;
const PLAIN_AGE_MAX: f64 = 512.0;

/// Rounds in which a step with drafts may take far longer than expected once, without that being its cost.
const ACCIDENT_ROUNDS: u64 = 32;

/// What to do in a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Plan {
    /// One row, no drafts.
    Plain,
    /// The first `rows` guesses of the lookup, as a chain.
    Lookup {
        /// How many: at least 1.
        rows: usize,
    },
    /// A tree of the draft model's, grown under this rule.
    Model(Rule),
}

/// An average that forgets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Average {
    pub(super) value: f64,
    weight: f64,
}

impl Average {
    /// A belief that weighs as much as so many observations.
    fn believed(value: f64, weight: f64) -> Self {
        Self { value, weight }
    }

    fn add(&mut self, value: f64) {
        self.weight = self.weight * (1.0 - 1.0 / MEMORY) + 1.0;
        self.value += (value - self.value) / self.weight;
    }
}

/// Tokens and the seconds that they took, forgetting.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    tokens: f64,
    seconds: f64,
    weight: f64,
}

impl Progress {
    fn add(&mut self, tokens: usize, seconds: f64) {
        let kept = 1.0 - 1.0 / MEMORY;
        self.weight = self.weight * kept + 1.0;
        self.tokens = self.tokens * kept + tokens as f64;
        self.seconds = self.seconds * kept + seconds;
    }

    /// It was not asked for once more: what it had made says less.
    fn fade(&mut self) {
        self.weight *= 1.0 - 1.0 / MEMORY;
    }

    /// Tokens a second: `promised` before there were any, and what was made then.
    fn rate(&self, promised: f64) -> f64 {
        const PROMISE: f64 = 4.0;
        let made = if self.seconds > 0.0 { self.tokens / self.seconds } else { promised };
        (promised * PROMISE + made * self.weight) / (PROMISE + self.weight)
    }
}

/// Decides per round what is drafted, from what was measured. Deterministic given its inputs; knows no clock.
///
/// The rule: with λ the rate of tokens that the best way of drafting makes, a row that is accepted with probability P is
/// worth sending iff P is at least λ times the seconds that a row costs, and a forward of the draft model is worth
/// waiting for iff what it brings is at least λ times what it and its row cost. A further window in flight pays where
/// the time that it saves if everything before it is accepted outweighs the stage that it keeps busy if not. Where that makes more, no
/// step waits for drafts: what is certain leaves at once, and drafts follow it as they are made (Butler et al., "PipeInfer",
/// arXiv:2407.11798).
///
/// The guarantee: in the long run at most 2 % slower than no drafts at all, whatever the sources say, where costs vary about what they
/// are; 6 % where all of them double meanwhile, for what a plain step takes is known late then. What speculation has lost against plain
/// steps is kept account of, what may still be lost bounds what a round may risk, and a source that does not pay is tried ever more
/// rarely.
#[derive(Debug, Clone)]
pub struct Controller {
    pub(super) traversals: Curve,
    pub(super) intervals: Curve,
    pub(super) calibration: Calibration,
    pub(super) account: Account,
    /// Seconds a forward of the draft model, and the share of the forwards that the chain waited for.
    pub(super) forward: Option<Average>,
    pub(super) waited: Average,
    /// How often one of a forward's guesses was accepted, and the likeliest of them; rows for a token of a tree's depth.
    pub(super) hit: Average,
    pub(super) first: Average,
    pub(super) rows_per_level: Average,
    /// What the draft model's rounds have made of late: those that waited for drafts, and those that were followed by them.
    progress: [Progress; 2],
    modelling: bool,
    /// Drafts of this round follow what is certain.
    streams: bool,
    /// Rows of the draft model's further windows in this round.
    window: usize,
    speculative: bool,
    outlier: f64,
    /// The round of the last step that took far longer than any.
    accident_at: u64,
    rounds: u64,
    plain_at: u64,
    trial_at: u64,
    trial_rounds: u64,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            traversals: Curve::default(),
            intervals: Curve::default(),
            calibration: Calibration::default(),
            account: Account::default(),
            forward: None,
            waited: Average::believed(1.0, 2.0),
            hit: Average::believed(0.7, 4.0),
            first: Average::believed(0.6, 4.0),
            rows_per_level: Average::believed(1.5, 4.0),
            progress: [Progress::default(); 2],
            modelling: false,
            streams: false,
            window: 1,
            speculative: false,
            outlier: 0.0,
            accident_at: 0,
            rounds: 0,
            plain_at: 0,
            trial_at: 0,
            trial_rounds: TRIAL_ROUNDS_MIN,
        }
    }
}

impl Controller {
    /// What to do now that nothing of use is in flight. `lookup`: what [`Lookup::continuation`](super::Lookup::continuation)
    /// finds, up to [`TREE_ROWS_MAX`] tokens of it; `model`: whether a draft model is at hand.
    pub fn plan(&mut self, lookup: &[(u32, f32)], model: bool) -> Plan {
        self.rounds += 1;
        (self.window, self.streams) = (1, false);
        let plan = self.choose(lookup, model);
        self.speculative = plan != Plan::Plain;
        self.modelling = matches!(plan, Plan::Model(_));
        plan
    }

    fn choose(&mut self, lookup: &[(u32, f32)], model: bool) -> Plan {
        if self.traversals.singles() < PLAIN_FIRST {
            return Plan::Plain;
        }
        let plain_rate = 1.0 / self.plain_step();
        let looked_up = choice::lookup(self, &self.probabilities(Source::Lookup, lookup));
        let modelled = self.modelled().filter(|_| model);
        let best = looked_up.map_or(0.0, |offer| offer.rate).max(modelled.map_or(0.0, |offer| offer.rate));
        if best < choice::GAIN_MIN * plain_rate {
            return if model { self.trial() } else { Plan::Plain };
        }
        let age_max = (PLAIN_AGE_MIN * (best / plain_rate).powi(2)).min(PLAIN_AGE_MAX);
        if (self.rounds - self.plain_at) as f64 > age_max {
            return Plan::Plain;
        }
        match (looked_up, modelled) {
            (Some(offer), other) if other.is_none_or(|other| other.rate <= offer.rate) => {
                Plan::Lookup { rows: offer.window }
            }
            (_, Some(offer)) => {
                self.trial_rounds = TRIAL_ROUNDS_MIN;
                (self.window, self.streams) = (choice::model_window(self), offer.streams);
                let rule = choice::rule(self, offer.rate);
                Plan::Model(if self.streams { choice::streaming(self, rule) } else { rule })
            }
            _ => Plan::Plain,
        }
    }

    /// The better way to use the draft model.
    fn modelled(&self) -> Option<Offer> {
        let made = |offer: Offer| Offer { rate: self.progress[usize::from(offer.streams)].rate(offer.rate), ..offer };
        let ways = choice::model(self).into_iter().chain(choice::streamed(self)).map(made);
        ways.max_by(|a, b| a.rate.total_cmp(&b.rate))
    }

    /// What to do behind a prompt that is under way, where a draft model is at hand: drafts follow it where they would follow what is certain.
    pub fn plan_behind_prompt(&mut self) -> Option<Rule> {
        let gain = choice::GAIN_MIN / self.plain_step();
        let pays = self.traversals.singles() >= PLAIN_FIRST
            && self.modelled().is_some_and(|offer| offer.streams && offer.rate >= gain);
        match pays.then(|| self.plan(&[], true)) {
            Some(Plan::Model(rule)) if self.streams => Some(rule),
            _ => None,
        }
    }

    /// The draft model does not seem to pay: now and then it is asked again, for two tokens.
    fn trial(&mut self) -> Plan {
        const TOKENS: usize = 2;
        let risk = self.step(1.0 + TOKENS as f64) - self.plain_step() + TOKENS as f64 * self.forward_seconds();
        if self.rounds < self.trial_at || risk > self.account.balance() {
            return Plan::Plain;
        }
        self.trial_at = self.rounds + self.trial_rounds;
        self.trial_rounds = (self.trial_rounds * 2).min(TRIAL_ROUNDS_MAX);
        let (rows_max, depth_max, forwards_max) = (TOKENS, TOKENS, TOKENS);
        Plan::Model(Rule { row: 0.0, forward: 0.0, hit: 1.0, rows_max, depth_max, width_max: 1, forwards_max })
    }

    /// Whether `tree`, which hangs from the end of what is in flight, is worth sending now as a further window. `reached`:
    /// the probability that all that is in flight is accepted, from what is certain by now. Behind a plain step there is none: it is what
    /// all others are measured against.
    pub fn another_window(&self, tree: &Tree, reached: f64, in_flight: usize) -> bool {
        let Some(first) = tree.nodes().first() else { return false };
        let room = self.speculative && (1..WINDOWS_MAX).contains(&in_flight) && self.traversals.is_known();
        room && choice::another_window(self, reached * first.cumulative, tree.len())
    }

    /// How many of the lookup's guesses a further window should have.
    pub fn further_rows(&self, guesses: &[(u32, f32)]) -> usize {
        choice::lookup_further(self, &self.probabilities(Source::Lookup, guesses))
    }

    /// Rows of the draft model's that go with what is certain, as far as they are known by then.
    pub fn first_rows(&self) -> usize {
        if self.streams { self.window - 1 } else { TREE_ROWS_MAX }
    }

    /// Rows that a further window of the draft model's should have before it goes out.
    pub fn window_rows(&self) -> usize {
        self.window
    }

    /// A chain of guesses.
    pub fn chain(&self, source: Source, guesses: &[(u32, f32)]) -> Tree {
        let mut cumulative = 1.0;
        let mut nodes = Vec::new();
        for (row, (token, confidence)) in guesses.iter().take(TREE_ROWS_MAX).enumerate() {
            let (token, confidence) = (*token, *confidence);
            cumulative *= self.probability(source, confidence);
            let parent = row.checked_sub(1).map(|parent| parent as u16);
            nodes.push(Node { token, parent, confidence, source, cumulative });
        }
        // By construction each row's parent is the one before it, and likelier.
        Tree::new(&nodes).unwrap_or_default()
    }

    /// A step of `rows` rows was answered so many seconds after it left, with nothing else in flight then.
    pub fn traversed(&mut self, rows: usize, seconds: f64) {
        // What is followed at once may have waited for what follows it.
        if !seconds.is_finite() || seconds < 0.0 || rows == 0 || self.streams {
            return;
        }
        let beyond = self.traversals.measured(rows, seconds);
        if beyond > 0.0 {
            // What comes back soon is no accident, but what drafts cost there.
            if rows == 1 || self.rounds - self.accident_at >= ACCIDENT_ROUNDS {
                self.outlier += beyond;
            }
            self.accident_at = self.rounds;
        }
        if rows == 1 {
            self.plain_at = self.rounds;
            self.account.open(self.plain_step());
        }
    }

    /// A step of `rows` rows left so many seconds after the one before it, and was answered so many after that one. Not told of
    /// steps that a rejected one was ahead of.
    pub fn followed(&mut self, rows: usize, left: f64, answered: f64) {
        /// Answers that are further apart than the steps were sent waited for a stage.
        const WAITED: f64 = 1.2;
        if !(left.is_finite() && answered.is_finite() && answered >= 0.0) || rows == 0 {
            return;
        }
        // Where no stage was busy, they are as far apart as whoever sent them was slow: a stage is no slower than that.
        if answered > WAITED * left || answered < choice::interval(self, rows as f64) {
            // However long it was: that windows get in each other's way is their cost, and no accident.
            self.intervals.measured(rows, answered);
        }
    }

    /// The draft model made so many forwards in so many seconds. `waited`: nothing was in flight meanwhile.
    pub fn drafted(&mut self, forwards: usize, seconds: f64, waited: bool) {
        if forwards == 0 || !seconds.is_finite() || seconds < 0.0 {
            return;
        }
        let each = seconds / forwards as f64;
        self.forward.get_or_insert(Average::believed(each, 0.0)).add(each);
        (0..forwards.min(TREE_ROWS_MAX)).for_each(|_| self.waited.add(if waited { 1.0 } else { 0.0 }));
    }

    /// The target's choice is known for a draft whose parent it chose. Also for guesses that were never sent: what the
    /// lookup would have guessed costs nothing to judge, and keeps it known what its guesses are worth.
    pub fn judged(&mut self, source: Source, confidence: f32, accepted: bool) {
        self.calibration.judged(source, confidence, accepted);
    }

    /// A window was answered, and all that it hangs from was accepted. `accepted`: its rows that the target chose, from
    /// the top down; `decided`: whether the target has chosen what follows the last of them. Judges every guess that the target has
    /// decided on; an empty tree of the draft model's counts, too, unless its drafts are those that follow.
    pub fn answered(&mut self, source: Source, tree: &Tree, accepted: &[u16], decided: bool) {
        if tree.is_empty() && self.streams {
            return;
        }
        let chosen = |row: u16| accepted.contains(&row);
        let mut asked = false;
        let parents = std::iter::once(None).chain(accepted.iter().copied().map(Some));
        for parent in parents.take(accepted.len() + usize::from(decided)) {
            let children: Vec<u16> = tree.children(parent).collect();
            for row in &children {
                let node = tree.nodes()[usize::from(*row)];
                self.judged(node.source, node.confidence, chosen(*row));
            }
            let hit = children.iter().any(|row| chosen(*row));
            if source == Source::Model && (!children.is_empty() || parent.is_none()) {
                let share = |right: bool| if right { 1.0 } else { 0.0 };
                self.first.add(share(children.first().is_some_and(|row| chosen(*row))));
                // What follows one window after the other has no second guesses.
                if !self.streams {
                    self.hit.add(share(hit));
                }
            }
            asked |= !children.is_empty();
        }
        if source == Source::Model && asked {
            let depth = (0..tree.len() as u16).map(|row| tree.depth(row)).max().unwrap_or(1);
            self.rows_per_level.add(tree.len() as f64 / depth as f64);
        }
    }

    /// The session is `tokens` further, `seconds` after it was last further: all the time that passed, drafting too.
    pub fn progressed(&mut self, tokens: usize, seconds: f64) {
        if seconds.is_finite() && seconds >= 0.0 {
            let seconds = (seconds - self.outlier).max(0.0);
            if self.modelling {
                let [waited, followed] = &mut self.progress;
                let (made, other) = if self.streams { (followed, waited) } else { (waited, followed) };
                made.add(tokens, seconds);
                other.fade();
            }
            self.account.book(tokens, seconds, self.plain_step(), self.speculative);
        }
        self.outlier = 0.0;
    }

    /// The probability that the target accepts a draft whose parent it accepted.
    pub fn probability(&self, source: Source, confidence: f32) -> f64 {
        self.calibration.probability(source, confidence)
    }

    /// What the sources' confidences are worth: a [`Growth`](super::Growth) asks it.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// Seconds that speculation may still lose against plain steps: negative where it is overdrawn.
    pub fn allowance(&self) -> f64 {
        self.account.balance()
    }

    /// Seconds that a plain step takes; 0 before the first.
    pub fn plain_step(&self) -> f64 {
        self.step(1.0)
    }

    /// Seconds that a step of so many rows takes.
    pub(super) fn step(&self, rows: f64) -> f64 {
        self.traversals.at(rows)
    }

    /// Seconds a forward of the draft model; a guess before the first.
    pub(super) fn forward_seconds(&self) -> f64 {
        const GUESS: f64 = 0.25;
        self.forward.map_or(GUESS * self.plain_step(), |forward| forward.value)
    }

    /// Cumulative probabilities of a chain.
    fn probabilities(&self, source: Source, guesses: &[(u32, f32)]) -> Vec<f64> {
        let probability = |(_, confidence): &(u32, f32)| self.probability(source, *confidence);
        let reached = guesses.iter().take(TREE_ROWS_MAX).map(probability).scan(1.0, |reached, p| {
            *reached *= p;
            Some(*reached)
        });
        reached.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over a chain whose plain steps take 0.1 s.
    fn controller() -> Controller {
        let mut controller = Controller::default();
        for _ in 0..3 {
            controller.plan(&[], false);
            controller.traversed(1, 0.1);
        }
        controller
    }

    #[test]
    fn answers_tell_of_a_stage_where_they_waited_for_one() {
        let mut controller = controller();
        let believed = choice::interval(&controller, 1.0);
        (0..20).for_each(|_| controller.followed(1, 0.05, 0.05));
        assert_eq!(choice::interval(&controller, 1.0), believed, "whoever sent them was that slow");
        (0..20).for_each(|_| controller.followed(1, 0.01, 0.04));
        assert!((choice::interval(&controller, 1.0) - 0.04).abs() < 1e-9, "the second waited for a stage");
        // A stage that is quicker than was believed shows wherever answers are nearer to each other.
        (0..200).for_each(|_| controller.followed(1, 0.02, 0.02));
        assert!(choice::interval(&controller, 1.0) < 0.025);
    }

    #[test]
    fn a_further_window_is_as_wide_as_its_guesses_are_sure() {
        let mut controller = controller();
        for rows in [1, 2, 4, 8] {
            controller.traversed(rows, 0.1 + 0.002 * rows as f64);
            (0..20).for_each(|_| controller.followed(rows, 0.0, 0.002 * rows as f64));
        }
        let rows = |confidence| controller.further_rows(&[(1, confidence); 30]);
        // Rows of 2 ms each: a twelfth of a plain step is worth filling, and more only where nearly all of it is right.
        assert!((3..=6).contains(&rows(0.9)), "{}", rows(0.9));
        assert!(rows(0.5) >= 2 && rows(0.99) >= rows(0.9), "{} {}", rows(0.5), rows(0.99));
        assert_eq!(controller.further_rows(&[]), 0);
    }

    #[test]
    fn nothing_goes_out_behind_a_plain_step() {
        let mut controller = controller();
        let guesses: Vec<(u32, f32)> = vec![(1, 0.99); 8];
        (0..200).for_each(|_| controller.judged(Source::Lookup, 0.99, true));
        let tree = controller.chain(Source::Lookup, &guesses);
        assert!(matches!(controller.plan(&guesses, false), Plan::Lookup { .. }));
        assert!(controller.another_window(&tree, 1.0, 1), "behind a chain of guesses");
        assert_eq!(controller.plan(&[], false), Plan::Plain);
        assert!(!controller.another_window(&tree, 1.0, 1), "what a plain step takes is measured");
    }

    #[test]
    fn what_the_target_did_not_decide_is_not_judged() {
        let (mut open, mut decided) = (controller(), controller());
        let tree = open.chain(Source::Model, &[(1, 0.9), (2, 0.9)]);
        for _ in 0..50 {
            open.answered(Source::Model, &tree, &[0], false);
            decided.answered(Source::Model, &tree, &[0], true);
        }
        let [open, decided] = [open, decided].map(|controller| controller.probability(Source::Model, 0.9));
        assert!(open > 0.9 && decided < 0.7, "{open} {decided}");
    }

    #[test]
    fn what_takes_far_longer_again_and_again_is_a_cost() {
        let mut controller = controller();
        (0..10).for_each(|_| controller.traversed(4, 0.11));
        let lost = |controller: &mut Controller| {
            controller.plan(&[(1, 0.99); 4], false);
            controller.traversed(4, 10.0);
            let before = controller.allowance();
            controller.progressed(4, 10.0);
            before - controller.allowance()
        };
        (0..40).for_each(|_| _ = controller.plan(&[], false));
        let (first, second) = (lost(&mut controller), lost(&mut controller));
        assert!(first < 1.0 && second > 5.0, "{first} {second}");
    }

    /// What it plans with a draft model of which the likeliest guess is right in so many of a hundred, and any in so many, where a row
    /// and a forward cost so much.
    fn with_model(first: u32, any: u32, row: f64, forward: f64) -> (Controller, Plan) {
        let mut controller = controller();
        for rows in [1, 2, 4, 8, 16, 32, 64] {
            (0..4).for_each(|_| controller.traversed(rows, 0.1 + row * (rows - 1) as f64));
        }
        for at in 0..100 {
            controller.first.add(f64::from(u8::from(at * 37 % 100 < first)));
            controller.hit.add(f64::from(u8::from(at * 37 % 100 < any)));
            controller.drafted(1, forward, true);
        }
        let plan = controller.plan(&[], true);
        (controller, plan)
    }

    #[test]
    fn drafts_follow_what_is_certain_where_it_would_wait_for_them_and_go_with_it_where_not() {
        let (controller, plan) = with_model(70, 72, 0.012, 0.012);
        assert!(matches!(plan, Plan::Model(rule) if rule.forwards_max == 0), "{plan:?}");
        assert_eq!(controller.first_rows(), 0, "what is certain leaves by itself");
        let guess = controller.chain(Source::Model, &[(1, 0.9)]);
        assert!(controller.another_window(&guess, 1.0, 1) && !controller.another_window(&guess, 0.1, 4));
        let (controller, plan) = with_model(35, 80, 0.0002, 0.002);
        assert!(matches!(plan, Plan::Model(rule) if rule.forwards_max > 1), "{plan:?}");
        assert_eq!(controller.first_rows(), TREE_ROWS_MAX, "a wide tree goes with it");
    }

    #[test]
    fn a_level_takes_a_forward_whoever_waits_for_it() {
        let mut controller = controller();
        // All that it guesses is right, and nothing waits for it; but it guesses no more than ten tokens a second.
        for _ in 0..100 {
            controller.hit.add(1.0);
            controller.drafted(1, 0.1, false);
        }
        let promised = choice::model(&controller).map_or(0.0, |offer| offer.rate);
        assert!(promised < 20.0, "{promised} tokens a second");
    }

    #[test]
    fn what_is_made_outweighs_what_was_promised() {
        let mut progress = Progress::default();
        assert_eq!(progress.rate(40.0), 40.0);
        (0..100).for_each(|_| progress.add(2, 0.1));
        assert!((progress.rate(40.0) - 20.0).abs() < 3.0);
    }
}
