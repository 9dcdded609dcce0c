//! How a session ends: deadlines, peers that fail, and telling everybody.

use std::time::{Duration, Instant};

use potluck_core::StageCommand;
use potluck_wire::{Failure, FailureCode};

use super::{ClientSession, Effect, Hop, OwnStage};
use crate::{Deadlines, SessionError};

impl ClientSession {
    pub(super) fn deadlines(&self) -> impl Iterator<Item = (Instant, String, Duration, &'static str)> {
        let Deadlines { open, step, grace, .. } = self.config.deadlines;
        // While a lost peer's place is empty, that alone is waited for.
        let waits = !self.over && !self.repair.is_under_way();
        let opening = (!self.over && !self.ready).then(|| (self.since + open, self.missing(), open, "open_timeout"));
        let stepping = self
            .pending
            .front()
            .filter(|_| waits)
            .map(|due| (self.since + step, format!("step {} was under way", due.sequence), step, "step_timeout"));
        let asking = self.row_wanted.filter(|_| waits).map(|(sequence, row)| {
            (self.row_since + step, format!("row {row} of step {sequence} was asked for"), step, "step_timeout")
        });
        let accounting = self.accounts.asked_since().filter(|_| waits).map(|asked| {
            let hop = self.accounts.first_due().unwrap_or_default();
            (asked + step, format!("the account of layers {} was asked for", self.layers(hop)), step, "step_timeout")
        });
        let mending = self
            .repair
            .deadline(grace)
            .filter(|_| !self.over)
            .map(|at| (at, "another peer took a lost one's place".to_owned(), grace.unwrap_or_default(), "grace"));
        [opening, stepping, asking, accounting, mending].into_iter().flatten()
    }

    pub(super) fn missing(&self) -> String {
        let missing: Vec<_> = (0..self.waiting_for.len()).filter(|&hop| self.waiting_for[hop]).collect();
        let names: Vec<_> = missing.into_iter().map(|hop| self.layers(hop)).collect();
        format!("the stages of layers {} were opening", names.join(", "))
    }

    pub(super) fn check_deadlines(&self, now: Instant) -> Result<(), SessionError> {
        match self.deadlines().find(|(at, ..)| *at <= now) {
            None => Ok(()),
            Some((_, waiting, after, setting)) => {
                // Where nobody took a lost peer's place, that it was lost is what the caller has to know.
                let late = || SessionError::Deadline { waiting, seconds: after.as_secs(), setting };
                Err(self.repair.lost().unwrap_or_else(late))
            }
        }
    }

    /// What a peer's failure means: it may be about another peer of the route.
    pub(super) fn peer_failed(&self, hop: usize, failure: Failure) -> SessionError {
        let named = failure.peer.and_then(|peer| {
            (0..self.config.route.len()).find(|&hop| self.remote(hop).is_some_and(|r| r.address.peer == peer))
        });
        let hop = named.unwrap_or(hop);
        let Some(remote) = self.remote(hop) else { return SessionError::Closed };
        let (peer, layers) = (remote.address.peer, remote.spec.layers.to_string());
        let lost = matches!(failure.code, FailureCode::PeerLost | FailureCode::Done);
        if lost {
            SessionError::PeerLost { peer, layers, failure }
        } else {
            SessionError::Peer { peer, layers, failure }
        }
    }

    pub(super) fn protocol(&self, hop: usize, reason: String) -> SessionError {
        match self.remote(hop) {
            Some(remote) => SessionError::Protocol { peer: remote.address.peer, reason },
            None => SessionError::BadStep(reason),
        }
    }

    pub(super) fn fail(&mut self, error: SessionError) {
        if self.over {
            return;
        }
        let code = match error {
            SessionError::Protocol { .. } => FailureCode::Protocol,
            SessionError::Deadline { .. } => FailureCode::Deadline,
            _ => FailureCode::Cancelled,
        };
        self.end(Failure::new(code, &error));
        self.effects.push_back(Effect::Failed(error));
    }

    pub(super) fn end(&mut self, failure: Failure) {
        self.over = true;
        self.pending.clear();
        self.doubts.end();
        for hop in 0..self.config.route.len() {
            let effect = match self.config.route[hop] {
                Hop::Remote(_) => Effect::Close { hop, failure: failure.clone() },
                Hop::Own(OwnStage { cache, .. }) => Effect::Own { hop, command: StageCommand::Close { cache } },
            };
            self.effects.push_back(effect);
        }
        for hop in (0..self.standbys.len()).filter(|hop| self.standbys[*hop].is_some()) {
            let hop = self.config.route.len() + hop;
            self.effects.push_back(Effect::Close { hop, failure: failure.clone() });
        }
    }
}
