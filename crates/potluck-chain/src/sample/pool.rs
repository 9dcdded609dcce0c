//! The candidates of one position, and what is known of the tokens that the row leaves out.
//!
//! Each filter may keep a candidate, take it away, or, where a reduced row does not say, leave it unsure. The choice
//! stands only if no unsure candidate and no absent token can beat it.

use std::cmp::Ordering;

use super::{SamplingParams, noise::Noise};

/// Relative error that two sums of the same terms in different order stay under.
const SUM_ERROR: f64 = 1e-9;
/// More than the error of a logarithm's implementation: noise is compared with this margin.
const NOISE_ERROR: f64 = 1e-9;

/// A token that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: u32,
    /// With bias and penalties; finite.
    pub(super) logit: f32,
    /// False if an absent token might have taken its place.
    pub(super) sure: bool,
}

/// A place in the order of candidates: larger logits first, then lower ids.
pub(super) type Place = (f32, u32);

/// The tokens that a reduced row leaves out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rest {
    /// None of them comes before this place.
    pub(super) bound: Place,
    /// Bounds of the sum of their exponentials, relative to the pool's reference.
    pub(super) mass: (f64, f64),
}

/// The candidates of one position.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pool {
    /// In order.
    pub(super) candidates: Vec<Candidate>,
    /// None where every token that is left is a candidate.
    pub(super) rest: Option<Rest>,
    /// At least the largest logit: exponentials are taken relative to it.
    pub(super) reference: f64,
}

/// Whether `a` comes before `b`.
pub(super) fn order(a: Place, b: Place) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

impl Candidate {
    fn place(&self) -> Place {
        (self.logit, self.token)
    }
}

impl Pool {
    /// True if every token that is left is known.
    fn exact(&self) -> bool {
        self.rest.is_none() && self.candidates.iter().all(|candidate| candidate.sure)
    }

    fn weight(&self, logit: f32) -> f64 {
        (f64::from(logit) - self.reference).exp()
    }

    /// True if no absent token comes before the candidate.
    fn leads(&self, candidate: &Candidate) -> bool {
        self.rest.is_none_or(|rest| order(candidate.place(), rest.bound) != Ordering::Greater)
    }

    /// Bounds of the sum of all exponentials.
    fn total(&self) -> (f64, f64) {
        let rest = self.rest.map_or((0.0, 0.0), |rest| rest.mass);
        let all: f64 = self.candidates.iter().map(|c| self.weight(c.logit)).sum();
        let unsure: f64 = self.candidates.iter().filter(|c| !c.sure).map(|c| self.weight(c.logit)).sum();
        (all - unsure + rest.0, all + rest.1)
    }

    /// Applies top-k, typical, top-p and min-p, in this order. `None`: the row does not tell what is left.
    pub(super) fn filter(&mut self, params: &SamplingParams) -> Option<()> {
        self.top_k(params.top_k as usize);
        if params.typical_p < 1.0 {
            self.exact().then(|| self.typical(params.typical_p.into()))?;
        }
        if params.top_p < 1.0 {
            self.top_p(params.top_p.into());
        }
        if params.min_p > 0.0 {
            self.min_p(params.min_p.into());
        }
        Some(())
    }

    /// Keeps the `k` first; 0: all.
    fn top_k(&mut self, k: usize) {
        if k == 0 {
            return;
        }
        self.candidates.truncate(k);
        let Some(mut rest) = self.rest.take() else { return };
        let leading = self.candidates.partition_point(|c| order(c.place(), rest.bound) != Ordering::Greater);
        if leading == k {
            return;
        }
        // Absent tokens may take the places after those that lead.
        self.candidates[leading..].iter_mut().for_each(|c| c.sure = false);
        let most = (k - leading) as f64 * self.weight(rest.bound.0);
        rest.mass = (0.0, rest.mass.1.min(most));
        self.rest = Some(rest);
    }

    /// Keeps those whose surprise is closest to the entropy, until they hold the probability `p`.
    /// Source: Meister et al., arXiv:2202.00666, section 3.
    fn typical(&mut self, p: f64) {
        let total = self.total().1;
        let surprise = |c: &Candidate| total.ln() - (f64::from(c.logit) - self.reference);
        let entropy: f64 = self.candidates.iter().map(|c| self.weight(c.logit) / total * surprise(c)).sum();
        let mut by_distance: Vec<(f64, Candidate)> =
            self.candidates.iter().map(|c| ((surprise(c) - entropy).abs(), *c)).collect();
        by_distance.sort_by(|a, b| a.0.total_cmp(&b.0).then(order(a.1.place(), b.1.place())));
        let mut sum = 0.0;
        let mut last = by_distance.len();
        for (i, (_, candidate)) in by_distance.iter().enumerate() {
            sum += self.weight(candidate.logit) / total;
            if sum > p {
                last = i + 1;
                break;
            }
        }
        self.candidates = by_distance.into_iter().take(last).map(|(_, candidate)| candidate).collect();
        self.candidates.sort_by(|a, b| order(a.place(), b.place()));
    }

    /// Keeps each candidate before which less than the probability `p` lies.
    fn top_p(&mut self, p: f64) {
        let total = self.total();
        let margin = if self.exact() { 0.0 } else { SUM_ERROR };
        let (surely_in, surely_out) = (p * total.0 * (1.0 - margin), p * total.1 * (1.0 + margin));
        let rest_mass = self.rest.map_or(0.0, |rest| rest.mass.1);
        // Bounds of the mass before the candidate at hand: of the sure ones, and of all.
        let (mut least, mut most) = (0.0, 0.0);
        let mut kept = Vec::with_capacity(self.candidates.len());
        for (i, candidate) in self.candidates.iter().enumerate() {
            let before = most + if self.leads(candidate) { 0.0 } else { rest_mass };
            if i > 0 && least >= surely_out {
                break;
            }
            let first = i == 0 && self.leads(candidate);
            let sure = candidate.sure && (first || before < surely_in);
            kept.push(Candidate { sure, ..*candidate });
            let weight = self.weight(candidate.logit);
            most += weight;
            least += if candidate.sure { weight } else { 0.0 };
        }
        self.settle_rest(kept, surely_out);
    }

    /// After top-p: absent tokens are out where the sure candidates before them hold enough.
    fn settle_rest(&mut self, kept: Vec<Candidate>, surely_out: f64) {
        let leading = self.candidates.iter().take_while(|c| self.leads(c));
        let before: f64 = leading.filter(|c| c.sure).map(|c| self.weight(c.logit)).sum();
        self.rest = self.rest.filter(|_| before < surely_out).map(|rest| Rest { mass: (0.0, rest.mass.1), ..rest });
        self.candidates = kept;
    }

    /// Keeps what is at least `p` times as likely as the likeliest.
    fn min_p(&mut self, p: f64) {
        let Some(first) = self.candidates.first().map(|c| f64::from(c.logit)) else { return };
        let most = self.rest.map_or(first, |rest| first.max(rest.bound.0.into()));
        let (least_threshold, most_threshold) = (first + p.ln(), most + p.ln());
        self.candidates.retain(|c| f64::from(c.logit) >= least_threshold);
        self.candidates.iter_mut().for_each(|c| c.sure &= f64::from(c.logit) >= most_threshold);
        self.rest = self.rest.filter(|rest| f64::from(rest.bound.0) >= least_threshold);
    }

    /// The first candidate. `None`: an absent token may come before it.
    pub(super) fn first(&self) -> Option<u32> {
        self.candidates.first().filter(|c| c.sure && self.leads(c)).map(|c| c.token)
    }

    /// Draws a token. `None`: one that is unsure or absent may win.
    ///
    /// `present`: the row's tokens, ascending, whether still candidates or not.
    pub(super) fn draw(&self, temperature: f64, noise: Noise, present: &[u32], vocabulary: u32) -> Option<u32> {
        let score = |c: &Candidate| f64::from(c.logit) / temperature + noise.gumbel(c.token);
        let ahead = |a: &(f64, &Candidate), b: &(f64, &Candidate)| a.0.total_cmp(&b.0).then(b.1.token.cmp(&a.1.token));
        let (best, winner) = self.candidates.iter().map(|c| (score(c), c)).max_by(ahead)?;
        if !winner.sure {
            return None;
        }
        let beaten = |rest: Rest| {
            let noise = noise.max_outside(present, vocabulary) + NOISE_ERROR;
            f64::from(rest.bound.0) / temperature + noise < best
        };
        self.rest.is_none_or(beaten).then_some(winner.token)
    }
}
