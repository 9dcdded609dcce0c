//! How a client comes back to peers that it has lost only the connection to: they keep the session for a while, and go on with it.
//!
//! What each of the two sides has sent and the other has not had is sent again; nobody computes anything once more. Peers that do not
//! go on are lost like any others.

use std::time::Instant;

use potluck_wire::{Failure, Frame, Return};

use super::{ClientSession, Effect};
use crate::SessionError;

impl ClientSession {
    /// A stream broke off with its connection.
    pub(super) fn broke_off(&mut self, now: Instant, hop: usize, failure: Failure) -> Result<(), SessionError> {
        // Somebody else has said so.
        let was_missed = self.repair.is_lost(hop) || self.doubts.are_about(hop);
        self.peer_gone(now, hop, failure)?;
        if !was_missed {
            self.repair.broke_off(hop);
        }
        Ok(())
    }

    /// The stages whose peers are lost, where of all these peers no more is known than that the connections to them are lost:
    /// [`come_back`](Self::come_back) may find them.
    pub fn broken_off(&self) -> Option<Vec<usize>> {
        if self.over { None } else { self.repair.broken_off() }
    }

    /// Asks the peers of [these](Self::broken_off) stages to go on with the session, each on a new stream.
    ///
    /// Each must know how ([`FEATURE_RETURN`](potluck_wire::FEATURE_RETURN)).
    ///
    /// # Errors
    /// `BadStep` where there are none. `Closed` after the end.
    pub fn come_back(&mut self, now: Instant) -> Result<(), SessionError> {
        if self.over {
            return Err(SessionError::Closed);
        }
        let Some(hops) = self.repair.broken_off() else {
            return Err(SessionError::BadStep("there is no peer to come back to".into()));
        };
        self.repair.asks_back(now, &hops);
        for hop in hops {
            self.waiting_for[hop] = true;
            self.effects.push_back(Effect::Reopen { hop });
            let mut answered = 0;
            if self.last_remote() == Some(hop) {
                (self.receipts, self.credited_from) = (Default::default(), self.returned);
                answered = self.answered(hop);
            }
            let (session, spec) = (self.config.key.id, self.config.route[hop].spec());
            let (previous, next) = (self.repair.epoch_into(hop), self.repair.epoch_out_of(hop));
            self.send(hop, Frame::Return(Return { session, previous, next, answered }));
            self.limit(hop, (hop, spec));
        }
        Ok(())
    }

    /// A peer goes on with the session.
    pub(super) fn came_back(&mut self, now: Instant, hop: usize, expected: u32) -> Result<(), SessionError> {
        if expected > self.sequence {
            return Err(self.protocol(hop, format!("it expects step {expected}, which has not been")));
        }
        self.one_is_ready(now, hop, Some(expected))
    }
}
