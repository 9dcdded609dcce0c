//! What speculation has cost so far, against what plain decoding would have taken.

/// Of the time that plain decoding would have taken, so much may be lost: half a per cent is left for errors of measure.
const LOSS_MAX: f64 = 0.015;

/// What may be lost before anything is known, and the most that is ever saved up, in plain steps. What was won beyond
/// that may not be lost again.
const ALLOWANCE_STEPS: f64 = 6.0;
const SAVINGS_STEPS: f64 = 24.0;

/// Seconds that may still be lost. Speculation that costs more than it brings draws on it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Account {
    balance: f64,
    open: bool,
}

impl Account {
    /// The first measure of a plain step, in seconds.
    pub(super) fn open(&mut self, plain_step: f64) {
        if !self.open {
            *self = Self { balance: ALLOWANCE_STEPS * plain_step, open: true };
        }
    }

    /// Seconds that may be lost in this round.
    pub(super) fn balance(&self) -> f64 {
        self.balance
    }

    /// `tokens` came after `seconds`; plain decoding takes `plain_step` for each. A plain round neither wins nor loses.
    pub(super) fn book(&mut self, tokens: usize, seconds: f64, plain_step: f64, speculative: bool) {
        let plain = tokens as f64 * plain_step;
        let won = if speculative { plain - seconds } else { 0.0 };
        let ceiling = (SAVINGS_STEPS * plain_step).max(self.balance);
        self.balance = (self.balance + LOSS_MAX * plain + won).min(ceiling);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_the_account_loses_little() {
        let mut account = Account::default();
        account.open(0.1);
        let (mut plain, mut spent) = (0.0, 0.0);
        // Each speculative round loses half a step.
        for _ in 0..10_000 {
            let speculative = account.balance() >= 0.05;
            let seconds = if speculative { 0.15 } else { 0.1 };
            account.book(1, seconds, 0.1, speculative);
            (plain, spent) = (plain + 0.1, spent + seconds);
        }
        assert!(spent <= 1.0151 * plain + 0.6, "{spent} instead of {plain}");
        assert!(spent > 1.014 * plain, "the allowance is used");
    }

    #[test]
    fn a_fortune_is_not_lost_again() {
        let mut account = Account::default();
        account.open(0.1);
        (0..1_000).for_each(|_| account.book(10, 0.1, 0.1, true));
        assert!(account.balance() <= 2.4 + 1e-9);
    }
}
