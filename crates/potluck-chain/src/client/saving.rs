//! A session that is put aside: its stages keep what they hold, and a later session begins with that.
//!
//! Nothing depends on it. A stage that keeps nothing, or has something else, costs its client the time to compute it: whatever stages hold
//! from the first position of a step on is dropped. What a stage may yet be given by whoever kept it could be dropped by no step: a session
//! that gives up waiting for it ends, and so does one that loses a peer meanwhile. Nothing was computed for it.

use std::time::Instant;

use potluck_core::{SessionId, SessionKey, StageCommand, StageError, StateKey};
use potluck_wire::{Failure, FailureCode, Frame, Restore, Save};

use super::{ClientSession, Effect, Hop, OwnStage};
use crate::SessionError;

/// What is asked of the stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Save,
    Restore,
}

/// What the stages were asked for, and have said.
#[derive(Debug)]
pub(super) struct Saving {
    asked: Asked,
    since: Instant,
    /// Which stages have not answered yet.
    due: Vec<bool>,
    /// What each has: none where it has not said, or not as many positions as are wanted.
    positions: Vec<u32>,
    bytes: u64,
}

impl ClientSession {
    /// Asks each stage to keep what it holds for so many seconds, encrypted: [`Effect::Saved`] says what came of it. The session goes on,
    /// or is closed; [`restore`](Self::restore) takes it up in another. Each peer must know how
    /// ([`FEATURE_SAVING`](potluck_wire::FEATURE_SAVING)).
    ///
    /// # Errors
    /// `BadStep` where a step is under way, a peer is lost, or a stage has not answered what it was asked before; `Closed` after the end.
    pub fn save(&mut self, now: Instant, key: StateKey, seconds: u32) -> Result<(), SessionError> {
        self.begin(now, Asked::Save)?;
        let session = self.config.key;
        let (positions, bytes) = (self.held, 0);
        let own = |cache| StageCommand::Save { cache, session, positions, bytes, key, seconds };
        self.ask_all(own, || Frame::Save(Save { key, seconds }));
        Ok(())
    }

    /// Asks each stage for what it has kept of this client's session of that name: [`Effect::Restored`] says how many positions they all
    /// hold then. No step may be submitted until it comes. Nobody stands by for this session any more: what it begins with nobody can send.
    ///
    /// # Errors
    /// As for [`save`](Self::save); `BadStep` where a step was submitted already, too.
    pub fn restore(&mut self, now: Instant, session: SessionId, key: StateKey) -> Result<(), SessionError> {
        if self.sequence > 0 || self.held > 0 {
            return Err(SessionError::BadStep("a session begins with what was kept, or not at all".into()));
        }
        self.begin(now, Asked::Restore)?;
        for hop in 0..self.standbys.len() {
            let done = Failure::new(FailureCode::Done, "the session begins with what was kept");
            self.drop_standby(hop, done, true);
        }
        let of = SessionKey { id: session, ..self.config.key };
        let own = |cache| StageCommand::Restore { cache, session: of, key };
        self.ask_all(own, || Frame::Restore(Restore { session, key }));
        Ok(())
    }

    fn begin(&mut self, now: Instant, asked: Asked) -> Result<(), SessionError> {
        if self.over {
            return Err(SessionError::Closed);
        }
        let is_whole = self.ready && !self.repair.is_under_way();
        if !is_whole || !self.pending.is_empty() || self.saving.is_some() || self.owed.contains(&true) {
            return Err(SessionError::BadStep("what the stages hold is not at rest".into()));
        }
        let stages = self.config.route.len();
        let (due, positions) = (vec![true; stages], vec![0; stages]);
        self.saving = Some(Saving { asked, since: now, due, positions, bytes: 0 });
        Ok(())
    }

    fn ask_all(&mut self, own: impl Fn(potluck_core::CacheId) -> StageCommand, remote: impl Fn() -> Frame) {
        for hop in 0..self.config.route.len() {
            match self.config.route[hop] {
                Hop::Own(OwnStage { cache, .. }) => self.effects.push_back(Effect::Own { hop, command: own(cache) }),
                Hop::Remote(_) => self.send(hop, remote()),
            }
        }
    }

    /// A stage keeps so many positions.
    pub(super) fn stage_saved(&mut self, hop: usize, positions: u32, bytes: u64) -> Result<(), SessionError> {
        self.stage_said(hop, Asked::Save, positions, bytes)
    }

    /// A stage holds so many positions of an earlier session.
    pub(super) fn stage_restored(&mut self, hop: usize, positions: u32) -> Result<(), SessionError> {
        self.stage_said(hop, Asked::Restore, positions, 0)
    }

    pub(super) fn own_saved(&mut self, hop: usize, result: Result<u64, StageError>) -> Result<(), SessionError> {
        let positions = if result.is_ok() { self.held } else { 0 };
        self.stage_said(hop, Asked::Save, positions, result.unwrap_or(0))
    }

    pub(super) fn own_restored(&mut self, hop: usize, result: Result<u32, StageError>) -> Result<(), SessionError> {
        self.stage_restored(hop, result.unwrap_or(0))
    }

    fn stage_said(&mut self, hop: usize, what: Asked, positions: u32, bytes: u64) -> Result<(), SessionError> {
        let is_due = |saving: &&mut Saving| saving.asked == what && saving.due[hop];
        let Some(saving) = self.saving.as_mut().filter(is_due) else {
            // It was given up meanwhile.
            return if std::mem::take(&mut self.owed[hop]) { Ok(()) } else { self.stale_came(hop) };
        };
        saving.due[hop] = false;
        let max = if what == Asked::Save { self.held } else { self.config.positions };
        if positions > max {
            return Err(self.protocol(hop, format!("it has {positions} positions of {max}")));
        }
        saving.positions[hop] = positions;
        saving.bytes = saving.bytes.saturating_add(bytes);
        if !saving.due.contains(&true) {
            self.all_said();
        }
        Ok(())
    }

    /// All have said what they have.
    fn all_said(&mut self) {
        let Some(Saving { asked, positions, bytes, .. }) = self.saving.take() else { return };
        let all = positions.first().copied().filter(|first| positions.iter().all(|other| other == first));
        let positions = all.unwrap_or(0);
        match asked {
            Asked::Save => {
                let positions = if positions == self.held { positions } else { 0 };
                self.effects.push_back(Effect::Saved { positions, bytes });
            }
            Asked::Restore => {
                self.held = positions;
                if positions > 0 && self.config.deadlines.grace.is_some() {
                    // Whoever takes a lost peer's place cannot be sent them.
                    self.journal.keep(true);
                }
                self.effects.push_back(Effect::Restored { positions });
            }
        }
    }

    /// What the stages were asked for is not waited for any longer. True where the session ends with that.
    pub(super) fn give_up_saving(&mut self, why: SessionError) -> bool {
        let Some(Saving { asked, due, .. }) = self.saving.take() else { return false };
        self.owed = due;
        match asked {
            Asked::Save => self.effects.push_back(Effect::Saved { positions: 0, bytes: 0 }),
            Asked::Restore => self.fail(why),
        }
        self.over
    }

    /// What the stages were to keep is not waited for any longer, if it still is: a step may be submitted.
    pub fn stop_saving(&mut self) {
        if self.saving.as_ref().is_some_and(|saving| saving.asked == Asked::Save) {
            self.give_up_saving(SessionError::Closed);
        }
    }

    /// The same where it has lasted too long.
    pub(super) fn check_saving(&mut self, now: Instant) {
        if self.saving_due().is_some_and(|at| at <= now) {
            let waiting = "the stages were to give back what they had kept".to_owned();
            let seconds = self.config.deadlines.step.as_secs();
            self.give_up_saving(SessionError::Deadline { waiting, seconds, setting: "step_timeout" });
        }
    }

    /// Until when that is waited for.
    pub(super) fn saving_due(&self) -> Option<Instant> {
        self.saving.as_ref().filter(|_| !self.over).map(|saving| saving.since + self.config.deadlines.step)
    }
}
