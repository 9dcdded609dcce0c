//! How a step passes through: from a stream to the stage, and its output to the next.

use std::time::Duration;

use potluck_core::{CacheId, Defence, Hidden, Output, SessionKey, StageCommand, StageError, Step};
use potluck_wire::{Failure, FailureCode, Frame, StepFrame};

use crate::{
    Effect, Now, Peer, StageSlot, StreamId,
    queue::{Queued, StageQueue},
    session::{Arrival, Session},
};

impl Peer {
    pub(crate) fn step_came(&mut self, now: Now, stream: StreamId, key: SessionKey, frame: &StepFrame) {
        let watch = self.watch(now.instant);
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.step_stream() != Some(stream) {
            let failure = Failure::new(FailureCode::Protocol, "steps of this session come from another peer");
            return self.misbehaved(stream, failure);
        }
        let before = watch.now();
        match session.arrive(now.instant, frame) {
            Ok(Arrival::Stale) => self.count_stale(),
            Ok(arrival) => {
                // What was skipped is not computed here, nor paid for.
                let count = if frame.skipped { 0 } else { frame.count };
                if let Err(error) = self.meter.charge(session.member.chain().scope(), count.into(), now.utc) {
                    return self.end_session(key, Failure::new(FailureCode::Spent, error));
                }
                let arrived = watch.now();
                session.tally.codec += arrived - before;
                session.tally.bytes_in += frame.bytes() as u64;
                let StepFrame { sequence, start, count, rows, top, fence, .. } = *frame;
                let step = match arrival {
                    Arrival::Run(input) => {
                        Some(Step { cache: session.cache, start, input, rows, top, tree: frame.tree.clone() })
                    }
                    Arrival::Skip | Arrival::Stale => None,
                };
                let (slot, serial) = (session.slot, session.serial);
                let yields = session.member.chain().scope().yields();
                if fence && let Some(stage) = self.stages.get_mut(usize::from(slot.0)) {
                    stage.fence(key, start);
                }
                self.enqueue(slot, key, Queued { serial, sequence, count, arrived, yields, step });
            }
            Err(failure) => self.misbehaved(stream, failure),
        }
    }

    pub(crate) fn forwarded(
        &mut self,
        now: Now,
        slot: StageSlot,
        (batch, compute): (u64, Duration),
        results: Vec<Result<Output, StageError>>,
    ) {
        let watch = self.watch(now.instant);
        let Some(batch) = self.stages.get_mut(usize::from(slot.0)).and_then(|stage| stage.finish(batch, now.instant))
        else {
            return;
        };
        let away = now.instant.saturating_duration_since(batch.begun);
        for (ran, result) in batch.steps.iter().zip(results) {
            // The session may have ended, and its name been used again, while its step ran.
            let same = |session: &&mut Session| session.serial == ran.serial;
            let Some(session) = self.sessions.get_mut(&ran.session).filter(same) else { continue };
            session.last_step = now.instant;
            session.tally.ran(ran.count, batch.begun.saturating_duration_since(ran.arrived), away, compute);
            let before = watch.now();
            let labelled =
                result.map_err(|error| engine_failure(&error)).and_then(|out| session.label(ran.sequence, out));
            match labelled {
                Ok(frame) => {
                    session.tally.codec += watch.now() - before;
                    session.tally.bytes_out += frame_bytes(&frame) as u64;
                    session.outbox.push_back(frame);
                    self.flush(ran.session);
                }
                Err(failure) => self.end_session(ran.session, failure),
            }
        }
    }

    /// Tells those who come next of the steps that were fenced off before this stage had run them.
    pub(crate) fn pass_skipped(&mut self) {
        let skipped: Vec<_> = self.stages.iter_mut().flat_map(StageQueue::skipped).collect();
        for skipped in skipped {
            let same = |session: &&mut Session| session.serial == skipped.serial;
            let Some(session) = self.sessions.get_mut(&skipped.session).filter(same) else { continue };
            if let Some(frame) = session.skip(skipped.sequence) {
                session.tally.bytes_out += frame_bytes(&frame) as u64;
                session.outbox.push_back(frame);
                self.flush(skipped.session);
            }
        }
    }

    /// Sends what the next hop has credit for, and grants the previous one as much again.
    fn flush(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let (Some(out), Some(back)) = (session.output_stream(), session.step_stream()) else { return };
        while let Some(frame) = session.outbox.front() {
            // Answers need no credit: there is one for each step that the client itself sent.
            if matches!(frame, Frame::Step(_)) && !session.credit.take() {
                break;
            }
            let Some(frame) = session.outbox.pop_front() else { break };
            self.effects.push_back(Effect::Send { stream: out, frame });
            if let Some(frames) = session.receipts.finished() {
                self.effects.push_back(Effect::Send { stream: back, frame: Frame::Credit { frames } });
            }
        }
    }

    pub(crate) fn credited(&mut self, stream: StreamId, key: SessionKey, frames: u32) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let takes_steps = session.output_stream() == Some(stream) && !session.open.stage.tail;
        if takes_steps && (frames > 0 && session.credit.grant(frames) || !Defence::CreditDue.stands()) {
            return self.flush(key);
        }
        let failure = Failure::new(FailureCode::Protocol, format!("{frames} frames of credit that were not due"));
        self.misbehaved(stream, failure);
    }

    pub(crate) fn row_requested(&mut self, key: SessionKey, sequence: u32, row: u16) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let kept = session.answered.is_some_and(|(answered, count)| answered == sequence && row < count);
        if !kept || session.row_wanted.is_some() {
            let detail = format!("row {row} of step {sequence} is not kept here");
            return self.end_session(key, Failure::new(FailureCode::Protocol, detail));
        }
        session.row_wanted = Some((sequence, row));
        let command = StageCommand::Row { cache: session.cache, row };
        let stage = session.slot;
        self.effects.push_back(Effect::Stage { stage, command });
    }

    pub(crate) fn row_came(&mut self, slot: StageSlot, cache: CacheId, row: u16, result: Result<Hidden, StageError>) {
        let wants = |session: &&mut Session| {
            session.slot == slot
                && session.cache == cache
                && session.row_wanted.is_some_and(|(_, wanted)| wanted == row)
        };
        let Some(session) = self.sessions.values_mut().find(wants) else { return };
        let (key, client) = (session.key, session.client);
        match (session.row_wanted.take(), result) {
            (Some((sequence, row)), Ok(logits)) => self.send(client, Frame::Row { sequence, row, logits }),
            (_, Err(error)) => self.end_session(key, engine_failure(&error)),
            (None, Ok(_)) => {}
        }
    }
}

/// Bytes of what carries a step on.
fn frame_bytes(frame: &Frame) -> usize {
    match frame {
        Frame::Step(step) => step.bytes(),
        Frame::Answer(answer) => answer.bytes(),
        _ => 0,
    }
}

/// What a client learns of an engine's error.
pub(crate) fn engine_failure(error: &StageError) -> Failure {
    let code = match error {
        StageError::ContextFull { .. } => FailureCode::ContextFull,
        StageError::Busy { .. } => FailureCode::Busy,
        StageError::Lost(_) => FailureCode::EngineLost,
        _ => FailureCode::Engine,
    };
    Failure::new(code, error)
}
