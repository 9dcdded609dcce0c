//! A session that is put aside: what its cache holds is kept, and given to another later.
//!
//! The machine only asks for it, and says what came of it: who keeps it is the driver's. That a stage has kept nothing, or something else,
//! ends no session: its client computes what is missing.

use std::time::Duration;

use potluck_core::{CacheId, SessionKey, StageCommand, StageError};
use potluck_wire::{Failure, FailureCode, Frame, Restore, Save};

use crate::{Effect, Now, Peer, StageSlot, session::Session};

/// What a session holds is kept no sooner than that after it was kept last: it is all written to a disk each time.
const SAVED_EVERY: Duration = Duration::from_secs(10);

/// What of a session's state is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moving {
    /// So many positions are written down.
    Out { positions: u32 },
    /// What was kept comes back.
    Back,
}

impl Session {
    /// Nothing is under way in it, and its client may be told.
    fn is_at_rest(&self) -> bool {
        self.ready_sent && self.missing_since.is_none() && self.in_flight.is_empty() && self.moving.is_none()
    }
}

impl Peer {
    pub(crate) fn save(&mut self, now: Now, key: SessionKey, save: &Save) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.moving.is_some() {
            return self.end_session(key, twice());
        }
        let is_soon = session.saved_at.is_some_and(|at| now.instant.saturating_duration_since(at) < SAVED_EVERY);
        // What was skipped is not in the cache.
        if !session.is_at_rest() || session.held == 0 || session.solid != session.held || is_soon {
            return self.tell_client(key, Frame::Saved { positions: 0, bytes: 0 });
        }
        let positions = session.held;
        (session.moving, session.saved_at) = (Some(Moving::Out { positions }), Some(now.instant));
        let (stage, cache) = (session.slot, session.cache);
        let Save { key: state, seconds } = *save;
        let each = self.stages.get(usize::from(stage.0)).map_or(0, |stage| stage.shape().cache_bytes_per_position);
        let bytes = each * u64::from(positions);
        let command = StageCommand::Save { cache, session: key, positions, bytes, key: state, seconds };
        self.effects.push_back(Effect::Stage { stage, command });
    }

    pub(crate) fn restore(&mut self, key: SessionKey, restore: &Restore) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.moving.is_some() {
            return self.end_session(key, twice());
        }
        if !session.is_at_rest() || session.held > 0 || session.expected > 0 {
            return self.tell_client(key, Frame::Restored { positions: 0 });
        }
        session.moving = Some(Moving::Back);
        let (stage, cache) = (session.slot, session.cache);
        // Of this client alone: nobody is given what was another's.
        let of = SessionKey { id: restore.session, ..key };
        let command = StageCommand::Restore { cache, session: of, key: restore.key };
        self.effects.push_back(Effect::Stage { stage, command });
    }

    pub(crate) fn saved(&mut self, slot: StageSlot, cache: CacheId, result: &Result<u64, StageError>) {
        let Some((key, Moving::Out { positions })) = self.moved(slot, cache) else { return };
        let frame = match result {
            Ok(bytes) => Frame::Saved { positions, bytes: *bytes },
            Err(_) => Frame::Saved { positions: 0, bytes: 0 },
        };
        self.tell_client(key, frame);
    }

    pub(crate) fn restored(&mut self, slot: StageSlot, cache: CacheId, result: &Result<u32, StageError>) {
        let Some((key, Moving::Back)) = self.moved(slot, cache) else { return };
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let positions = match result {
            Ok(positions) => (*positions).min(session.open.positions),
            Err(_) => 0,
        };
        if positions > 0 {
            (session.held, session.solid) = (positions, positions);
            if session.grace.is_some() {
                session.journal.keep(true);
            }
        }
        self.tell_client(key, Frame::Restored { positions });
    }

    /// The session whose state this was, and what was asked of it.
    fn moved(&mut self, slot: StageSlot, cache: CacheId) -> Option<(SessionKey, Moving)> {
        let of = |session: &&mut Session| session.slot == slot && session.cache == cache;
        let session = self.sessions.values_mut().find(of)?;
        Some((session.key, session.moving.take()?))
    }
}

fn twice() -> Failure {
    Failure::new(FailureCode::Protocol, "what the session holds is on its way already")
}
