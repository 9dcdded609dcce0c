//! One answer under way: what it has so far, and when things happened.

use std::time::Instant;

use potluck_chain::sample::{FinishReason, Sampler, Stopper, TokenLogprobs};
use potluck_engine::GrammarId;

use crate::{DraftCounts, LOSSES_MAX, Outcome, RESUMES_MAX, RepairTimes, StageAccount, TokenEvent, trace::Tracing};

/// One answer under way.
pub(crate) struct Run {
    pub(crate) sampler: Sampler,
    pub(crate) stopper: Stopper,
    pub(crate) grammar: Option<GrammarId>,
    /// Logits that the tail is asked for.
    pub(crate) top: u16,
    pub(crate) max_tokens: u32,
    /// Tokens that end the answer, unless they are to be ignored.
    pub(crate) ends: Vec<u32>,
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    pub(crate) clock: Clock,
    pub(crate) counts: DraftCounts,
    /// Seconds from the answer before to the last one.
    pub(crate) waited: f64,
    /// Where the request asked for it.
    pub(crate) tracing: Option<Tracing>,
    resumed: usize,
    /// How chains had other peers in the places of lost ones, those included that are lost themselves since.
    pub(crate) repairs: Vec<RepairTimes>,
    /// Where the steps began that a lost chain had evaluated, the longest there was, and where the last ended.
    cuts: (Vec<usize>, usize),
    /// Tokens when a chain was lost last, and how many were lost with so many.
    lost: (usize, usize),
}

/// When things happened, and how many bytes had been written then.
pub(crate) struct Clock {
    prompt_tokens: usize,
    reused: usize,
    started: Instant,
    prefilled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// Seconds that a token was waited for, at most.
    longest_pause: f64,
    /// Written by the chain so far, and in decode by all chains.
    bytes: u64,
    decode_bytes: u64,
    decoded: u64,
}

impl Run {
    pub(crate) fn new(
        prompt_tokens: usize,
        max_tokens: u32,
        ends: Vec<u32>,
        sampler: Sampler,
        stopper: Stopper,
        top: u16,
    ) -> Self {
        let clock = Clock {
            prompt_tokens,
            reused: 0,
            started: Instant::now(),
            prefilled: None,
            first_token: None,
            last_token: None,
            longest_pause: 0.0,
            bytes: 0,
            decode_bytes: 0,
            decoded: 0,
        };
        Self {
            sampler,
            stopper,
            grammar: None,
            top,
            max_tokens,
            ends,
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            clock,
            counts: DraftCounts::default(),
            waited: 0.0,
            tracing: None,
            resumed: 0,
            repairs: Vec::new(),
            cuts: (Vec::new(), 0),
            lost: (0, 0),
        }
    }

    /// The first step is about to be sent; the caches held so many tokens of the prompt.
    pub(crate) fn started(&mut self, reused: usize) {
        if self.resumed > 0 {
            return;
        }
        self.clock.reused = reused;
        self.clock.started = Instant::now();
    }

    /// The last prefill step was answered.
    pub(crate) fn prefilled(&mut self, bytes: u64) {
        self.clock.prefilled.get_or_insert_with(Instant::now);
        self.clock.bytes = bytes;
    }

    /// The chain is gone: whether it may go on over another.
    pub(crate) fn may_resume(&mut self) -> bool {
        let tokens = self.tokens.len();
        let before = if self.lost.0 == tokens { self.lost.1 } else { 0 };
        self.lost = (tokens, before + 1);
        self.lost.1 <= LOSSES_MAX && self.resumed < RESUMES_MAX
    }

    /// It goes on over another chain, after one that had evaluated so many positions in steps that began there.
    pub(crate) fn resumes(&mut self, cuts: &[usize], held: usize) {
        self.resumed += 1;
        if held > self.cuts.1 {
            self.cuts = (cuts.to_vec(), held);
        }
        // What each stage has done is told by those that are gone.
        self.tracing = None;
    }

    /// Where the steps begin that evaluate so many positions as before.
    pub(crate) fn cuts_again(&self, positions: usize, chunk: usize) -> Vec<usize> {
        let (cuts, held) = &self.cuts;
        again(cuts, *held, (self.clock.prompt_tokens, positions), chunk)
    }

    /// How often it went on over another chain.
    pub(crate) fn resumed(&self) -> usize {
        self.resumed
    }

    /// The tokens that were chosen.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// A decode step of so many rows was answered.
    pub(crate) fn decoded(&mut self, bytes: u64, rows: usize) {
        self.clock.decode_bytes += bytes.saturating_sub(self.clock.bytes);
        self.clock.bytes = bytes;
        self.clock.decoded += rows as u64;
    }

    /// A token was chosen, of an answer that had come at `answered`.
    pub(crate) fn took(&mut self, token: u32, answered: Instant) {
        let now = Instant::now();
        if let Some(tracing) = &mut self.tracing {
            tracing.chose(now - answered);
        }
        self.clock.first_token.get_or_insert(now);
        let pause = seconds(self.clock.last_token.replace(now).unwrap_or(self.clock.started), now);
        self.clock.longest_pause = self.clock.longest_pause.max(pause);
        self.tokens.push(token);
    }

    /// The last tokens that were taken were not said after all: a text that ends the answer came before them.
    pub(crate) fn unsay(&mut self, tokens: usize) {
        self.tokens.truncate(self.tokens.len().saturating_sub(tokens));
    }

    /// Tokens that the answer may still have.
    pub(crate) fn tokens_left(&self) -> usize {
        (self.max_tokens as usize).saturating_sub(self.tokens.len())
    }

    /// True if no token follows the one that was taken last.
    pub(crate) fn is_last(&self, token: u32) -> bool {
        self.ends.contains(&token) || self.tokens.len() >= self.max_tokens as usize
    }

    /// A token's text is safe to show.
    pub(crate) fn show(&mut self, event: &TokenEvent, on_token: &mut impl FnMut(&TokenEvent)) {
        self.text += &event.text;
        self.logprobs.extend(event.logprobs.clone());
        on_token(event);
    }

    /// Cancelled: the text that was held back is shown with the last token.
    pub(crate) fn cancelled(&mut self, on_token: &mut impl FnMut(&TokenEvent)) -> FinishReason {
        let text = self.stopper.flush();
        if let (false, Some(&token)) = (text.is_empty(), self.tokens.last()) {
            self.show(&TokenEvent { token, text, logprobs: None }, on_token);
        }
        FinishReason::Cancel
    }

    /// `accounts`: those of the stages at the end, and when that was, where a trace was asked for.
    pub(crate) fn finish(self, finish_reason: FinishReason, accounts: Option<(Vec<StageAccount>, Instant)>) -> Outcome {
        let Self { text, tokens, logprobs, clock, sampler, tracing, resumed, repairs, counts, .. } = self;
        let trace = accounts.zip(tracing).and_then(|((accounts, ended), tracing)| {
            let seconds = tracing.decoding_since().map_or(0.0, |since| seconds(since, ended));
            tracing.finish(seconds, &accounts)
        });
        Outcome {
            text,
            finish_reason,
            prompt_tokens: clock.prompt_tokens,
            completion_tokens: tokens.len(),
            reused_tokens: clock.reused,
            ttft_s: clock.first_token.map_or(0.0, |first| seconds(clock.started, first)),
            prefill_tokens_per_s: clock.prefill_rate(),
            decode_tokens_per_s: clock.decode_rate(tokens.len()),
            bytes_per_position: clock.bytes_per_position(),
            logprobs: sampler.params().logprobs.map(|_| logprobs),
            tokens,
            trace,
            resumed,
            repairs,
            longest_pause_s: clock.longest_pause,
            drafts: counts,
        }
    }
}

impl Clock {
    fn prefill_rate(&self) -> f64 {
        let evaluated = (self.prompt_tokens - self.reused) as f64;
        rate(evaluated, self.prefill_seconds())
    }

    /// Seconds until the last prefill step was answered.
    pub(crate) fn prefill_seconds(&self) -> f64 {
        self.prefilled.map_or(0.0, |at| seconds(self.started, at))
    }

    fn decode_rate(&self, tokens: usize) -> f64 {
        let time = self.first_token.zip(self.last_token).map_or(0.0, |(first, last)| seconds(first, last));
        rate(tokens.saturating_sub(1) as f64, time)
    }

    fn bytes_per_position(&self) -> f64 {
        rate(self.decode_bytes as f64, self.decoded as f64)
    }
}

/// The steps that were evaluated before, which began there and ended at `held`; then, of what is left up to `positions`, the prompt in
/// chunks and the answer one by one.
fn again(cuts: &[usize], held: usize, (prompt, positions): (usize, usize), chunk: usize) -> Vec<usize> {
    let known = cuts.iter().copied().filter(|start| *start < positions);
    known.chain((held..prompt).step_by(chunk)).chain(prompt.max(held)..positions).collect()
}

/// A rate, or 0 where nothing was measured: JSON has no infinity.
fn rate(amount: f64, over: f64) -> f64 {
    if over > 0.0 { amount / over } else { 0.0 }
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::again;

    #[test]
    fn steps_are_evaluated_again_as_they_were() {
        // A prompt of seven in chunks of four, and three tokens of its answer.
        assert_eq!(again(&[0, 4, 7, 8], 9, (7, 10), 4), [0, 4, 7, 8, 9]);
        // An earlier turn, in steps of its own.
        assert_eq!(again(&[0, 3, 4, 5], 6, (9, 9), 4), [0, 3, 4, 5, 6]);
        // Lost within the prompt, and before anything.
        assert_eq!(again(&[0], 4, (11, 11), 4), [0, 4, 8]);
        assert_eq!(again(&[], 0, (5, 7), 4), [0, 4, 5, 6]);
    }
}
