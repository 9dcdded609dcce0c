//! Whose word counts. A peer that hears nothing any more, and is heard, misses its neighbours, which miss nobody yet. So whoever says
//! that a neighbour is lost is asked whether it hears; if it does not, it is itself the one that is lost.

use std::time::{Duration, Instant};

use potluck_wire::{Failure, FailureCode, Frame};

use super::ClientSession;
use crate::SessionError;

/// Whoever hears a question has answered it by then, or its machine has acknowledged something: nothing has to be computed for that.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// What peers say of their neighbours, as long as it is not known whether they hear.
#[derive(Debug)]
pub(super) struct Doubts {
    open: Vec<Doubt>,
    /// Of each stage's peer: accounts that it was asked for so, and that have not come.
    owed: Vec<u8>,
}

#[derive(Debug)]
struct Doubt {
    /// The stage of whoever says so.
    by: usize,
    /// The stage of whoever it misses, as long as nothing else is known of that one.
    about: Option<(usize, Failure)>,
    until: Instant,
}

impl Doubts {
    pub(super) fn new(stages: usize) -> Self {
        Self { open: Vec::new(), owed: vec![0; stages] }
    }

    /// Whether somebody misses the peer of that stage.
    pub(super) fn are_about(&self, hop: usize) -> bool {
        self.open.iter().any(|doubt| doubt.about.as_ref().is_some_and(|(about, _)| *about == hop))
    }

    /// When the first of those that were asked will be late.
    pub(super) fn until(&self) -> Option<Instant> {
        self.open.iter().map(|doubt| doubt.until).min()
    }

    /// The peer of that stage is lost, or another has the place: what it was asked is not answered, and whoever misses it is right.
    pub(super) fn forget(&mut self, hop: usize) {
        self.open.retain(|doubt| doubt.by != hop);
        self.owed[hop] = 0;
        for doubt in &mut self.open {
            doubt.about.take_if(|(about, _)| *about == hop);
        }
    }

    /// An account came from that stage: whether it was asked for so.
    pub(super) fn was_owed(&mut self, hop: usize) -> bool {
        let owed = self.owed[hop].checked_sub(1);
        self.owed[hop] = owed.unwrap_or(0);
        owed.is_some()
    }

    /// The session is over.
    pub(super) fn end(&mut self) {
        self.open.clear();
    }
}

impl ClientSession {
    /// The stages whose peers were asked whether they hear.
    pub fn doubted(&self) -> impl Iterator<Item = usize> {
        self.doubts.open.iter().map(|doubt| doubt.by)
    }

    /// A peer says that its neighbour's connection is lost, which is all that it says: it is asked whether it hears.
    pub(super) fn doubt(&mut self, now: Instant, by: usize, about: usize, failure: Failure) {
        let asked = self.doubts.open.iter().find(|doubt| doubt.by == by).map(|doubt| doubt.until);
        let is_known = |doubt: &Doubt| doubt.by == by && doubt.about.as_ref().is_some_and(|(it, _)| *it == about);
        if self.doubts.open.iter().any(is_known) {
            return;
        }
        let until = asked.unwrap_or_else(|| now + HEARD_WITHIN);
        self.doubts.open.push(Doubt { by, about: Some((about, failure)), until });
        if asked.is_none() {
            self.doubts.owed[by] = self.doubts.owed[by].saturating_add(1);
            self.send(by, Frame::AskAccount);
        }
    }

    /// A peer hears: those that it misses are lost.
    ///
    /// # Errors
    /// How the session ends with them.
    pub(super) fn hears(&mut self, now: Instant, by: usize) -> Result<(), SessionError> {
        while let Some(at) = self.doubts.open.iter().position(|doubt| doubt.by == by) {
            let Doubt { about, .. } = self.doubts.open.remove(at);
            if let Some((place, failure)) = about {
                self.neighbour_gone(now, place, failure)?;
            }
        }
        Ok(())
    }

    /// Those are lost that have not said in time that they hear.
    ///
    /// # Errors
    /// How the session ends with them.
    pub(super) fn lose_the_deaf(&mut self, now: Instant) -> Result<(), SessionError> {
        while let Some(by) = self.doubts.open.iter().find(|doubt| doubt.until <= now).map(|doubt| doubt.by) {
            self.doubts.forget(by);
            self.peer_gone(now, by, Failure::new(FailureCode::PeerLost, "it does not hear what it is sent"))?;
        }
        Ok(())
    }
}
