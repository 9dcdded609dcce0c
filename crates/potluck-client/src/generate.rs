//! An answer: the prompt (`prefill`), then one token after the other (`decode`) until something ends it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use potluck_chain::{
    Answer, SessionError, Submission,
    chunks::{PREFILL_STEPS_IN_FLIGHT, RouteTimes},
    sample::{FinishReason, Sampler, SamplingParams, StopRules, Stopper},
};
use potluck_core::{Logits, Rows, bounds};
use potluck_engine::{GrammarSource, VocabularyClient};

use crate::{
    Cancel, Chain, DraftModel, Drafts, GenerateError, Outcome, TokenEvent,
    run::Run,
    speculate::{Clock, Drafting},
};

/// Chains that may be lost one after the other without a token: beyond it the answer ends with the last one's error. It may be the
/// prompt that they die of.
pub const LOSSES_MAX: usize = 2;

/// Chains that one answer may go on over, in all: each evaluates anew what there is of it.
pub const RESUMES_MAX: usize = 8;

/// Tokens whose text is remembered. Beyond it the memory starts again, at the cost of asking again.
const PIECES_MAX: usize = 1 << 17;

/// What to answer, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The prompt's tokens: the whole conversation. What the session holds of it already is not evaluated again.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub params: SamplingParams,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Tokens of the answer at most; none: as many as the context holds.
    pub max_tokens: Option<u32>,
    /// Go on after an end token: for measurements.
    pub ignore_eos: bool,
    /// What the answer must follow.
    pub grammar: Option<GrammarSource>,
    /// Positions of a prefill step at most, [`bounds::STEP_POSITIONS_MAX`] or fewer. A route of several machines is sent smaller ones
    /// where these fill it better ([`potluck_chain::chunks`]).
    pub chunk: u16,
    /// Prefill steps have `chunk` positions each, whatever the route; what is exact always has.
    pub fixed: bool,
    /// Prefill steps in flight at most.
    pub in_flight: usize,
    /// Keep what the caches hold of the prompt. False evaluates it anew: an answer that depends on the prompt alone, for
    /// results also depend on how positions were cut into steps.
    pub reuse: bool,
    /// Where the chain is lost, evaluate anew in the very steps that it was evaluated in before, for results depend on them: slower,
    /// and the answer goes on exactly as it would have.
    pub exact: bool,
    /// Ask each stage where the time went: a question to all of them before the prompt, after it, and at the end.
    pub trace: bool,
}

impl Request {
    /// With the default sampling, to the model's own end.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            params: SamplingParams::default(),
            stop: Vec::new(),
            max_tokens: None,
            ignore_eos: false,
            grammar: None,
            chunk: bounds::STEP_POSITIONS_MAX as u16,
            fixed: false,
            in_flight: PREFILL_STEPS_IN_FLIGHT,
            reuse: true,
            exact: false,
            trace: false,
        }
    }
}

/// A chain, and what its caches hold: one answer after the other.
#[derive(Debug)]
pub struct Session<C> {
    pub(crate) chain: C,
    vocabulary: VocabularyClient,
    /// The tokens that the caches hold once every step in flight has run.
    held: Vec<u32>,
    /// Where the steps begin that they were evaluated in.
    cuts: Vec<usize>,
    /// Steps of an answer that ended before they were answered.
    pub(crate) unanswered: usize,
    /// Why the chain is of no more use, where an answer was cancelled before there was another.
    lost: Option<SessionError>,
    pieces: HashMap<u32, Vec<u8>>,
    pub(crate) drafting: Drafting,
    /// What it has learnt of its route's times.
    pub(crate) times: RouteTimes,
}

impl<C: Chain> Session<C> {
    /// A session whose caches are empty.
    pub fn new(chain: C, vocabulary: VocabularyClient) -> Self {
        Self {
            chain,
            vocabulary,
            held: Vec::new(),
            cuts: Vec::new(),
            unanswered: 0,
            lost: None,
            pieces: HashMap::new(),
            drafting: Drafting::default(),
            times: RouteTimes::default(),
        }
    }

    /// Its chain was opened with the first positions of what `of` holds, so many of them: they are not evaluated again.
    #[must_use]
    pub fn beginning_as(mut self, of: &Self, positions: usize) -> Self {
        self.held = of.held[..positions.min(of.held.len())].to_vec();
        self.cuts = of.cuts.iter().copied().filter(|start| *start < self.held.len()).collect();
        self
    }

    /// Its chain holds these already, of a session that was put aside: they were evaluated in steps that begin at `cuts`.
    pub fn begin_with(&mut self, held: Vec<u32>, cuts: &[usize]) {
        self.cuts = cuts.iter().copied().filter(|start| *start < held.len()).collect();
        self.held = held;
    }

    /// Drops all that it holds, its draft model's cache included: the next answer evaluates its whole prompt.
    pub fn forget_all(&mut self) {
        self.forget(0);
        self.drafting.forget();
    }

    /// Takes the answers of steps that the last answer did not wait for, within `limit`: then others may [begin as](Self::beginning_as)
    /// this one.
    pub async fn come_to_rest(&mut self, limit: Duration) {
        // A chain that is lost says so to whoever asks it next.
        let _ = tokio::time::timeout(limit, self.drain()).await;
    }

    /// Whether nothing is under way: what it holds stays as it is until it is asked.
    pub fn is_at_rest(&self) -> bool {
        self.unanswered == 0 && self.lost.is_none()
    }

    /// With drafts from there, which the chain verifies several at a time, where an answer need not be exact. A draft model has to have
    /// the chain's vocabulary.
    #[must_use]
    pub fn with_drafts(mut self, drafts: Drafts, model: Option<DraftModel>) -> Self {
        self.set_drafting(Drafting::new(drafts, model));
        self
    }

    /// What it drafts with from now on, and what that has learnt of a chain like this one.
    pub fn set_drafting(&mut self, drafting: Drafting) {
        self.drafting = drafting;
    }

    /// What it drafts with, and has learnt. It drafts from its own text alone then.
    pub fn take_drafting(&mut self) -> Drafting {
        std::mem::take(&mut self.drafting)
    }

    /// What an earlier session has learnt of the times of a route, and of its peers.
    pub fn set_times(&mut self, mut times: RouteTimes) {
        times.reopened();
        self.times = times;
    }

    /// What it has learnt of the times of its route. It knows nothing of them then.
    pub fn take_times(&mut self) -> RouteTimes {
        std::mem::take(&mut self.times)
    }

    /// What reads the time for what is learnt of the chain, and decides what to draft: a test's own clock.
    pub fn set_clock(&mut self, read: fn() -> Instant) {
        self.drafting.clock = Clock(read);
    }

    /// The chain: to show its route.
    pub fn chain(&self) -> &C {
        &self.chain
    }

    /// The tokens that the caches hold, or will once every step in flight has run.
    pub fn held(&self) -> &[u32] {
        &self.held
    }

    /// Where the steps begin that those were evaluated in.
    pub fn cuts(&self) -> &[usize] {
        &self.cuts
    }

    /// The chain, to ask it for something between two answers.
    pub fn chain_mut(&mut self) -> &mut C {
        &mut self.chain
    }

    /// Lets go of all that its chain has: only another may follow.
    pub async fn let_go(&mut self) {
        self.chain.let_go().await;
    }

    /// The vocabulary.
    pub fn vocabulary(&self) -> &VocabularyClient {
        &self.vocabulary
    }

    /// The tokens of a prompt that a template made: control tokens are read, and the text begins as the model wants.
    ///
    /// # Errors
    /// `Vocabulary`.
    pub async fn tokenize(&self, prompt: &str) -> Result<Vec<u32>, GenerateError> {
        prompt_tokens(&self.vocabulary, prompt).await
    }

    /// The tokens of a prompt as it was typed (`--raw`): it begins as the model wants; control tokens are text.
    ///
    /// # Errors
    /// `Vocabulary`.
    pub async fn tokenize_raw(&self, prompt: &str) -> Result<Vec<u32>, GenerateError> {
        Ok(self.vocabulary.tokenize(prompt, true, false).await?)
    }

    /// The embedding of a text: the mean of its positions' hidden states after the last norm, of length 1. `chunk`: positions of a
    /// step. The caches hold the text afterwards.
    ///
    /// # Errors
    /// See [`GenerateError`].
    pub async fn embed(&mut self, tokens: &[u32], chunk: u16) -> Result<Vec<f32>, GenerateError> {
        if let Some(lost) = self.lost.clone() {
            return Err(lost.into());
        }
        self.drain().await?;
        self.forget(0);
        let mut sum: Vec<f64> = Vec::new();
        // One after the other: a mean is of no use to the step that follows.
        for chunk in tokens.chunks(usize::from(chunk).clamp(1, bounds::MEAN_POSITIONS_MAX)) {
            self.submit(chunk, Rows::Mean, 0).await?;
            let Answer { sequence, rows, .. } = self.chain.answer().await?;
            self.unanswered -= 1;
            let Some(Logits::Whole(mean)) = rows.into_iter().next() else {
                return Err(GenerateError::NoRow { sequence });
            };
            sum.resize(mean.0.len(), 0.0);
            let weight = chunk.len() as f64;
            sum.iter_mut().zip(mean.0).for_each(|(sum, value)| *sum += weight * f64::from(value));
        }
        let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        if length == 0.0 {
            // Zeros are near everything and mean nothing.
            return Err(GenerateError::NoEmbedding);
        }
        Ok(sum.into_iter().map(|value| (value / length) as f32).collect())
    }

    /// Answers `request`. `on_token` sees each token as it comes; `cancel` ends the answer within a step, with what
    /// there is of it. The session can go on afterwards, unless the error is `Session`.
    ///
    /// # Errors
    /// See [`GenerateError`].
    pub async fn generate(
        &mut self,
        request: Request,
        cancel: &Cancel,
        on_token: impl FnMut(&TokenEvent),
    ) -> Result<Outcome, GenerateError> {
        self.generate_over(request, cancel, on_token, async |_: &SessionError| None).await
    }

    /// The same. Where the chain is lost in mid-answer, it lets go of what it has, and `reopen` is asked for another, its caches
    /// empty: the answer goes on there, and no token that was chosen is chosen again. What it computes anew is the prompt and what
    /// was answered so far.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), where `reopen` gives none, [`LOSSES_MAX`] chains in a row gave no token, or it was reopened
    /// [`RESUMES_MAX`] times.
    pub async fn generate_over(
        &mut self,
        request: Request,
        cancel: &Cancel,
        mut on_token: impl FnMut(&TokenEvent),
        mut reopen: impl AsyncFnMut(&SessionError) -> Option<C>,
    ) -> Result<Outcome, GenerateError> {
        let mut run = self.prepare(&request).await?;
        let mut result = match self.lost.take() {
            Some(lost) => Err(lost.into()),
            None => self.answer(&request, &mut run, cancel, &mut on_token).await,
        };
        while let Err(GenerateError::Session(error)) = &result
            && error.is_loss()
            && run.may_resume()
        {
            let other = async {
                self.chain.let_go().await;
                reopen(error).await
            };
            let reopened = tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    // What there is of it is an answer; whoever comes next opens another chain.
                    self.lost = Some(error.clone());
                    result = Ok(run.cancelled(&mut on_token));
                    break;
                }
                reopened = other => reopened,
            };
            let Some(chain) = reopened else { break };
            run.repairs.extend(self.chain.take_repairs());
            std::mem::replace(&mut self.chain, chain).close().await;
            // What was held of another conversation says nothing about this one's steps.
            let own = self.common(&[&request.prompt[..], run.tokens()].concat());
            self.forget(self.cut_at(own));
            run.resumes(&self.cuts, self.held.len());
            self.forget(0);
            self.unanswered = 0;
            self.times.reopened();
            result = self.answer(&request, &mut run, cancel, &mut on_token).await;
        }
        if let Some(grammar) = run.grammar {
            // A child that is gone has closed it already.
            let _ = self.vocabulary.close_grammar(grammar).await;
        }
        run.repairs.extend(self.chain.take_repairs());
        let finish = result?;
        let ended = Instant::now();
        let traced = run.tracing.is_some() && finish != FinishReason::Cancel;
        // An answer that is complete is not lost for want of its trace.
        let accounts = if traced { self.chain.accounts().await.ok().flatten() } else { None };
        Ok(run.finish(finish, accounts.map(|accounts| (accounts, ended))))
    }

    /// The chain alone: another session goes on with it.
    pub fn into_chain(self) -> C {
        self.chain
    }

    /// Ends the session everywhere.
    pub async fn close(self) {
        self.chain.close().await;
    }

    async fn prepare(&mut self, request: &Request) -> Result<Run, GenerateError> {
        let shape = self.chain.shape();
        let positions = shape.positions as usize;
        match request.prompt.len() {
            0 => return Err(GenerateError::EmptyPrompt),
            tokens if tokens > positions => {
                return Err(GenerateError::PromptTooLong { tokens, positions: shape.positions });
            }
            _ => {}
        }
        // The last token of an answer is not evaluated, and so takes no position.
        let room = (positions - request.prompt.len() + 1) as u32;
        let max_tokens = request.max_tokens.map_or(room, |max| max.min(room));
        let ends = if request.ignore_eos { Vec::new() } else { self.vocabulary.info().ends.clone() };
        let rules = StopRules { end_of_generation: ends.clone(), strings: request.stop.clone(), max_tokens };
        let stopper = Stopper::new(rules)?;
        let mut sampler = Sampler::new(request.params.clone(), shape.vocabulary)?;
        request.prompt.iter().for_each(|&token| sampler.accept(token));
        let top = request.params.top(request.grammar.is_some());
        let mut run = Run::new(request.prompt.len(), max_tokens, ends, sampler, stopper, top);
        if let Some(source) = &request.grammar {
            run.grammar = Some(self.vocabulary.open_grammar(source.clone()).await?);
        }
        Ok(run)
    }

    async fn answer(
        &mut self,
        request: &Request,
        run: &mut Run,
        cancel: &Cancel,
        on_token: &mut impl FnMut(&TokenEvent),
    ) -> Result<FinishReason, GenerateError> {
        if run.max_tokens == 0 {
            return Ok(FinishReason::Length);
        }
        self.drafting.begin([&request.prompt[..], run.tokens()].concat(), request.exact);
        let Some(first) = self.prefill(request, run, cancel).await? else { return Ok(FinishReason::Cancel) };
        self.decode(run, first, cancel, on_token).await
    }

    /// Takes the answers that an earlier answer did not wait for.
    pub(crate) async fn drain(&mut self) -> Result<(), GenerateError> {
        while self.unanswered > 0 {
            self.chain.answer().await?;
            self.unanswered -= 1;
        }
        Ok(())
    }

    /// How many of these the caches hold from the beginning.
    pub(crate) fn common(&self, tokens: &[u32]) -> usize {
        self.held.iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }

    /// The end of the last step that ends there or before.
    pub(crate) fn cut_at(&self, position: usize) -> usize {
        if position >= self.held.len() {
            return position;
        }
        self.cuts.iter().copied().filter(|start| *start <= position).max().unwrap_or(0)
    }

    /// What the caches hold from there on is of no use.
    pub(crate) fn forget(&mut self, from: usize) {
        self.held.truncate(from);
        self.cuts.retain(|start| *start < from);
    }

    pub(crate) async fn submit(&mut self, tokens: &[u32], rows: Rows, top: u16) -> Result<(), GenerateError> {
        let submission = Submission::chain(self.held.len() as u32, tokens.to_vec(), rows, top);
        self.submit_drafts(submission, tokens).await
    }

    /// Sends a step behind what the caches hold, of which they keep `kept`.
    pub(crate) async fn submit_drafts(&mut self, submission: Submission, kept: &[u32]) -> Result<(), GenerateError> {
        self.chain.submit(submission).await?;
        self.cuts.push(self.held.len());
        self.held.extend_from_slice(kept);
        self.unanswered += 1;
        Ok(())
    }

    /// The bytes of a token; control tokens have none.
    pub(crate) async fn piece(&mut self, token: u32) -> Result<Vec<u8>, GenerateError> {
        if let Some(piece) = self.pieces.get(&token) {
            return Ok(piece.clone());
        }
        let piece = self.vocabulary.pieces(&[token], false).await?.pop().unwrap_or_default();
        if self.pieces.len() >= PIECES_MAX {
            self.pieces.clear();
        }
        self.pieces.insert(token, piece.clone());
        Ok(piece)
    }
}

/// The tokens of a prompt that a template made: control tokens are read, and the text begins as the model wants.
///
/// # Errors
/// `Vocabulary`.
pub async fn prompt_tokens(vocabulary: &VocabularyClient, prompt: &str) -> Result<Vec<u32>, GenerateError> {
    let begins = begins_by_itself(vocabulary, prompt).await?;
    Ok(vocabulary.tokenize(prompt, !begins, true).await?)
}

/// True if the template wrote what the tokenizer would put before the prompt: once is enough.
async fn begins_by_itself(vocabulary: &VocabularyClient, prompt: &str) -> Result<bool, GenerateError> {
    let info = vocabulary.info();
    let Some(begin) = info.begin.filter(|_| info.adds_begin) else { return Ok(false) };
    let piece = vocabulary.pieces(&[begin], true).await?.pop().unwrap_or_default();
    Ok(!piece.is_empty() && prompt.as_bytes().starts_with(&piece))
}
