//! All of it together: `potluck bench --json`.

use potluck_chain::plan::{Alone, Preview};
use potluck_client::{DraftCounts, Outcome};
use serde::Serialize;

use super::{Link, Measured, Times, Transfer};
use crate::talk::RouteStage;

/// What a bench has measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The model's id.
    pub(crate) model: String,
    /// Its name here.
    pub(crate) name: String,
    /// When, in seconds since 1970.
    pub(crate) at: u64,
    /// This machine alone; none where it cannot run the model.
    pub(crate) machine: Option<Measured>,
    /// Why it cannot.
    pub(crate) machine_skipped: Option<String>,
    /// The stages that answered.
    pub(crate) route: Vec<RouteStage>,
    /// The ways between their machines.
    pub(crate) links: Vec<Link>,
    /// How much those carried of the prompt, where that took time.
    pub(crate) transfer: Option<Transfer>,
    /// A long prompt.
    pub(crate) prompt: Whole,
    /// An answer, a token at a time.
    pub(crate) plain: Answered,
    /// The same with drafts; none where there are none.
    pub(crate) drafted: Option<Drafted>,
    /// What the planner had predicted, beside what came.
    pub(crate) predicted: Predicted,
    /// What this machine would do alone, as far as it is known.
    pub(crate) alone: Option<Alone>,
    /// What to do where one machine is faster.
    pub(crate) advice: Option<String>,
}

/// A prompt that was read as a whole.
#[derive(Debug, Serialize)]
pub(crate) struct Whole {
    /// Its tokens.
    pub(crate) tokens: usize,
    /// Milliseconds until the last of them was answered.
    pub(crate) ms: f64,
    /// Tokens over that time.
    pub(crate) tokens_per_s: f64,
    /// Where the time went, a step; none where a peer keeps no accounts.
    pub(crate) step: Option<Times>,
}

/// An answer.
#[derive(Debug, Serialize)]
pub(crate) struct Answered {
    /// Its tokens.
    pub(crate) tokens: usize,
    /// Tokens a second, after the first.
    pub(crate) tokens_per_s: f64,
    /// Milliseconds from the first step's leaving to the first token.
    pub(crate) first_token_ms: f64,
    /// Bytes on all links for a position.
    pub(crate) bytes_per_position: f64,
    /// Where the time went, a token; none where a peer keeps no accounts.
    pub(crate) step: Option<Times>,
}

/// An answer with drafts.
#[derive(Debug, Serialize)]
pub(crate) struct Drafted {
    /// Its tokens.
    pub(crate) tokens: usize,
    /// Tokens a second, after the first.
    pub(crate) tokens_per_s: f64,
    /// What drafting came to.
    pub(crate) drafts: DraftCounts,
}

/// Predictions, and what came.
#[derive(Debug, Serialize)]
pub(crate) struct Predicted {
    /// Tokens a second, without drafts.
    pub(crate) tokens_per_s: Compared,
    /// Milliseconds of the prompt.
    pub(crate) prompt_ms: Compared,
    /// Milliseconds of a token in all engines together; none where a peer keeps no accounts.
    pub(crate) computing_ms: Option<Compared>,
    /// Milliseconds of a token beside arithmetic and choosing: queues, codecs, the ways to engines and between machines.
    pub(crate) between_ms: Option<Compared>,
    /// Why the planner chose as it did.
    pub(crate) verdict: String,
}

/// A prediction, and what came.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Compared {
    /// As the planner had it.
    pub(crate) predicted: f64,
    /// As it was.
    pub(crate) measured: f64,
    /// Measured over predicted; none where nothing was predicted.
    pub(crate) ratio: Option<f64>,
}

impl Compared {
    fn of(predicted: f64, measured: f64) -> Self {
        let ratio = (predicted > 0.0).then(|| measured / predicted);
        Self { predicted, measured, ratio }
    }
}

impl Whole {
    /// Of an answer of one token.
    pub(crate) fn of(outcome: &Outcome) -> Self {
        let tokens = outcome.prompt_tokens - outcome.reused_tokens;
        let ms =
            if outcome.prefill_tokens_per_s > 0.0 { tokens as f64 * 1e3 / outcome.prefill_tokens_per_s } else { 0.0 };
        let step = outcome.trace.as_ref().and_then(|trace| Times::of(&trace.prefill));
        Self { tokens, ms, tokens_per_s: outcome.prefill_tokens_per_s, step }
    }
}

impl Answered {
    /// Of an answer without drafts.
    pub(crate) fn of(outcome: &Outcome) -> Self {
        Self {
            tokens: outcome.completion_tokens,
            tokens_per_s: outcome.decode_tokens_per_s,
            first_token_ms: outcome.ttft_s * 1e3,
            bytes_per_position: outcome.bytes_per_position,
            step: outcome.trace.as_ref().and_then(|trace| Times::of(&trace.decode)),
        }
    }
}

impl Predicted {
    /// What a plan for steps of up to `chunk` positions had predicted, beside that.
    pub(crate) fn of(plan: &Preview, chunk: u16, prompt: &Whole, plain: &Answered) -> Self {
        let computing: f64 = plan.stages.iter().map(|stage| stage.decode_ms).sum();
        let token_ms = 1e3 / plan.decode_tokens_per_s;
        let computed = |step: &Times| step.stages.iter().map(|stage| stage.compute_ms).sum::<f64>();
        // What the plan says of a full chunk.
        let prompt_ms = plan.chunk_ms * prompt.tokens as f64 / f64::from(chunk);
        Self {
            tokens_per_s: Compared::of(plan.decode_tokens_per_s, plain.tokens_per_s),
            prompt_ms: Compared::of(prompt_ms, prompt.ms),
            computing_ms: plain.step.as_ref().map(|step| Compared::of(computing, computed(step))),
            between_ms: plain
                .step
                .as_ref()
                .map(|step| Compared::of((token_ms - computing).max(0.0), step.ms - step.choosing_ms - computed(step))),
            verdict: plan.verdict.reason.clone(),
        }
    }
}
