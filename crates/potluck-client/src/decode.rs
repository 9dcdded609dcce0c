//! The loop after the prompt: steps of drafts, each token the target's own choice.
//!
//! A step has the text's last tokens that the caches do not hold, and drafts below them. The target's row behind each token says
//! what follows it: the sampler chooses from the row behind the last certain token, and where a draft says the same, from the row
//! behind that draft, and so on. What it chooses depends on the rows, the seed and the positions alone, and the rows on the tokens
//! before them: so the text is the one that would have come without drafts (up to the kernels' rounding, which depends on a batch's
//! shape), and each token is drawn from the target's distribution. Further steps may follow while the first is in flight, as far as
//! the drafts reach; where a token is another, they are stale, and the next step fences them off.

use std::{collections::VecDeque, time::Instant};

use potluck_chain::{
    Answer, STEPS_IN_FLIGHT_MAX, Submission,
    draft::{Node, Source, Tree as Drafted, WINDOWS_MAX},
    sample::{Decision, FinishReason, Sampler, TokenLogprobs},
};
use potluck_core::{Logits, Rows, Tree, bounds::TREE_ROWS_MAX};
use potluck_engine::KEPT_ROWS_MAX;

use crate::{Cancel, Chain, GenerateError, Session, TokenEvent, run::Run};

/// A token that was chosen, not shown yet.
struct Chosen {
    token: u32,
    logprobs: Option<TokenLogprobs>,
}

/// A step that is in flight.
pub(crate) struct Flight {
    /// Its first position.
    start: usize,
    /// Its rows that were text when it was sent. None: it follows another step's drafts.
    certain: usize,
    drafted: Drafted,
    source: Source,
    /// The first draft of a step that follows another's, once it was chosen.
    entered: Option<u16>,
    sent: Instant,
    /// Nothing else was in flight when it was sent.
    pub(crate) alone: bool,
    /// What was in flight when it was sent was in vain, or a prompt: how long it takes says nothing.
    pub(crate) delayed: bool,
    /// A token before its own was another.
    stale: bool,
}

impl Flight {
    fn rows(&self) -> usize {
        self.certain + self.drafted.len()
    }

    /// What of its likeliest path is not text yet, and how likely all of that is right.
    fn unknown(&self) -> (&[Node], f64) {
        let path = self.drafted.first_path();
        let (entered, unknown) = path.split_at(usize::from(self.entered.is_some()).min(path.len()));
        let cumulative = |node: Option<&Node>| node.map_or(1.0, |node| node.cumulative);
        (unknown, cumulative(path.last()) / cumulative(entered.last()))
    }
}

/// What is in flight and of use, and what may follow it.
pub(crate) struct Ahead {
    /// Tokens beyond the text, on the likeliest path.
    pub(crate) beyond: Vec<u32>,
    /// How likely they are all right.
    reached: f64,
    pub(crate) in_flight: usize,
    /// Rows that a further step may have.
    pub(crate) room: usize,
}

/// What came of a step.
struct Judged {
    chosen: Vec<Chosen>,
    /// Drafts that were chosen, from the first down.
    accepted: Vec<u16>,
    /// The draft that was chosen and ended the answer: nothing was to follow it.
    ended: Option<u16>,
    /// A row did not decide, and the whole one is not to be had: it has to be evaluated again, by itself.
    undecided: bool,
    /// Why there is no more of it.
    failed: Option<GenerateError>,
}

impl<C: Chain> Session<C> {
    /// After the prompt's last step was answered, behind which drafts may be in flight: chooses, sends, shows, until something ends it.
    pub(crate) async fn decode(
        &mut self,
        run: &mut Run,
        (first, mut flights): (Answer, VecDeque<Flight>),
        cancel: &Cancel,
        on_token: &mut impl FnMut(&TokenEvent),
    ) -> Result<FinishReason, GenerateError> {
        let certain = first.count.into();
        let (start, drafted, source) = (first.start as usize, Drafted::default(), Source::Lookup);
        let now = self.drafting.clock.0;
        let (entered, sent, alone, delayed, stale) = (None, now(), false, true, false);
        let mut flight = Flight { start, certain, drafted, source, entered, sent, alone, delayed, stale };
        let (mut answer, mut plain) = (first, false);
        let (mut last_sent, mut last_answer, mut last_progress) = (now(), now(), now());
        // What another chain took before this one is no time of this one's.
        run.waited = 0.0;
        loop {
            let mut judged = self.judge(run, &flight, answer, flights.is_empty()).await;
            if let Some(error) = judged.failed.take() {
                // What was chosen was chosen: it is shown before anything else comes of it.
                let finish = self.show(run, judged.chosen, on_token).await?;
                return finish.ok_or(error);
            }
            let ends = judged.chosen.last().is_some_and(|chosen| run.is_last(chosen.token));
            self.settle(run, &flight, &judged, &mut flights);
            plain = judged.undecided || plain && judged.chosen.is_empty();
            let submitted = match ends || cancel.is_cancelled() {
                true => Ok(()),
                // Whole rows are too long for an answer to have many of them.
                false => self.send(run, &mut flights, plain || run.top == 0).await,
            };
            if let Some(finish) = self.show(run, judged.chosen, on_token).await? {
                return Ok(finish);
            }
            submitted?;
            (flight, answer) = loop {
                let next = loop {
                    let ahead = self.ahead(run, &flights);
                    let drafted = tokio::select! {
                        biased;
                        () = cancel.cancelled() => break None,
                        next = self.chain.answer() => break Some(next?),
                        drafted = self.drafting.ahead(&run.sampler, &ahead.beyond, ahead.in_flight, ahead.room) => drafted,
                    };
                    self.fly(run, Vec::new(), drafted, Source::Model, false, &mut flights).await?;
                };
                let Some(next) = next else { return Ok(run.cancelled(on_token)) };
                self.unanswered -= 1;
                run.counts.forwards += self.drafting.account_for(false);
                let Some(flight) = flights.pop_front() else {
                    return Err(GenerateError::NoRow { sequence: next.sequence });
                };
                run.decoded(self.chain.bytes_written(), flight.rows());
                if flight.stale {
                    run.counts.stale += 1;
                    last_answer = now();
                    continue;
                }
                let (rows, since) = (flight.rows(), |then: Instant| (now() - then).as_secs_f64());
                match (flight.delayed, flight.alone) {
                    (true, _) => {}
                    (_, true) => self.drafting.controller.traversed(rows, since(flight.sent)),
                    (_, false) => {
                        let left = (flight.sent - last_sent).as_secs_f64();
                        self.drafting.controller.followed(rows, left, since(last_answer));
                    }
                }
                last_sent = flight.sent;
                break (flight, next);
            };
            last_answer = now();
            run.waited = (last_answer - std::mem::replace(&mut last_progress, last_answer)).as_secs_f64();
        }
    }

    /// Chooses from the rows of a step, for as long as drafts say the same.
    async fn judge(&mut self, run: &mut Run, flight: &Flight, answer: Answer, last: bool) -> Judged {
        let Answer { sequence, rows, count, .. } = answer;
        let (chosen, accepted) = (Vec::new(), flight.entered.into_iter().collect());
        let mut judged = Judged { chosen, accepted, ended: None, undecided: false, failed: None };
        let mut at = flight.entered;
        loop {
            let began = Instant::now();
            let row = at.map_or(flight.certain.saturating_sub(1), |node| flight.certain + usize::from(node));
            // A step without drafts is answered with its last row alone.
            let index = (row + rows.len()).checked_sub(count.into());
            let Some(logits) = index.and_then(|index| rows.get(index)) else {
                judged.failed = Some(GenerateError::NoRow { sequence });
                break;
            };
            let is_kept = last && row + KEPT_ROWS_MAX >= count.into();
            let kept = is_kept.then_some((sequence, row as u16));
            let chosen = match self.choose(run, self.drafting.text().len() as u32, logits, kept).await {
                Ok(Some(chosen)) => chosen,
                Ok(None) => {
                    judged.undecided = true;
                    break;
                }
                Err(error) => {
                    judged.failed = Some(error);
                    break;
                }
            };
            let token = chosen.token;
            let drafted = flight.drafted.child(at, token);
            run.took(token, began);
            self.drafting.chose(token, drafted.is_some());
            judged.chosen.push(chosen);
            at = drafted;
            match drafted {
                Some(node) if !run.is_last(token) => judged.accepted.push(node),
                last => {
                    judged.ended = last;
                    break;
                }
            }
        }
        judged
    }

    /// What follows from the tokens that were chosen: for what the caches hold, for the steps in flight, and for what is believed of
    /// the drafts.
    fn settle(&mut self, run: &mut Run, flight: &Flight, judged: &Judged, flights: &mut VecDeque<Flight>) {
        let Flight { drafted, source, .. } = flight;
        let (sent, accepted) = (drafted.len(), judged.accepted.len());
        run.counts.drafted += sent;
        run.counts.accepted += accepted + usize::from(judged.ended.is_some());
        if !drafted.is_empty() || *source == Source::Model {
            let right: Vec<u16> = judged.accepted.iter().copied().chain(judged.ended).collect();
            let decided = judged.ended.is_none() && !judged.undecided;
            self.drafting.controller.answered(*source, drafted, &right, decided);
        }
        if run.waited > 0.0 {
            self.drafting.controller.progressed(judged.chosen.len(), run.waited);
        }
        // Caches hold the first path of a tree.
        let on_path = (0..).zip(&judged.accepted).take_while(|(row, node)| row == *node).count();
        let whole = on_path == drafted.first_path().len() && accepted == on_path && !judged.undecided;
        let next = flights.front_mut().filter(|next| !next.stale);
        if whole && let (Some(next), Some(chosen)) = (next, judged.chosen.last()) {
            next.entered = next.drafted.child(None, chosen.token);
            if next.entered.is_some() {
                return;
            }
            self.drafting.controller.answered(next.source, &next.drafted, &[], true);
        }
        let is_in_vain = flights.iter().any(|later| !later.stale);
        if is_in_vain || !whole {
            flights.iter_mut().for_each(|later| later.stale = true);
            self.forget(flight.start + flight.certain + on_path);
        }
        if judged.undecided {
            self.forget(self.drafting.text().len() - 1);
        }
    }

    /// Sends what is certain and not in flight yet, with drafts; then what may follow those.
    async fn send(&mut self, run: &mut Run, flights: &mut VecDeque<Flight>, plain: bool) -> Result<(), GenerateError> {
        let positions = self.chain.shape().positions;
        let fence = self.chain.takes_drafts() && !flights.is_empty();
        if flights.iter().all(|flight| flight.stale) {
            let text = self.drafting.text();
            let (certain, room) = (text[self.held().len()..].to_vec(), (positions as usize).saturating_sub(text.len()));
            // The last token of an answer is not evaluated.
            let depth = run.tokens_left().saturating_sub(1).min(room);
            let most = TREE_ROWS_MAX.min(self.chain.rows_max(run.top));
            let rows = if plain { 0 } else { most.saturating_sub(certain.len()).min(room) };
            let (source, drafted) = self.drafting.draft(&run.sampler, rows, depth).await;
            run.counts.forwards += self.drafting.account_for(true);
            let drafted = if drafted.is_chain() || self.chain.takes_drafts() { drafted } else { first_path(&drafted) };
            self.fly(run, certain, drafted, source, fence, flights).await?;
        }
        if plain || !self.chain.takes_drafts() {
            return Ok(());
        }
        loop {
            let Ahead { beyond, reached, in_flight, room } = self.ahead(run, flights);
            let Some(tree) = self.drafting.further(&beyond, reached, in_flight, room) else { return Ok(()) };
            self.fly(run, Vec::new(), tree, Source::Lookup, false, flights).await?;
        }
    }

    /// What is in flight and of use, and what may follow it.
    pub(crate) fn ahead(&self, run: &Run, flights: &VecDeque<Flight>) -> Ahead {
        let mut ahead = Ahead { beyond: Vec::new(), reached: 1.0, in_flight: 0, room: 0 };
        for flight in flights.iter().filter(|flight| !flight.stale) {
            let (unknown, right) = flight.unknown();
            ahead.beyond.extend(unknown.iter().map(|node| node.token));
            ahead.reached *= right;
            ahead.in_flight += 1;
        }
        if ahead.in_flight < WINDOWS_MAX && flights.len() < STEPS_IN_FLIGHT_MAX / 2 && self.chain.takes_drafts() {
            let positions = (self.chain.shape().positions as usize).saturating_sub(self.held().len());
            let most = TREE_ROWS_MAX.min(self.chain.rows_max(run.top));
            ahead.room = positions.min(run.tokens_left().saturating_sub(ahead.beyond.len() + 1)).min(most);
        }
        ahead
    }

    pub(crate) async fn fly(
        &mut self,
        run: &mut Run,
        certain: Vec<u32>,
        drafted: Drafted,
        source: Source,
        fence: bool,
        flights: &mut VecDeque<Flight>,
    ) -> Result<(), GenerateError> {
        let (start, known) = (self.held().len(), certain.len());
        let rows = if drafted.is_empty() { Rows::Last } else { Rows::All };
        let tree = step_tree(known, &drafted);
        let tokens: Vec<u32> = certain.into_iter().chain(drafted.rows().map(|(token, _)| token)).collect();
        let trunk = tree.trunk(tokens.len());
        let kept = tokens[..trunk].to_vec();
        let (alone, delayed) = (flights.is_empty(), flights.iter().any(|flight| flight.stale));
        run.counts.steps += 1;
        run.counts.rows += tokens.len();
        if let Some(tracing) = run.tracing.as_mut().filter(|_| !alone) {
            tracing.overlaps();
        }
        let submission = Submission { start: start as u32, tokens, rows, top: run.top, tree, fence };
        self.submit_drafts(submission, &kept).await?;
        let (sent, entered, stale) = ((self.drafting.clock.0)(), None, false);
        flights.push_back(Flight { start, certain: known, drafted, source, entered, sent, alone, delayed, stale });
        Ok(())
    }

    /// Shows tokens that were chosen; why the answer ends with one of them, if it does. Those after it were not said.
    async fn show(
        &mut self,
        run: &mut Run,
        chosen: Vec<Chosen>,
        on_token: &mut impl FnMut(&TokenEvent),
    ) -> Result<Option<FinishReason>, GenerateError> {
        let mut after = chosen.len();
        for Chosen { token, logprobs } in chosen {
            after -= 1;
            let piece = self.piece(token).await?;
            let progress = run.stopper.push(token, &piece);
            run.show(&TokenEvent { token, text: progress.text, logprobs }, on_token);
            if let Some(finish) = progress.finish {
                run.unsay(after);
                return Ok(Some(finish));
            }
        }
        Ok(None)
    }

    /// Chooses the token at `position`; asks for the whole row, where it is `kept`, if the reduced one does not decide. None where it
    /// is not.
    async fn choose(
        &mut self,
        run: &mut Run,
        position: u32,
        logits: &Logits,
        kept: Option<(u32, u16)>,
    ) -> Result<Option<Chosen>, GenerateError> {
        let whole;
        let mut row = logits;
        let mut decision = self.sample(run, position, row).await?;
        if decision == Decision::NeedWholeRow {
            let Some((sequence, index)) = kept else { return Ok(None) };
            whole = Logits::Whole(self.chain.row(sequence, index).await?);
            row = &whole;
            decision = self.sample(run, position, row).await?;
        }
        // With the whole row there is nothing left to ask for.
        let Decision::Token { token } = decision else {
            return Err(GenerateError::NoRow { sequence: kept.map_or(0, |(sequence, _)| sequence) });
        };
        run.sampler.accept(token);
        if let Some(grammar) = run.grammar.filter(|_| !run.ends.contains(&token)) {
            self.vocabulary().accept(grammar, token).await?;
        }
        let logprobs = run.sampler.params().logprobs.map(|n| TokenLogprobs::of(row, token, n));
        Ok(Some(Chosen { token, logprobs }))
    }

    async fn sample(&self, run: &Run, position: u32, row: &Logits) -> Result<Decision, GenerateError> {
        let allowed = match (run.grammar, row) {
            (None, _) => None,
            (Some(grammar), Logits::Whole(_)) => Some(self.vocabulary().allowed(grammar, None).await?),
            (Some(grammar), Logits::Top { .. }) => {
                Some(self.vocabulary().allowed(grammar, Some(&Sampler::tokens_of(row))).await?)
            }
        };
        Ok(run.sampler.sample(position, row, allowed.as_deref())?)
    }
}

/// The rows of a step: those that are certain one below the other, drafts below the last of them.
fn step_tree(certain: usize, drafted: &Drafted) -> Tree {
    if drafted.is_chain() {
        return Tree::chain();
    }
    let certain_parents = (0..certain).map(|row| row.saturating_sub(1) as u8);
    let parent = |parent: Option<u16>| parent.map_or(certain.saturating_sub(1), |row| certain + usize::from(row)) as u8;
    let parents = certain_parents.chain(drafted.rows().map(|(_, above)| parent(above)));
    // Drafts come depth first, as rows of a step have to.
    Tree::new(parents.collect()).unwrap_or_default()
}

/// The likeliest path of a tree, for a chain that takes no trees.
fn first_path(drafted: &Drafted) -> Drafted {
    Drafted::new(drafted.first_path()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speculate::Clock;

    /// A step whose drafts are right in 0.8 each, where those before them are.
    fn flight(drafts: u16, entered: Option<u16>) -> Flight {
        let node = |row: u16| Node {
            token: row.into(),
            parent: row.checked_sub(1),
            confidence: 0.8,
            source: Source::Lookup,
            cumulative: 0.8f64.powi(i32::from(row) + 1),
        };
        let drafted = Drafted::new(&(0..drafts).map(node).collect::<Vec<_>>()).unwrap();
        let (certain, source, sent) = (usize::from(entered.is_none()), Source::Lookup, (Clock::default().0)());
        Flight { start: 0, certain, drafted, source, entered, sent, alone: false, delayed: false, stale: false }
    }

    #[test]
    fn what_is_certain_by_now_makes_nothing_less_likely() {
        let tokens = |flight: &Flight| flight.unknown().0.iter().map(|node| node.token).collect::<Vec<_>>();
        let right = |flight: &Flight| flight.unknown().1;
        let (first, next) = (flight(3, None), flight(3, Some(0)));
        assert_eq!((tokens(&first), tokens(&next)), (vec![0, 1, 2], vec![1, 2]));
        assert!((right(&first) - 0.8f64.powi(3)).abs() < 1e-9);
        assert!((right(&next) - 0.8f64.powi(2)).abs() < 1e-9, "its first draft is text: {}", right(&next));
        assert_eq!((right(&flight(1, Some(0))), right(&flight(0, None))), (1.0, 1.0));
    }
}
