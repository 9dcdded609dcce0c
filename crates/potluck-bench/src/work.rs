//! What is run, the same for all who take part, and how two of them alternate.

use std::time::Duration;

use crate::Outcome;

/// Positions of the prefill: one chunk, as `llama-bench` measures it.
pub(crate) const PREFILL: u32 = 512;

/// Tokens that are decoded in a round, from an empty cache: where each token is cheapest, and what is added to it
/// weighs most.
pub(crate) const DECODE: u32 = 64;

/// Tokens of the prompt of each of several answers.
pub(crate) const STREAM_PROMPT: u32 = 32;

/// How long is waited before a measurement: the threads of whoever ran before may still spin.
const SETTLE: Duration = Duration::from_millis(250);

/// A kind of work, measured in tokens per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// [`PREFILL`] positions at once into an empty cache.
    Prefill,
    /// [`DECODE`] tokens, one after the other, greedily.
    Decode,
    /// So many answers at once, of [`DECODE`] tokens after [`STREAM_PROMPT`] each, all of them counted together.
    Streams(u16),
}

impl Work {
    pub(crate) const ALL: [Self; 2] = [Self::Prefill, Self::Decode];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Streams(_) => "streams",
        }
    }

    /// How often it is repeated: short work more often.
    pub(crate) fn rounds(self, quick: bool) -> usize {
        match (self, quick) {
            (Self::Prefill | Self::Streams(_), false) => 5,
            (Self::Decode, false) => 9,
            (_, true) => 3,
        }
    }
}

/// The tokens of the prefill: no particular text; the time does not depend on it.
pub(crate) fn prompt() -> Vec<u32> {
    (0..PREFILL).map(|at| 1_000 + at * 37 % 20_000).collect()
}

/// Prompts of answers that are made at once: no two begin alike, in this round or another.
pub(crate) fn stream_prompts(streams: u16, round: u32) -> Vec<Vec<u32>> {
    let token = |stream: u32, at: u32| 1_000 + (stream * 131 + round * 2_003 + at * 7_919) % 40_000;
    (0..streams).map(|stream| (0..STREAM_PROMPT).map(|at| token(stream.into(), at)).collect()).collect()
}

/// How long a round took.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timed {
    /// Tokens per second.
    pub(crate) rate: f64,
    /// Milliseconds of each step, where they are known.
    pub(crate) steps: Vec<f64>,
}

impl Timed {
    /// From the seconds of each step, with so many tokens in each.
    pub(crate) fn of(steps: Vec<f64>, tokens: u32) -> Self {
        let rate = f64::from(tokens) * steps.len() as f64 / steps.iter().sum::<f64>();
        Self { rate, steps: steps.into_iter().map(|seconds| seconds * 1e3).collect() }
    }
}

/// Somebody who can do the work.
pub(crate) trait Contestant {
    /// What it is called where another is measured against it.
    fn name(&self, work: Work) -> String;

    /// Does the work once, after a short warm-up.
    async fn run(&mut self, work: Work) -> Outcome<Timed>;
}

/// Rates of two contestants that took turns.
#[derive(Debug, Default)]
pub(crate) struct Duel {
    /// Of the one that is measured against, before and after each round of the other.
    pub(crate) base: Vec<f64>,
    /// Of the one that is measured.
    pub(crate) other: Vec<f64>,
    /// Milliseconds of each step of both.
    pub(crate) steps: [Vec<f64>; 2],
}

impl Duel {
    /// A B A B ... A: each B stands between two As.
    pub(crate) async fn fight(
        base: &mut impl Contestant,
        other: &mut impl Contestant,
        work: Work,
        rounds: usize,
    ) -> Outcome<Self> {
        let mut duel = Self::default();
        for _ in 0..rounds {
            duel.take(0, settled(base, work).await?);
            duel.take(1, settled(other, work).await?);
        }
        duel.take(0, settled(base, work).await?);
        Ok(duel)
    }

    fn take(&mut self, who: usize, timed: Timed) {
        [&mut self.base, &mut self.other][who].push(timed.rate);
        self.steps[who].extend(timed.steps);
    }

    /// For each round, the measured one against the mean of its two neighbours: a slow drift of the machine cancels.
    pub(crate) fn ratios(&self) -> Vec<f64> {
        let neighbours = self.base.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
        self.other.iter().zip(neighbours).map(|(other, base)| other / base).collect()
    }
}

async fn settled(contestant: &mut impl Contestant, work: Work) -> Outcome<Timed> {
    tokio::time::sleep(SETTLE).await;
    contestant.run(work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drift_of_the_machine_cancels() {
        let duel = Duel { base: vec![10.0, 8.0, 6.0], other: vec![9.0, 7.0], ..Duel::default() };
        assert_eq!(duel.ratios(), [1.0, 1.0]);
    }
}
