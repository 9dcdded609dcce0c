//! What an answer drafts: from its own text, or with a draft model, as far as it pays.

use std::time::Instant;

use potluck_chain::{
    SessionError,
    draft::{Controller, Growth, Lookup, Node, Plan, Rule, Source, TREE_ROWS_MAX, Tree},
    sample::Sampler,
};
use serde::{Deserialize, Serialize};

use crate::DraftModel;

/// Tokens that a draft model may be behind the text and yet be asked at once: more are read while steps are in flight.
const UNREAD_MAX: usize = 8;

/// Tokens that it reads at a time meanwhile: whoever wants a guess waits for these.
const READ_CHUNK: usize = 32;

/// Where drafts come from. Whatever they are, each token is the target's own choice: only the time that it takes depends on them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Drafts {
    /// Nowhere: a step for each token. What is to be exact has none, for results depend on how rows share a step.
    Off,
    /// What followed in the session's own text.
    Lookup,
    /// The draft model alone.
    Model,
    /// Either, where it pays.
    #[default]
    Auto,
}

/// What drafting came to in an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftCounts {
    /// Steps after the prompt.
    pub steps: usize,
    /// Rows of these.
    pub rows: usize,
    /// Tokens that were drafted in steps that were answered.
    pub drafted: usize,
    /// Drafted tokens that the target chose.
    pub accepted: usize,
    /// Steps that were in vain: a token before theirs was another.
    pub stale: usize,
    /// Forwards of the draft model.
    pub forwards: usize,
}

/// What reads the time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(pub(crate) fn() -> Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now)
    }
}

/// A session's drafting: what it has learnt about its chain lasts over its answers.
#[derive(Debug, Default)]
pub struct Drafting {
    pub(crate) controller: Controller,
    lookup: Lookup,
    /// The prompt, and what was chosen since.
    text: Vec<u32>,
    growth: Growth,
    rule: Option<Rule>,
    /// Whether drafts follow the prompt was decided.
    behind_prompt: bool,
    pub(crate) model: Option<DraftModel>,
    drafts: Drafts,
    /// What reads the time for what is learnt of the chain.
    pub(crate) clock: Clock,
    /// Nothing is drafted now, for results are to be exact.
    exact: bool,
}

impl Drafting {
    /// Drafts from there; a draft model has to have the chain's vocabulary.
    pub fn new(drafts: Drafts, model: Option<DraftModel>) -> Self {
        Self { model, drafts, ..Self::default() }
    }

    /// Another draft model, or none.
    pub fn set_model(&mut self, model: Option<DraftModel>) {
        self.model = model;
    }

    /// Lets go of the draft model.
    pub fn take_model(&mut self) -> Option<DraftModel> {
        self.model.take()
    }

    /// Drops what the draft model has evaluated: it reads the next text from its beginning.
    pub(crate) fn forget(&mut self) {
        if let Some(model) = &mut self.model {
            model.forget();
        }
    }

    /// An answer begins, or goes on, behind this text: its prompt, and what was answered so far.
    pub(crate) fn begin(&mut self, text: Vec<u32>, exact: bool) {
        self.exact = exact;
        self.growth = Growth::default();
        (self.rule, self.behind_prompt) = (None, false);
        let common = self.text.iter().zip(&text).take_while(|(a, b)| a == b).count();
        self.lookup.truncate(common.min(self.lookup.len()));
        self.text = text;
        self.look();
    }

    /// The prompt, and what was chosen since.
    pub(crate) fn text(&self) -> &[u32] {
        &self.text
    }

    /// Whether the draft model has too much to read before it can guess.
    fn lags_behind(&self) -> bool {
        self.model.as_ref().is_some_and(|model| model.unread(&self.text) > UNREAD_MAX)
    }

    /// Has the draft model read the text.
    async fn read(&mut self, chunk: usize) {
        if self.uses(Source::Model)
            && let Some(model) = &mut self.model
            && let Err(error) = model.read(&self.text, chunk).await
        {
            self.lose_model(&error);
        }
    }

    /// Has the draft model read the prompt while the chain does. Where drafts follow what is certain, they follow the prompt, too, as soon as all
    /// of it is under way: returns what is worth sending; otherwise never. `beyond`: what is in flight behind the prompt.
    pub(crate) async fn behind_prompt(
        &mut self,
        sampler: &Sampler,
        chunk: usize,
        beyond: &[u32],
        in_flight: usize,
        room: usize,
    ) -> Tree {
        // What it has guessed stays where nothing is left to read.
        if self.model.as_ref().is_some_and(|model| model.unread(&self.text) > 0) {
            self.read(chunk).await;
        }
        if room > 0 && self.uses(Source::Model) && !self.behind_prompt {
            self.behind_prompt = true;
            self.rule = self.controller.plan_behind_prompt();
        }
        if room > 0 && self.rule.is_some() {
            return self.ahead(sampler, beyond, in_flight, room).await;
        }
        std::future::pending().await
    }

    /// The lookup sees what it has not seen of the text, if anybody asks it.
    fn look(&mut self) {
        if self.uses(Source::Lookup) {
            self.lookup.extend(self.text[self.lookup.len()..].iter().copied());
        }
    }

    /// A token was chosen: what the text would have guessed for it is judged, for nothing.
    pub(crate) fn chose(&mut self, token: u32, was_drafted: bool) {
        if !was_drafted
            && self.uses(Source::Lookup)
            && let Some(&(guess, confidence)) = self.lookup.continuation(&[], 1).first()
        {
            self.controller.judged(Source::Lookup, confidence, guess == token);
        }
        self.text.push(token);
        self.look();
        self.growth.descend(token);
    }

    fn lose_model(&mut self, error: &SessionError) {
        tracing::warn!(%error, "the draft model is lost; the answer goes on without it");
        self.model = None;
    }

    fn uses(&self, source: Source) -> bool {
        match source {
            _ if self.exact => false,
            Source::Lookup => matches!(self.drafts, Drafts::Lookup | Drafts::Auto),
            Source::Model => matches!(self.drafts, Drafts::Model | Drafts::Auto) && self.model.is_some(),
        }
    }

    /// What to send below the last token, which is certain, in at most so many rows and tokens on a path. Waits for the draft
    /// model where that pays.
    pub(crate) async fn draft(&mut self, sampler: &Sampler, rows: usize, depth: usize) -> (Source, Tree) {
        self.rule = None;
        let (rows, nothing) = (rows.min(TREE_ROWS_MAX - 1), (Source::Lookup, Tree::default()));
        if rows == 0 || depth == 0 || !Source::ALL.into_iter().any(|source| self.uses(source)) {
            return nothing;
        }
        let guesses = match self.uses(Source::Lookup) {
            true => self.lookup.continuation(&[], rows.min(depth)),
            false => Vec::new(),
        };
        let at_hand = self.uses(Source::Model) && !self.lags_behind();
        match self.controller.plan(&guesses, at_hand) {
            Plan::Plain => nothing,
            Plan::Lookup { rows } => {
                let guesses = &guesses[..rows.min(guesses.len())];
                (Source::Lookup, self.controller.chain(Source::Lookup, guesses))
            }
            Plan::Model(rule) => {
                let rule = Rule { rows_max: rule.rows_max.min(rows), depth_max: rule.depth_max.min(depth), ..rule };
                self.rule = Some(rule);
                while let Some(()) = self.grow(sampler, &rule).await {}
                let first = Rule { rows_max: rule.rows_max.min(self.controller.first_rows()), ..rule };
                (Source::Model, self.growth.tree(&first))
            }
        }
    }

    /// What to send beyond what is in flight: `beyond`, which is reached with that probability.
    pub(crate) fn further(&mut self, beyond: &[u32], reached: f64, in_flight: usize, room: usize) -> Option<Tree> {
        if room == 0 || !self.uses(Source::Lookup) {
            return None;
        }
        let guesses = self.lookup.continuation(beyond, room);
        let rows = self.controller.further_rows(&guesses);
        let tree = self.controller.chain(Source::Lookup, &guesses[..rows]);
        self.controller.another_window(&tree, reached, in_flight).then_some(tree)
    }

    /// Drafts ahead while steps are in flight, and returns what is worth sending behind them; otherwise never. `beyond`: what is in
    /// flight. Where nothing is drafted ahead, the draft model catches up with the text, unless that goes on by itself.
    pub(crate) async fn ahead(&mut self, sampler: &Sampler, beyond: &[u32], in_flight: usize, room: usize) -> Tree {
        if let Some(rule) = self.rule.map(Rule::while_waiting) {
            loop {
                let grows = self.growth.next(&rule).is_some();
                if let Some(tree) = self.behind(&rule, beyond, in_flight, room.min(TREE_ROWS_MAX), grows) {
                    return tree;
                }
                if self.grow(sampler, &rule).await.is_none() {
                    break;
                }
            }
        } else if in_flight <= 1 && self.lags_behind() {
            self.read(READ_CHUNK).await;
        }
        std::future::pending().await
    }

    /// The likeliest tokens behind what is in flight, if there are enough of them and they are worth a step.
    fn behind(&self, rule: &Rule, beyond: &[u32], in_flight: usize, room: usize, grows: bool) -> Option<Tree> {
        let window = self.controller.window_rows().min(room);
        if window == 0 {
            return None;
        }
        let rule = Rule { rows_max: TREE_ROWS_MAX, depth_max: TREE_ROWS_MAX, ..rule.chain() };
        let grown = self.growth.tree(&rule);
        let (sent, further) = grown.nodes().split_at_checked(beyond.len())?;
        if sent.iter().zip(beyond).any(|(node, token)| node.token != *token) {
            return None;
        }
        let reached = sent.last().map_or(1.0, |node| node.cumulative);
        let further: Vec<Node> = (0u16..)
            .zip(further.iter().take(room))
            .map(|(row, node)| Node { parent: row.checked_sub(1), cumulative: node.cumulative / reached, ..*node })
            .collect();
        // As long as it grows, a step waits until it is as long as steps are to be.
        if further.is_empty() || grows && further.len() < window {
            return None;
        }
        let tree = Tree::new(&further).ok()?;
        self.controller.another_window(&tree, reached, in_flight).then_some(tree)
    }

    /// What the draft model has done is known to the controller from here on.
    pub(crate) fn account_for(&mut self, waited: bool) -> usize {
        let Some(model) = &mut self.model else { return 0 };
        let (forwards, seconds) = model.spent();
        if forwards > 0 {
            self.controller.drafted(forwards, seconds, waited);
        }
        forwards
    }

    /// One more forward of the draft model, if it pays. A draft model that is lost is done without.
    async fn grow(&mut self, sampler: &Sampler, rule: &Rule) -> Option<()> {
        let expand = self.growth.next(rule)?;
        let path = self.growth.path(expand);
        match self.model.as_mut()?.guesses(&self.text, &path, sampler, self.clock.0).await {
            Ok(guesses) => {
                self.growth.expanded(expand, &guesses, self.controller.calibration());
                Some(())
            }
            Err(error) => {
                self.lose_model(&error);
                None
            }
        }
    }
}
