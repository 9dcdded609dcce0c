//! Rows of logits, compared.

use super::Change;

/// The engine, or a codec: a row of logits holds a value that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a logit is not finite")]
pub struct NotFinite;

/// A row of logits as it is where nothing is changed, with what comparing needs of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    logits: Vec<f32>,
    probabilities: Vec<f32>,
    log_sum: f64,
    likeliest: usize,
    target: usize,
}

/// Differences, position by position, as they come.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    losses: Vec<f64>,
    kl: f64,
    margins: Vec<f64>,
}

/// The log of the sum of all exponentials of the row, and its largest entry (ties: the first).
fn summed(logits: &[f32]) -> Result<(f64, usize), NotFinite> {
    let mut likeliest = 0;
    for (at, &logit) in logits.iter().enumerate() {
        if !logit.is_finite() {
            return Err(NotFinite);
        }
        if logit > logits[likeliest] {
            likeliest = at;
        }
    }
    let max = *logits.get(likeliest).ok_or(NotFinite)?;
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    Ok((f64::from(max) + sum.ln(), likeliest))
}

impl Expected {
    /// The row before which the text goes on with token `target`.
    ///
    /// # Errors
    /// `NotFinite` at a NaN or an infinity, and where the row has no such token.
    pub fn new(logits: Vec<f32>, target: u32) -> Result<Self, NotFinite> {
        let (log_sum, likeliest) = summed(&logits)?;
        let target = target as usize;
        if target >= logits.len() {
            return Err(NotFinite);
        }
        let probabilities = logits.iter().map(|&logit| (f64::from(logit) - log_sum) as f32).map(f32::exp).collect();
        Ok(Self { logits, probabilities, log_sum, likeliest, target })
    }

    /// The negative log likelihood of the target, in nats.
    pub fn nll(&self) -> f64 {
        self.log_sum - f64::from(self.logits[self.target])
    }
}

impl Tally {
    /// Adds what a position became.
    ///
    /// # Errors
    /// `NotFinite` at a NaN or an infinity, and where the row is not as long as the expected one.
    pub fn add(&mut self, expected: &Expected, logits: &[f32]) -> Result<(), NotFinite> {
        if logits.len() != expected.logits.len() {
            return Err(NotFinite);
        }
        let (log_sum, likeliest) = summed(logits)?;
        let moved = expected.logits.iter().zip(logits).zip(&expected.probabilities);
        let moved: f64 = moved.map(|((&was, &is), &p)| f64::from(p) * (f64::from(was) - f64::from(is))).sum();
        self.kl += moved + log_sum - expected.log_sum;
        self.losses.push(log_sum - f64::from(logits[expected.target]) - expected.nll());
        if likeliest != expected.likeliest {
            let margin = expected.logits[expected.likeliest] - expected.logits[likeliest];
            self.margins.push(margin.into());
        }
        Ok(())
    }

    /// What changed; nothing where nothing was added.
    pub fn change(mut self) -> Change {
        let count = self.losses.len();
        if count == 0 {
            return Change::default();
        }
        let n = count as f64;
        let loss = self.losses.iter().sum::<f64>() / n;
        let variance = self.losses.iter().map(|d| (d - loss) * (d - loss)).sum::<f64>() / (n - 1.0).max(1.0);
        self.margins.sort_unstable_by(f64::total_cmp);
        Change {
            loss,
            loss_error: (variance / n).sqrt(),
            // Rounding may leave it a little below nothing.
            kl: (self.kl / n).max(0.0),
            agreed: (count - self.margins.len()) as u32,
            margin_median: self.margins.get(self.margins.len() / 2).copied().unwrap_or(0.0),
            margin_max: self.margins.last().copied().unwrap_or(0.0),
        }
    }
}
