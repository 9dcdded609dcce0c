//! Logit bias and penalties: which tokens' logits change, and to what.

use std::collections::{BTreeMap, VecDeque};

use super::SamplingParams;

/// The recent tokens of a session, counted, and the biases.
#[derive(Debug, Clone)]
pub(super) struct History {
    changes: BTreeMap<u32, Change>,
    recent: VecDeque<u32>,
    window: usize,
}

/// What changes a token's logit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Change {
    bias: f32,
    /// How often it occurs in the window.
    count: u32,
}

impl History {
    pub(super) fn new(params: &SamplingParams) -> Self {
        let window = if params.penalises() { params.repeat_last_n as usize } else { 0 };
        let mut changes: BTreeMap<u32, Change> = BTreeMap::new();
        for &(token, bias) in &params.logit_bias {
            changes.entry(token).or_default().bias += bias;
        }
        Self { changes, recent: VecDeque::new(), window }
    }

    /// A token was added to the session.
    pub(super) fn push(&mut self, token: u32) {
        if self.window == 0 {
            return;
        }
        if self.recent.len() == self.window
            && let Some(oldest) = self.recent.pop_front()
        {
            self.forget(oldest);
        }
        self.recent.push_back(token);
        self.changes.entry(token).or_default().count += 1;
    }

    fn forget(&mut self, token: u32) {
        if let Some(change) = self.changes.get_mut(&token) {
            change.count -= 1;
            if *change == Change::default() {
                self.changes.remove(&token);
            }
        }
    }

    /// Every token whose logit changes, by id.
    pub(super) fn changes(&self) -> impl Iterator<Item = (u32, Change)> {
        self.changes.iter().map(|(&token, &change)| (token, change))
    }

    /// A token's logit, changed.
    pub(super) fn adjust(&self, params: &SamplingParams, token: u32, logit: f32) -> f32 {
        self.changes.get(&token).map_or(logit, |change| change.apply(params, logit))
    }
}

impl Change {
    /// The changed logit; it never falls when `logit` grows, so that a bound stays a bound.
    pub(super) fn apply(self, params: &SamplingParams, logit: f32) -> f32 {
        let logit = logit + self.bias;
        if self.count == 0 {
            return logit;
        }
        let repeat = params.repeat_penalty;
        let logit = if logit <= 0.0 { logit * repeat } else { logit / repeat };
        logit - (self.count as f32 * params.frequency_penalty + params.presence_penalty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_follow_the_window() {
        let params = SamplingParams {
            repeat_penalty: 2.0,
            repeat_last_n: 3,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: vec![(9, 1.0)],
            ..SamplingParams::default()
        };
        let mut history = History::new(&params);
        [1, 2, 2].into_iter().for_each(|token| history.push(token));
        assert_eq!(history.adjust(&params, 1, 4.0), 4.0 / 2.0 - 0.5 - 0.25);
        assert_eq!(history.adjust(&params, 2, -4.0), -4.0 * 2.0 - 0.5 - 0.5);
        assert_eq!(history.adjust(&params, 3, 4.0), 4.0);
        assert_eq!(history.adjust(&params, 9, 4.0), 5.0);
        history.push(9);
        assert_eq!(history.adjust(&params, 1, 4.0), 4.0, "it left the window");
        assert_eq!(history.adjust(&params, 9, 3.0), 2.0 - 0.75, "the bias comes first");
        assert_eq!(history.changes().map(|(token, _)| token).collect::<Vec<_>>(), [2, 9]);
    }

    #[test]
    fn without_penalties_nothing_is_remembered() {
        let mut history = History::new(&SamplingParams::default());
        history.push(1);
        assert_eq!(history.changes().count(), 0);
    }
}
