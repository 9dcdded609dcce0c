//! How the client chooses a token. Peers never do: a tail returns logits, or as much of a row as usually decides.
//!
//! A [`Sampler`] either decides on a reduced row, or asks for the whole one; with it, it gives *the same* token that it
//! would have given had the reduced row sufficed. So one seed gives one text, whichever way the logits came:
//! ```
//! use potluck_chain::sample::{Decision, Sampler, SamplingParams};
//! use potluck_core::{Hidden, Logits};
//! let sampler = Sampler::new(SamplingParams { seed: 7, ..SamplingParams::default() }, 1_000)?;
//! let row: Vec<f32> = (0..1_000).map(|i| -(i as f32) / 10.0).collect();
//! let reduced = sampler.sample(5, &Logits::reduce(&row, 128), None)?;
//! let whole = sampler.sample(5, &Logits::Whole(Hidden(row)), None)?;
//! assert!(matches!(reduced, Decision::Token { .. }));
//! assert_eq!(reduced, whole);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! In llama.cpp's order: logit bias, penalties, grammar, top-k, typical, top-p, min-p, temperature, draw. All but the
//! draw look at probabilities at temperature 1. The draw adds noise that depends on seed, position and token alone
//! (Gumbel's trick): an absent token can win only if the largest noise of the absent, on top of the Nth logit, beats
//! the best candidate. Nothing here does IO or reads a clock.

mod history;
mod logprobs;
mod noise;
mod params;
mod pool;
mod stop;
mod text;

#[cfg(test)]
mod properties;

use std::borrow::Cow;

use potluck_core::{Logits, bounds};

pub use logprobs::TokenLogprobs;
pub use params::{
    LOGIT_BIAS_MAX, LOGPROBS_MAX, ParamsError, REPEAT_LAST_N_MAX, SamplingParams, TOP_K_ROOM, TOP_LOGITS_DEFAULT,
};
pub use stop::{FinishReason, Progress, STOP_STRING_BYTES_MAX, STOP_STRINGS_MAX, StopError, StopRules, Stopper};
pub use text::Utf8Stream;

use history::History;
use noise::Noise;
use pool::{Candidate, Pool, Rest, order};

/// A tail sums differences of f32 and rounds the logarithm to f32, with another machine's `exp` and `ln`: each
/// costs about an ulp of the logarithm, or of the mean distance to the largest logit, which `ln(vocabulary)` bounds.
const LOG_SUM_EXP_ULPS: f64 = 4.0;
const LN_VOCABULARY_MAX: f64 = 14.0;
const _: () = assert!(bounds::VOCABULARY_MAX < 1_200_000, "e to the 14th");

/// How much sharper than the draft model's own the distribution of the target's choice is taken to be: what it is worth is learnt from
/// the choices themselves.
const LIKENESS: f32 = 2.5;

/// What the sampler made of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The next token.
    Token {
        /// Its id.
        token: u32,
    },
    /// The reduced row does not decide: ask the tail for the whole one, and sample again with it.
    NeedWholeRow,
}

/// Why there is no next token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The user, or the model: bias and grammar together forbid every token, or no logit is a number.
    #[error("no token is left to choose from: bias and grammar forbid all {0}")]
    NothingLeft(u32),
    /// The caller: the row or the mask does not fit the vocabulary.
    #[error("the row names {row} tokens and the mask {mask}; the vocabulary has {vocabulary}")]
    Shape {
        /// Tokens of the row.
        row: usize,
        /// Entries of the mask.
        mask: usize,
        /// Tokens of the vocabulary.
        vocabulary: u32,
    },
}

/// A logit as it is reckoned with: what is not a number counts as the smallest, and none is infinitely large.
fn bounded(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) }
}

/// Chooses tokens for one session.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    vocabulary: u32,
    history: History,
}

impl Sampler {
    /// A sampler for a vocabulary of so many tokens, with an empty history.
    ///
    /// # Errors
    /// See [`ParamsError`].
    pub fn new(params: SamplingParams, vocabulary: u32) -> Result<Self, ParamsError> {
        params.check(vocabulary)?;
        let max = bounds::VOCABULARY_MAX as u64;
        if u64::from(vocabulary) > max {
            return Err(ParamsError::Bound { name: "vocabulary", value: vocabulary.into(), max });
        }
        Ok(Self { history: History::new(&params), params, vocabulary })
    }

    /// What it was made with.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// A token was added to the session, by the prompt or by a choice: the penalties count it from here on.
    pub fn accept(&mut self, token: u32) {
        self.history.push(token);
    }

    /// The tokens of a row, in its order: what a grammar is asked about.
    pub fn tokens_of(row: &Logits) -> Vec<u32> {
        match row {
            Logits::Top { largest, .. } => largest.iter().map(|(token, _)| *token).collect(),
            Logits::Whole(row) => (0..row.0.len() as u32).collect(),
        }
    }

    /// Chooses the token at `position` of the session from a row.
    ///
    /// `allowed`: for each token of the row, in the row's order, whether the grammar allows it; none: no grammar.
    /// # Errors
    /// See [`SampleError`].
    pub fn sample(&self, position: u32, row: &Logits, allowed: Option<&[bool]>) -> Result<Decision, SampleError> {
        let (mut pool, present) = self.pool(row, allowed)?;
        if pool.candidates.is_empty() {
            return match pool.rest {
                None => Err(SampleError::NothingLeft(self.vocabulary)),
                Some(_) => Ok(Decision::NeedWholeRow),
            };
        }
        let greedy = self.params.temperature == 0.0;
        // The likeliest passes every filter but typical.
        let filtered = greedy && self.params.typical_p >= 1.0 || pool.filter(&self.params).is_some();
        let choose = || match greedy {
            true => pool.first(),
            false => {
                let noise = Noise::new(self.params.seed, position);
                pool.draw(self.params.temperature.into(), noise, &present, self.vocabulary)
            }
        };
        let token = filtered.then(choose).flatten();
        Ok(token.map_or(Decision::NeedWholeRow, |token| Decision::Token { token }))
    }

    /// What would likely be chosen at `position` if `row` were the target's, the likeliest first, with its share: for drafts.
    ///
    /// The noise of that position is the target's, too, so where tokens are drawn, a draft model that has the target's
    /// distribution guesses right (a common-random-numbers coupling: Daliri et al., arXiv:2408.07978).
    pub fn guesses(&self, position: u32, row: &Logits, most: usize) -> Vec<(u32, f32)> {
        let largest = match row {
            Logits::Top { largest, .. } => Cow::Borrowed(largest),
            Logits::Whole(row) => Cow::Owned((0u32..).zip(row.0.iter().copied()).collect()),
        };
        let changed = |&(token, logit): &(u32, f32)| (token, bounded(self.history.adjust(&self.params, token, logit)));
        let mut guesses: Vec<(u32, f32)> = largest.iter().map(changed).collect();
        guesses.sort_unstable_by(|a, b| order((a.1, a.0), (b.1, b.0)));
        if self.params.temperature > 0.0 {
            if self.params.top_k > 0 {
                guesses.truncate(self.params.top_k as usize);
            }
            let first = guesses.first().map_or(0.0, |guess| guess.1);
            guesses.retain(|guess| guess.1 - first >= self.params.min_p.ln());
            let noise = Noise::new(self.params.seed, position);
            for guess in &mut guesses {
                guess.1 = guess.1 / self.params.temperature + noise.gumbel(guess.0) as f32;
            }
            guesses.sort_unstable_by(|a, b| order((a.1, a.0), (b.1, b.0)));
        }
        // Models that are alike agree on the largest more often than the probability of one of them says.
        let first = guesses.first().map_or(0.0, |guess| guess.1);
        guesses.iter_mut().for_each(|guess| guess.1 = first + (guess.1 - first) * LIKENESS);
        let sum: f32 = guesses.iter().map(|guess| (guess.1 - first).exp()).sum();
        guesses.truncate(most);
        guesses.retain(|guess| guess.1 > f32::NEG_INFINITY);
        guesses.iter().map(|guess| (guess.0, (guess.1 - first).exp() / sum)).collect()
    }

    /// The candidates, changed and masked, and the row's tokens in ascending order (only where some are absent).
    fn pool(&self, row: &Logits, allowed: Option<&[bool]>) -> Result<(Pool, Vec<u32>), SampleError> {
        let (largest, log_sum_exp) = match row {
            Logits::Top { largest, log_sum_exp } => (Cow::Borrowed(largest), *log_sum_exp),
            Logits::Whole(row) => (Cow::Owned((0u32..).zip(row.0.iter().copied()).collect()), 0.0),
        };
        self.check_shape(row, &largest, allowed)?;
        let changed = |entry: &(u32, f32)| bounded(self.history.adjust(&self.params, entry.0, bounded(entry.1)));
        let passes = |i: usize| allowed.is_none_or(|allowed| allowed[i]);
        let mut candidates: Vec<Candidate> = (largest.iter().enumerate())
            .filter(|&(i, _)| passes(i))
            .map(|(_, entry)| Candidate { token: entry.0, logit: changed(entry), sure: true })
            .filter(|c| c.logit > f32::NEG_INFINITY)
            .collect();
        self.sort(&mut candidates);
        let first = candidates.first().map_or(f64::NEG_INFINITY, |c| c.logit.into());
        let mut pool = Pool { candidates, rest: None, reference: first };
        let mut present = Vec::new();
        if largest.len() < self.vocabulary as usize {
            present = largest.iter().map(|(token, _)| *token).collect();
            present.sort_unstable();
            self.add_rest(&mut pool, &largest, &present, log_sum_exp, allowed.is_some());
        }
        Ok((pool, present))
    }

    fn check_shape(&self, row: &Logits, largest: &[(u32, f32)], allowed: Option<&[bool]>) -> Result<(), SampleError> {
        let whole = matches!(row, Logits::Whole(_));
        let good = largest.len() <= self.vocabulary as usize
            && (!whole || largest.len() == self.vocabulary as usize)
            && !largest.is_empty()
            && largest.iter().all(|(token, _)| *token < self.vocabulary)
            && allowed.is_none_or(|allowed| allowed.len() == largest.len());
        let mask = allowed.map_or(largest.len(), <[bool]>::len);
        let error = SampleError::Shape { row: largest.len(), mask, vocabulary: self.vocabulary };
        if good { Ok(()) } else { Err(error) }
    }

    /// Puts the candidates in order, as many as top-k can keep.
    fn sort(&self, candidates: &mut Vec<Candidate>) {
        let by_order = |a: &Candidate, b: &Candidate| order((a.logit, a.token), (b.logit, b.token));
        let keep = match self.params.top_k as usize {
            _ if self.params.temperature == 0.0 && self.params.typical_p >= 1.0 => 1,
            0 => candidates.len(),
            k => k,
        };
        if keep < candidates.len() {
            candidates.select_nth_unstable_by(keep, by_order);
            candidates.truncate(keep);
        }
        candidates.sort_unstable_by(by_order);
    }

    /// What is known of the tokens that the row leaves out, after bias and penalties.
    fn add_rest(&self, pool: &mut Pool, largest: &[(u32, f32)], present: &[u32], log_sum_exp: f32, masked: bool) {
        let Some(&(last_token, last)) = largest.last() else { return };
        let last = bounded(last);
        let absent = self.history.changes().filter(|(token, _)| present.binary_search(token).is_err());
        let (mut bound, mut lowered, mut raised) = ((last, last_token), 0u32, Vec::new());
        for (token, change) in absent {
            let most = bounded(change.apply(&self.params, last));
            lowered += 1;
            if most > last {
                raised.push(most);
            }
            if order((most, token), bound).is_lt() {
                bound = (most, token);
            }
        }
        pool.reference = pool.reference.max(bound.0.into());
        if pool.reference == f64::NEG_INFINITY {
            return;
        }
        let weight = |logit: f64| (logit - pool.reference).exp();
        let present_mass: f64 = largest.iter().map(|entry| weight(bounded(entry.1).into())).sum();
        let error = LOG_SUM_EXP_ULPS * f64::from(f32::EPSILON) * (LN_VOCABULARY_MAX + f64::from(log_sum_exp.abs()));
        let sum = weight(log_sum_exp.into());
        let count = f64::from(self.vocabulary) - present.len() as f64;
        let most = (sum * (1.0 + error) - present_mass).clamp(0.0, count * weight(last.into()));
        let least = sum * (1.0 - error) - present_mass - f64::from(lowered) * weight(last.into());
        let most = most + raised.into_iter().map(|logit| weight(logit.into())).sum::<f64>();
        // `max` and `min` take the number where the other is none: a hostile sum cannot panic here.
        let least = if masked { 0.0 } else { least.max(0.0).min(most) };
        pool.rest = Some(Rest { bound, mass: (least, most) });
    }
}
