//! What peers send back: answers, hidden states for an own tail, rows. None of them is trusted.

use std::time::Instant;

use potluck_core::{Hidden, Input, Logits, Rows};
use potluck_wire::{AnswerFrame, Frame, StepFrame};

use super::{Answer, ClientSession, Effect, Pending};
use crate::SessionError;

impl ClientSession {
    pub(super) fn frame(&mut self, now: Instant, hop: usize, frame: Frame) -> Result<(), SessionError> {
        let last = self.last_remote() == Some(hop);
        let tail = last && hop + 1 == self.config.route.len();
        match frame {
            Frame::Ready if self.waiting_for.get(hop) == Some(&true) => {
                self.one_is_ready(hop);
                Ok(())
            }
            Frame::Credit { frames } if hop == 0 || hop == 1 && self.remote(0).is_none() => {
                if !self.credit.grant(frames) {
                    return Err(self.protocol(hop, format!("{frames} frames of credit that were not due")));
                }
                self.flush(hop);
                Ok(())
            }
            Frame::Answer(answer) if tail => self.answer_came(now, hop, answer),
            Frame::Step(step) if last && !tail => self.step_returned(hop, &step),
            Frame::Row { sequence, row, logits } if tail => self.row_came(hop, sequence, row, logits),
            Frame::Failed(failure) => Err(self.peer_failed(hop, failure, false)),
            other => Err(self.protocol(hop, format!("a {} frame does not belong here", other.kind()))),
        }
    }

    pub(super) fn one_is_ready(&mut self, hop: usize) {
        self.waiting_for[hop] = false;
        if !self.ready && !self.waiting_for.contains(&true) {
            self.ready = true;
            self.effects.push_back(Effect::Ready);
        }
    }

    pub(super) fn answer_came(&mut self, now: Instant, hop: usize, answer: AnswerFrame) -> Result<(), SessionError> {
        let next = self.pending.front().map_or(self.sequence, |due| due.sequence);
        if answer.epoch < self.config.epoch || answer.epoch == self.config.epoch && answer.sequence < next {
            return Ok(());
        }
        let due = self.pending.front().filter(|due| {
            (due.sequence, due.start, due.count) == (answer.sequence, answer.start, answer.count)
                && answer.epoch == self.config.epoch
        });
        let Some(due) = due.cloned() else {
            let text = format!("it answered step {} of epoch {}, which is not due", answer.sequence, answer.epoch);
            return Err(self.protocol(hop, text));
        };
        check_rows(&due, &answer.rows, self.config.vocabulary).map_err(|reason| self.protocol(hop, reason))?;
        self.deliver(now, answer.rows);
        Ok(())
    }

    pub(super) fn deliver(&mut self, now: Instant, rows: Vec<Logits>) {
        let Some(Pending { sequence, start, count, .. }) = self.pending.pop_front() else { return };
        self.since = now;
        if self.pending.is_empty() {
            self.answered = Some((sequence, count));
        }
        self.effects.push_back(Effect::Answer(Answer { sequence, start, count, rows }));
    }

    /// The last peer's hidden states, for the own tail.
    pub(super) fn step_returned(&mut self, hop: usize, step: &StepFrame) -> Result<(), SessionError> {
        if step.epoch < self.config.epoch || step.epoch == self.config.epoch && step.sequence < self.returned {
            return Ok(());
        }
        let index = (step.sequence - self.pending.front().map_or(0, |p| p.sequence).min(step.sequence)) as usize;
        let due = self.pending.get(index).filter(|due| {
            step.epoch == self.config.epoch
                && step.sequence == self.returned
                && (due.sequence, due.start, due.count) == (step.sequence, step.start, step.count)
        });
        let Some(Pending { sequence, start, rows, top, .. }) = due.cloned() else {
            return Err(self.protocol(hop, format!("it returned step {}, which is not due", step.sequence)));
        };
        if step.codec != self.config.codec || !self.receipts.received() {
            return Err(self.protocol(hop, "it returned a step in another codec, or without credit".into()));
        }
        let width = self.config.width as usize;
        let hidden = step.codec.decode(&step.payload, step.count.into(), width);
        let hidden = hidden.map_err(|error| self.protocol(hop, error.to_string()))?;
        self.returned += 1;
        self.run_own(hop + 1, sequence, start, Input::Hidden(Hidden(hidden)), rows, top);
        Ok(())
    }

    pub(super) fn row_came(&mut self, hop: usize, sequence: u32, row: u16, logits: Hidden) -> Result<(), SessionError> {
        if self.row_wanted.take() != Some((sequence, row)) || logits.0.len() != self.config.vocabulary as usize {
            return Err(self.protocol(hop, format!("it sent row {row} of step {sequence}, which was not asked for")));
        }
        self.effects.push_back(Effect::Row { sequence, row, logits });
        Ok(())
    }
}

/// Whether the rows are what the step asked for: a tail is not to be trusted.
fn check_rows(due: &Pending, rows: &[Logits], vocabulary: u32) -> Result<(), String> {
    let expected = match due.rows {
        Rows::None => 0,
        Rows::Last => 1,
        Rows::All => usize::from(due.count),
    };
    if rows.len() != expected {
        return Err(format!("it answered step {} with {} rows; {expected} were asked for", due.sequence, rows.len()));
    }
    let good = |row: &Logits| match row {
        Logits::Whole(hidden) => due.top == 0 && hidden.0.len() == vocabulary as usize,
        Logits::Top { largest, log_sum_exp } => {
            due.top > 0
                && largest.len() == usize::from(due.top).min(vocabulary as usize)
                && largest.iter().all(|(token, logit)| *token < vocabulary && !logit.is_nan())
                && largest.windows(2).all(|pair| (pair[0].1, pair[1].0) >= (pair[1].1, pair[0].0))
                && largest.windows(2).all(|pair| pair[0] != pair[1])
                && !log_sum_exp.is_nan()
        }
    };
    if rows.iter().all(good) { Ok(()) } else { Err(format!("its rows for step {} are malformed", due.sequence)) }
}
