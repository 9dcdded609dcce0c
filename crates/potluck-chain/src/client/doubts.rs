//! Whose word counts. A peer that hears nothing any more, and is heard, misses its neighbours, which miss nobody yet. So whoever says
//! that a neighbour is lost is asked whether it hears; if it does not, it is itself the one that is lost.

use std::time::{Duration, Instant};

use potluck_wire::{Failure, FailureCode, Frame};

use super::ClientSession;
use crate::SessionError;

/// Whoever hears a question has answered it by then: it asks for nothing that has to be computed.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// What peers say of their neighbours, as long as it is not known whether they hear.
#[derive(Debug, Default)]
pub(super) struct Doubts(Vec<Doubt>);

#[derive(Debug)]
struct Doubt {
    /// The stages of whoever says so, and of whoever it misses. None: its own connection has said so meanwhile.
    by: usize,
    about: Option<(usize, Failure)>,
    until: Instant,
}

impl Doubts {
    /// Whether somebody misses the peer of that stage.
    pub(super) fn are_about(&self, hop: usize) -> bool {
        self.0.iter().any(|doubt| doubt.about.as_ref().is_some_and(|(about, _)| *about == hop))
    }

    /// When the first of those that were asked will be late.
    pub(super) fn until(&self) -> Option<Instant> {
        self.0.iter().map(|doubt| doubt.until).min()
    }

    /// That stage's peer is lost, or another's: whoever was asked there is heard no more, and whoever is missed there is known to be gone.
    pub(super) fn forget(&mut self, hop: usize) {
        self.0.retain(|doubt| doubt.by != hop);
        for doubt in &mut self.0 {
            doubt.about.take_if(|(about, _)| *about == hop);
        }
    }

    /// The session is over.
    pub(super) fn end(&mut self) {
        self.0.clear();
    }
}

impl ClientSession {
    /// A peer says that its neighbour's connection is lost, which is all that it says: it is asked whether it hears.
    pub(super) fn doubt(&mut self, now: Instant, by: usize, about: usize, failure: Failure) {
        let asked = self.doubts.0.iter().find(|doubt| doubt.by == by).map(|doubt| doubt.until);
        let is_known = |doubt: &Doubt| doubt.by == by && doubt.about.as_ref().is_some_and(|(it, _)| *it == about);
        if self.doubts.0.iter().any(is_known) {
            return;
        }
        let until = asked.unwrap_or_else(|| now + HEARD_WITHIN);
        self.doubts.0.push(Doubt { by, about: Some((about, failure)), until });
        if asked.is_none() {
            self.send(by, Frame::AskAccount);
        }
    }

    /// A peer gave an account: whether it was asked so as to know that it hears. Then those that it misses are lost.
    ///
    /// # Errors
    /// How the session ends with them.
    pub(super) fn hears(&mut self, now: Instant, by: usize) -> Result<bool, SessionError> {
        let (its, others) = std::mem::take(&mut self.doubts.0).into_iter().partition(|doubt| doubt.by == by);
        self.doubts.0 = others;
        let its: Vec<Doubt> = its;
        let was_asked = !its.is_empty();
        for (place, failure) in its.into_iter().filter_map(|doubt| doubt.about) {
            self.neighbour_gone(now, place, failure)?;
        }
        Ok(was_asked)
    }

    /// Those are lost that have not said in time that they hear.
    ///
    /// # Errors
    /// How the session ends with them.
    pub(super) fn lose_the_deaf(&mut self, now: Instant) -> Result<(), SessionError> {
        while let Some(by) = self.doubts.0.iter().find(|doubt| doubt.until <= now).map(|doubt| doubt.by) {
            self.doubts.forget(by);
            self.peer_gone(now, by, Failure::new(FailureCode::PeerLost, "it does not hear what it is sent"))?;
        }
        Ok(())
    }
}
