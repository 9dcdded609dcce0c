//! How a step passes through: from a stream to the stage, and its output to the next.

use std::time::Duration;

use potluck_core::{CacheId, Defence, Hidden, Output, SessionKey, StageCommand, StageError, Step};
use potluck_wire::{Failure, FailureCode, Frame, NextHop, StepFrame};

use crate::{
    Effect, Now, Peer, StageSlot, StreamId,
    peer::WAITING_BYTES_MAX,
    queue::{Queued, StageQueue},
    saving::Moving,
    session::{Answering, Arrival, Session},
};

impl Peer {
    /// A step came. `due`: it was sent to somebody before, and this number would have been the next.
    pub(crate) fn step_came(
        &mut self,
        now: Now,
        stream: StreamId,
        key: SessionKey,
        frame: &StepFrame,
        due: Option<u32>,
    ) {
        let watch = self.watch(now.instant);
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.step_stream() != Some(stream) {
            let failure = Failure::new(FailureCode::Protocol, "steps of this session come from another peer");
            return self.misbehaved(stream, failure);
        }
        if session.moving == Some(Moving::Back) {
            let failure = Failure::new(FailureCode::Protocol, "a step came before what the session begins with");
            return self.end_session(key, failure);
        }
        if let Some(due) = due.filter(|_| session.waits_for_keep()) {
            session.early.push((stream, frame.clone(), due));
            return self.bound_early(stream);
        }
        let before = watch.now();
        match session.arrive(now.instant, frame, due) {
            Ok(Arrival::Stale) => self.count_stale(),
            Ok(arrival) => {
                // What was skipped is not computed here, nor paid for.
                let count = if matches!(arrival, Arrival::Run(_)) { frame.count } else { 0 };
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

    /// What waits for clients' words is bounded as what waits for a stage is, over all sessions.
    fn bound_early(&mut self, stream: StreamId) {
        let early = self.sessions.values().flat_map(|session| &session.early);
        let bytes: usize = early.map(|(_, step, _)| step.bytes()).sum();
        if bytes > WAITING_BYTES_MAX {
            let detail = format!("{bytes} bytes of steps wait for their sessions to be kept");
            self.misbehaved(stream, Failure::new(FailureCode::OverBudget, detail));
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
            let (waited, rested) = batch.waited(ran);
            // That it rests is what the stage is like, and nobody else's doing.
            session.tally.ran(ran.count, waited, away + rested, compute);
            let before = watch.now();
            let labelled =
                result.map_err(|error| engine_failure(&error)).and_then(|out| session.label(ran.sequence, out));
            match labelled {
                Ok(()) => {
                    session.tally.codec += watch.now() - before;
                    self.flush(ran.session);
                    self.row_due(ran.session);
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
            session.skip(skipped.sequence);
            self.flush(skipped.session);
        }
    }

    /// Sends what the next hop and its standby have credit for, and grants the previous one as much again.
    pub(crate) fn flush(&mut self, key: SessionKey) {
        self.flush_next(key);
        self.flush_standby(key);
    }

    fn flush_next(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.open.next == NextHop::Nobody {
            let done = session.keep_for_whoever_comes();
            return self.grant(key, done);
        }
        let Some(out) = session.output_stream().filter(|_| session.next_confirmed) else { return };
        let mut done = session.journal.pass_over();
        // Answers need no credit: there is one for each step that the client itself sent.
        while let Some(Answering { answer, owed }) = session.answers.pop_front() {
            done += usize::from(owed);
            let Some(answer) = answer else { continue };
            session.keep_answer(&answer);
            self.effects.push_back(Effect::Send { stream: out, frame: Frame::Answer(answer) });
        }
        while session.journal.waits() && session.credit.take() {
            let Some(outgoing) = session.journal.send(session.epochs.next) else { break };
            done += usize::from(outgoing.owed);
            self.effects.push_back(Effect::Send { stream: out, frame: outgoing.frame() });
        }
        self.grant(key, done);
    }

    /// So many steps of the previous hop's are done with.
    pub(crate) fn grant(&mut self, key: SessionKey, done: usize) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let back = session.step_stream();
        let mut frames: u32 = (0..done).filter_map(|_| session.receipts.finished()).sum();
        // Whoever feeds a standby wants to know how far it has come.
        if session.open.next == NextHop::Nobody {
            frames += session.receipts.take().unwrap_or(0);
        }
        if frames > 0 {
            let credit = back.map(|stream| Effect::Send { stream, frame: Frame::Credit { frames } });
            self.effects.extend(credit);
        }
    }

    pub(crate) fn credited(&mut self, stream: StreamId, key: SessionKey, frames: u32) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if let Some(standby) = session.standby.as_mut().filter(|standby| standby.stream == Some(stream)) {
            if frames > 0 && standby.credit.grant(frames) {
                return self.flush_standby(key);
            }
            let failure = Failure::new(FailureCode::Protocol, format!("{frames} frames of credit that were not due"));
            return self.misbehaved(stream, failure);
        }
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
        let to_come = sequence < session.told && (sequence >= session.expected || session.in_flight.has(sequence));
        if to_come && !kept && session.row_to_come.is_none() {
            // The peer that had answered it was lost: the step is on its way here once more.
            session.row_to_come = Some((sequence, row));
            return;
        }
        if !kept || session.row_wanted.is_some() {
            let detail = format!("row {row} of step {sequence} is not kept here");
            return self.end_session(key, Failure::new(FailureCode::Protocol, detail));
        }
        session.row_wanted = Some((sequence, row));
        let command = StageCommand::Row { cache: session.cache, row };
        let stage = session.slot;
        self.effects.push_back(Effect::Stage { stage, command });
    }

    /// The row that was asked for before its step was computed once more, if it is this one.
    fn row_due(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let is_due =
            |(sequence, _): &mut (u32, u16)| session.answered.is_some_and(|(answered, _)| answered == *sequence);
        if let Some((sequence, row)) = session.row_to_come.take_if(is_due) {
            self.row_requested(key, sequence, row);
        }
    }

    pub(crate) fn row_came(&mut self, slot: StageSlot, cache: CacheId, row: u16, result: Result<Hidden, StageError>) {
        let wants = |session: &&mut Session| {
            session.slot == slot
                && session.cache == cache
                && session.row_wanted.is_some_and(|(_, wanted)| wanted == row)
        };
        let Some(session) = self.sessions.values_mut().find(wants) else { return };
        let key = session.key;
        match (session.row_wanted.take(), result) {
            (Some((sequence, row)), Ok(logits)) => self.tell_client(key, Frame::Row { sequence, row, logits }),
            (_, Err(error)) => self.end_session(key, engine_failure(&error)),
            (None, Ok(_)) => {}
        }
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
