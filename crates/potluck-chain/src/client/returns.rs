//! What peers send back: answers, hidden states for an own tail, rows. None of them is trusted.

use std::time::Instant;

use potluck_core::{Defence, Hidden, Input, Logits, Rows};
use potluck_wire::{AnswerFrame, Frame, StepFrame};

use super::{Answer, ClientSession, Effect, Pending, STALE_FRAMES_MAX};
use crate::SessionError;

impl ClientSession {
    pub(super) fn frame(&mut self, now: Instant, hop: usize, frame: Frame) -> Result<(), SessionError> {
        let last = self.last_remote() == Some(hop);
        let tail = last && hop + 1 == self.config.route.len();
        match frame {
            Frame::Returned { expected } if self.repair.is_returning(hop) => self.came_back(now, hop, expected),
            // Its neighbour has said meanwhile that it is lost.
            Frame::Returned { .. } if self.repair.is_lost(hop) => self.stale_came(hop),
            Frame::Ready if self.waiting_for.get(hop) == Some(&true) && !self.repair.is_returning(hop) => {
                self.one_is_ready(now, hop, None)
            }
            // Of two changes of its neighbours, the second came before the first was complete.
            Frame::Ready if self.config.deadlines.grace.is_some() && !self.repair.is_returning(hop) => Ok(()),
            Frame::Credit { frames } if hop == 0 || hop == 1 && self.remote(0).is_none() => {
                if frames == 0 || !self.credit.grant(frames) {
                    return Err(self.protocol(hop, format!("{frames} frames of credit that were not due")));
                }
                self.flush(hop);
                Ok(())
            }
            Frame::NeighbourLost(lost) => self.neighbour_lost(now, hop, lost),
            Frame::Leaving => self.peer_leaves(now, hop),
            Frame::CaughtUp { epoch } => self.next_caught_up(now, hop, epoch),
            Frame::Answer(answer) if tail => self.answer_came(now, hop, answer),
            Frame::Step(step) | Frame::Replay { step, .. } if last && !tail => self.step_returned(now, hop, &step),
            Frame::Row { sequence, row, logits } if tail => self.row_came(hop, sequence, row, logits),
            Frame::Account(account) => self.account_came(now, hop, account),
            Frame::Saved { positions, bytes } => self.stage_saved(hop, positions, bytes),
            Frame::Restored { positions } => self.stage_restored(hop, positions),
            Frame::Failed(failure) => self.peer_gone(now, hop, failure),
            other => Err(self.protocol(hop, format!("a {} frame does not belong here", other.kind()))),
        }
    }

    /// A stage is ready; see [`is_back`](Self::is_back).
    pub(super) fn one_is_ready(&mut self, now: Instant, hop: usize, expected: Option<u32>) -> Result<(), SessionError> {
        self.waiting_for[hop] = false;
        self.is_back(hop, expected)?;
        if self.waiting_for.contains(&true) {
            return Ok(());
        }
        if !self.ready {
            self.ready = true;
            self.effects.push_back(Effect::Ready);
        } else if self.repair.is_complete() {
            (self.since, self.row_since) = (now, now);
            self.accounts.go_on(now);
            self.effects.push_back(Effect::Repaired);
        }
        // Who was to go meanwhile.
        (0..self.config.route.len()).for_each(|hop| self.hand_over(now, hop));
        Ok(())
    }

    pub(super) fn answer_came(&mut self, now: Instant, hop: usize, answer: AnswerFrame) -> Result<(), SessionError> {
        let next = self.pending.front().map_or(self.sequence, |due| due.sequence);
        let epoch = self.repair.epoch_out_of(hop);
        if answer.epoch < epoch || answer.epoch == epoch && answer.sequence < next {
            return self.stale_came(hop);
        }
        let due = self.pending.front().filter(|due| {
            (due.sequence, due.start, due.count) == (answer.sequence, answer.start, answer.count)
                && answer.epoch == epoch
        });
        let Some(due) = due.cloned() else {
            let text = format!("it answered step {} of epoch {}, which is not due", answer.sequence, answer.epoch);
            return Err(self.protocol(hop, text));
        };
        if answer.skipped {
            if !due.fenced {
                return Err(self.protocol(hop, format!("it skipped step {}, which is wanted", due.sequence)));
            }
            self.deliver(now, Vec::new(), true);
            return Ok(());
        }
        let rows = check_rows(&due, &answer.rows, self.config.vocabulary, self.config.width);
        if let Err(reason) = rows
            && Defence::AnswerShape.stands()
        {
            return Err(self.protocol(hop, reason));
        }
        self.deliver(now, answer.rows, false);
        Ok(())
    }

    /// The answer to the oldest step, and to those after it that were skipped and wait for their turn.
    pub(super) fn deliver(&mut self, now: Instant, rows: Vec<Logits>, skipped: bool) {
        let Some(Pending { sequence, start, count, .. }) = self.pending.pop_front() else { return };
        self.since = now;
        self.repair.answered();
        if self.pending.is_empty() && !skipped {
            self.answered = Some((sequence, count));
        }
        self.effects.push_back(Effect::Answer(Answer { sequence, start, count, rows, skipped }));
        if self.pending.front().is_some_and(|next| next.skipped) {
            self.deliver(now, Vec::new(), true);
        }
    }

    /// The last peer's hidden states, for the own tail.
    pub(super) fn step_returned(&mut self, now: Instant, hop: usize, step: &StepFrame) -> Result<(), SessionError> {
        let epoch = self.repair.epoch_out_of(hop);
        if step.epoch < epoch || step.epoch == epoch && step.sequence < self.returned {
            return self.stale_came(hop);
        }
        let index = (step.sequence - self.pending.front().map_or(0, |p| p.sequence).min(step.sequence)) as usize;
        let due = self.pending.get(index).filter(|due| {
            step.epoch == epoch
                && step.sequence == self.returned
                && (due.sequence, due.start, due.count) == (step.sequence, step.start, step.count)
        });
        let Some(Pending { sequence, fenced, .. }) = due.cloned() else {
            return Err(self.protocol(hop, format!("it returned step {}, which is not due", step.sequence)));
        };
        if step.skipped && !fenced {
            return Err(self.protocol(hop, format!("it skipped step {sequence}, which is wanted")));
        }
        if !self.receipts.received() || step.codec != self.config.codec && !step.skipped {
            return Err(self.protocol(hop, "it returned a step in another codec, or without credit".into()));
        }
        if step.skipped || fenced {
            // The own tail need not run what nobody wants; what follows starts where it does or before.
            self.returned += 1;
            self.frame_done(hop);
            if let Some(due) = self.pending.get_mut(index) {
                due.skipped = true;
            }
            if index == 0 {
                self.deliver(now, Vec::new(), true);
            }
            return Ok(());
        }
        let width = self.config.width as usize;
        let hidden = step.codec.decode(&step.payload, step.count.into(), width);
        let hidden = hidden.map_err(|error| self.protocol(hop, error.to_string()))?;
        self.returned += 1;
        self.run_own(hop + 1, sequence, Input::Hidden(Hidden(hidden)));
        Ok(())
    }

    /// A frame that came twice or late: dropped, within reason. Streams are reliable and in order.
    pub(super) fn stale_came(&mut self, hop: usize) -> Result<(), SessionError> {
        self.stale += 1;
        if self.stale > STALE_FRAMES_MAX {
            return Err(self.protocol(hop, format!("it sent {} frames twice or late", self.stale)));
        }
        Ok(())
    }

    pub(super) fn row_came(&mut self, hop: usize, sequence: u32, row: u16, logits: Hidden) -> Result<(), SessionError> {
        if self.row_wanted.take() != Some((sequence, row)) || !is_row(&logits, self.config.vocabulary) {
            return Err(self.protocol(hop, format!("row {row} of step {sequence} was not asked for, or is none")));
        }
        self.effects.push_back(Effect::Row { sequence, row, logits });
        Ok(())
    }
}

/// Whether these can be a row's logits: one for each token, none of them NaN or +infinity.
fn is_row(row: &Hidden, vocabulary: u32) -> bool {
    row.0.len() == vocabulary as usize && row.0.iter().all(|logit| *logit < f32::INFINITY)
}

/// Whether these can be a row's largest logits, in falling order, and its log-sum-exp.
fn is_reduced(largest: &[(u32, f32)], log_sum_exp: f32, vocabulary: u32) -> bool {
    let Some((_, first)) = largest.first() else { return false };
    // The sum is rounded once: it may come out below its largest part by that much.
    let slack = 1e-5 * first.abs().max(1.0);
    let mut tokens: Vec<u32> = largest.iter().map(|(token, _)| *token).collect();
    tokens.sort_unstable();
    first.is_finite()
        && log_sum_exp.is_finite()
        && log_sum_exp >= first - slack
        && largest.windows(2).all(|pair| (pair[0].1, pair[1].0) >= (pair[1].1, pair[0].0))
        && tokens.windows(2).all(|pair| pair[0] != pair[1])
        && tokens.last().is_some_and(|token| *token < vocabulary)
}

/// Whether the rows are what the step asked for: a tail is not to be trusted.
fn check_rows(due: &Pending, rows: &[Logits], vocabulary: u32, width: u32) -> Result<(), String> {
    let expected = match due.rows {
        Rows::None => 0,
        Rows::Last | Rows::Mean => 1,
        Rows::All => usize::from(due.count),
    };
    if rows.len() != expected {
        return Err(format!("it answered step {} with {} rows; {expected} were asked for", due.sequence, rows.len()));
    }
    let good = |row: &Logits| match row {
        Logits::Whole(mean) if due.rows == Rows::Mean => {
            mean.0.len() == width as usize && mean.0.iter().all(|value| value.is_finite())
        }
        Logits::Top { .. } if due.rows == Rows::Mean => false,
        Logits::Whole(hidden) => due.top == 0 && is_row(hidden, vocabulary),
        Logits::Top { largest, log_sum_exp } => {
            due.top > 0
                && largest.len() == usize::from(due.top).min(vocabulary as usize)
                && is_reduced(largest, *log_sum_exp, vocabulary)
        }
    };
    if rows.iter().all(good) { Ok(()) } else { Err(format!("its rows for step {} are malformed", due.sequence)) }
}
