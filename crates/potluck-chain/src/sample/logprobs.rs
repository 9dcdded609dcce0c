//! What the model itself thought of a token.

use potluck_core::Logits;
use serde::{Deserialize, Serialize};

/// A token's log-probability, and those of the likeliest: the model's own, before bias, penalties and temperature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// The chosen token's; none where a reduced row does not hold it.
    pub logprob: Option<f32>,
    /// `(token, log-probability)`, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// The log-probabilities of `token` and the `n` likeliest, by natural logarithm.
    pub fn of(row: &Logits, token: u32, n: u16) -> Self {
        match row {
            Logits::Top { largest, log_sum_exp } => {
                let find = || largest.iter().find(|(candidate, _)| *candidate == token).map(|&(_, logit)| logit);
                Self::from_parts(largest, *log_sum_exp, find(), n)
            }
            Logits::Whole(row) => match Logits::reduce(&row.0, n.into()) {
                Logits::Top { largest, log_sum_exp } => {
                    Self::from_parts(&largest, log_sum_exp, row.0.get(token as usize).copied(), n)
                }
                Logits::Whole(_) => Self { logprob: None, top: Vec::new() },
            },
        }
    }

    fn from_parts(largest: &[(u32, f32)], log_sum_exp: f32, chosen: Option<f32>, n: u16) -> Self {
        let top = largest.iter().take(n.into()).map(|&(token, logit)| (token, logit - log_sum_exp)).collect();
        Self { logprob: chosen.map(|logit| logit - log_sum_exp), top }
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::Hidden;

    use super::*;

    #[test]
    fn reduced_and_whole_rows_say_the_same() {
        let row = [0.5, 3.0, -2.0, 1.5];
        let whole = TokenLogprobs::of(&Logits::Whole(Hidden(row.to_vec())), 3, 2);
        assert_eq!(whole, TokenLogprobs::of(&Logits::reduce(&row, 3), 3, 2));
        let sum: f32 = row.iter().map(|l| l.exp()).sum();
        assert!((whole.logprob.unwrap() - (1.5f32.exp() / sum).ln()).abs() < 1e-6);
        assert_eq!(whole.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(TokenLogprobs::of(&Logits::reduce(&row, 1), 2, 1).logprob, None);
    }
}
