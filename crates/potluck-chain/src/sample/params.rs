//! What a client may ask of the sampler, and the bounds of it.

use potluck_core::bounds;
use serde::{Deserialize, Serialize};

/// Tokens with a logit bias. More are refused with `Bound`.
pub const LOGIT_BIAS_MAX: usize = 4_096;
/// Tokens that penalties look back at. More are refused with `Bound`.
pub const REPEAT_LAST_N_MAX: u32 = 1 << 16;
/// Alternatives reported with each token. More are refused with `Bound`.
pub const LOGPROBS_MAX: u16 = 64;
/// Logits of each row that the tail is asked for, unless the parameters need more or fewer.
pub const TOP_LOGITS_DEFAULT: u16 = 128;
/// Logits asked for beyond `top_k`: room for candidates that a penalty or the grammar takes away.
pub const TOP_K_ROOM: u32 = 88;

/// How tokens are chosen. The defaults are llama.cpp's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// 0 takes the likeliest token; 1 draws as the model says; more flattens.
    pub temperature: f32,
    /// Keep the so many likeliest; 0: all.
    pub top_k: u32,
    /// Keep the most typical that together have this probability; 1: all.
    pub typical_p: f32,
    /// Keep the likeliest that together have this probability; 1: all.
    pub top_p: f32,
    /// Keep what is at least so likely as this share of the likeliest; 0: all.
    pub min_p: f32,
    /// Divides the positive logits of recent tokens, multiplies the negative ones; 1: off.
    pub repeat_penalty: f32,
    /// How many recent tokens the three penalties look at, the prompt's included; 0: none.
    pub repeat_last_n: u32,
    /// Taken once from the logit of each recent token; 0: off.
    pub presence_penalty: f32,
    /// Taken from a recent token's logit for each time it occurs; 0: off.
    pub frequency_penalty: f32,
    /// `(token, added to its logit)`; negative infinity bans the token.
    pub logit_bias: Vec<(u32, f32)>,
    /// The draw depends on this, the position and the token alone.
    pub seed: u64,
    /// Report the log-probability of each token, and of so many alternatives.
    pub logprobs: Option<u16>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            typical_p: 1.0,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// The user: a parameter has no meaning, or is beyond its bound.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ParamsError {
    /// Not a number, infinite, or outside of what the parameter means.
    #[error("{name} is {value}; it must be {expected}")]
    Value {
        /// Which parameter.
        name: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        expected: &'static str,
    },
    /// More than is allowed.
    #[error("{name} is {value}; the limit is {max}")]
    Bound {
        /// Which parameter.
        name: &'static str,
        /// Its value.
        value: u64,
        /// The limit.
        max: u64,
    },
    /// A bias for a token that the model does not have.
    #[error("the logit bias names token {token}; the vocabulary has {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Tokens of the vocabulary.
        vocabulary: u32,
    },
}

impl SamplingParams {
    /// The likeliest token, always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Refuses what has no meaning, or exceeds a bound, for a vocabulary of so many tokens.
    ///
    /// # Errors
    /// See [`ParamsError`].
    pub fn check(&self, vocabulary: u32) -> Result<(), ParamsError> {
        let value = |name, value: f32, good: bool, expected| match good {
            true => Ok(()),
            false => Err(ParamsError::Value { name, value, expected }),
        };
        let share = |name, p: f32| value(name, p, (0.0..=1.0).contains(&p), "between 0 and 1");
        let finite = |name, v: f32| value(name, v, v.is_finite(), "a finite number");
        let within = |name, value: u64, max: u64| match value <= max {
            true => Ok(()),
            false => Err(ParamsError::Bound { name, value, max }),
        };
        let t = self.temperature;
        value("temperature", t, t.is_finite() && t >= 0.0, "0 or a positive number")?;
        share("typical_p", self.typical_p)?;
        share("top_p", self.top_p)?;
        share("min_p", self.min_p)?;
        let r = self.repeat_penalty;
        value("repeat_penalty", r, r.is_finite() && r > 0.0, "a positive number")?;
        finite("presence_penalty", self.presence_penalty)?;
        finite("frequency_penalty", self.frequency_penalty)?;
        within("repeat_last_n", self.repeat_last_n.into(), REPEAT_LAST_N_MAX.into())?;
        within("logit_bias", self.logit_bias.len() as u64, LOGIT_BIAS_MAX as u64)?;
        within("logprobs", self.logprobs.unwrap_or(0).into(), LOGPROBS_MAX.into())?;
        for &(token, bias) in &self.logit_bias {
            if token >= vocabulary {
                return Err(ParamsError::Token { token, vocabulary });
            }
            value("logit_bias", bias, bias < f32::INFINITY, "a finite number, or negative infinity")?;
        }
        Ok(())
    }

    /// How many of each row's largest logits the tail should return: [`Step::top`](potluck_core::Step::top).
    ///
    /// 0, the whole row, where fewer would seldom decide. `constrained`: a grammar takes candidates away.
    pub fn top(&self, constrained: bool) -> u16 {
        let max = bounds::TOP_LOGITS_MAX as u32;
        let typical = self.typical_p < 1.0;
        let wanted = match self.top_k {
            _ if self.temperature == 0.0 && !typical => self.greedy_top(constrained).into(),
            0 if typical => return 0,
            0 => TOP_LOGITS_DEFAULT.into(),
            k => k.saturating_add(TOP_K_ROOM).max(TOP_LOGITS_DEFAULT.into()),
        };
        let logprobs = self.logprobs.unwrap_or(0).into();
        // Beyond the bound nothing is lost but a second question now and then.
        u32::max(wanted, logprobs).min(max) as u16
    }

    fn greedy_top(&self, constrained: bool) -> u16 {
        if constrained || self.changes_logits() { TOP_LOGITS_DEFAULT } else { 1 }
    }

    /// True if some token's logit may be changed before the choice.
    pub(super) fn changes_logits(&self) -> bool {
        !self.logit_bias.is_empty() || self.penalises()
    }

    /// True if a penalty is on.
    pub(super) fn penalises(&self) -> bool {
        let off = self.repeat_penalty == 1.0 && self.presence_penalty == 0.0 && self.frequency_penalty == 0.0;
        self.repeat_last_n > 0 && !off
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_without_a_meaning_are_refused_by_name() {
        let refused = |change: fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            params.check(10).unwrap_err().to_string()
        };
        assert!(refused(|p| p.temperature = f32::NAN).starts_with("temperature is NaN"));
        assert!(refused(|p| p.temperature = -0.5).starts_with("temperature"));
        assert!(refused(|p| p.top_p = 1.5).starts_with("top_p is 1.5"));
        assert!(refused(|p| p.repeat_penalty = 0.0).starts_with("repeat_penalty"));
        assert!(refused(|p| p.frequency_penalty = f32::INFINITY).starts_with("frequency_penalty"));
        assert!(refused(|p| p.logit_bias = vec![(10, 1.0)]).contains("token 10"));
        assert!(refused(|p| p.logit_bias = vec![(1, f32::INFINITY)]).starts_with("logit_bias"));
        assert!(refused(|p| p.logprobs = Some(65)).contains("limit is 64"));
        let banned = SamplingParams { logit_bias: vec![(1, f32::NEG_INFINITY)], ..SamplingParams::default() };
        assert_eq!(banned.check(10), Ok(()));
    }

    #[test]
    fn as_much_of_a_row_is_asked_for_as_can_decide() {
        let params = SamplingParams::default();
        assert_eq!(params.top(false), 128);
        assert_eq!(SamplingParams { top_k: 200, ..params.clone() }.top(false), 288);
        assert_eq!(SamplingParams { top_k: 5_000, ..params.clone() }.top(false), 1_024);
        assert_eq!(SamplingParams { top_k: 0, typical_p: 0.9, ..params.clone() }.top(false), 0);
        assert_eq!(SamplingParams::greedy().top(false), 1);
        assert_eq!(SamplingParams::greedy().top(true), 128);
        assert_eq!(SamplingParams { repeat_penalty: 1.1, ..SamplingParams::greedy() }.top(false), 128);
        assert_eq!(SamplingParams { logprobs: Some(5), ..SamplingParams::greedy() }.top(false), 5);
    }
}
