//! How a session outlives a neighbour: it waits, is told of another, and goes on with that one.
//!
//! What it has passed on is kept in its [`Journal`](potluck_chain::Journal). A next peer that takes another's place is sent all of
//! that again, one that was there before what it has not had; each says which step it expects. Whoever was fenced off by a newer
//! epoch finds no stream to the session any more.

use std::time::Duration;

use potluck_core::{PeerId, SessionKey};
use potluck_grant::Place;
use potluck_wire::{Failure, FailureCode, Frame, Keep, NeighbourLost, NextHop, PreviousHop, Reroute};

use crate::{Now, Peer};

/// Longest that a session waits for another neighbour in the place of one that is lost: its cache is nobody else's meanwhile. A client
/// may ask for less.
pub const GRACE_MAX: Duration = Duration::from_secs(60);

/// Which neighbour of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Previous,
    Next,
}

impl Peer {
    /// The client wants its session to outlive its neighbours.
    pub(crate) fn keep(&mut self, now: Now, key: SessionKey, keep: Keep) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.grace.is_some() || session.expected > 0 {
            let failure = Failure::new(FailureCode::Protocol, "a session is kept from its beginning, or not at all");
            return self.end_session(key, failure);
        }
        session.grace = Some(Duration::from_millis(keep.grace_ms.into()).min(GRACE_MAX));
        session.told = keep.answered;
        if self.draining {
            let client = session.client;
            self.effects.push_back(crate::Effect::Send { stream: client, frame: Frame::Leaving });
        }
        session.journal.keep(session.held > 0);
        // The next peer's word may have come first.
        if session.open.next == NextHop::Nobody {
            session.journal.rest();
        }
        let expects = if session.open.next == NextHop::Client { keep.answered } else { session.next_expects };
        if expects > 0 && !session.journal.resume(expects, 0) {
            let detail = "a session that begins with another's positions cannot take a lost peer's place";
            return self.end_session(key, Failure::new(FailureCode::Forgotten, detail));
        }
        for (stream, step, due) in std::mem::take(&mut session.early) {
            self.step_came(now, stream, key, &step, Some(due));
        }
    }

    /// A neighbour is gone: the session waits for another where its client wants that, and ends otherwise.
    /// `who`: which neighbour that is, whomever it blames.
    pub(crate) fn neighbour_lost(
        &mut self,
        now: Now,
        key: SessionKey,
        side: Side,
        (who, failure): (Option<PeerId>, Failure),
    ) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.grace.is_none() {
            return self.end_session(key, failure);
        }
        let epoch = match side {
            Side::Previous => {
                session.hop_in = None;
                session.epochs.previous
            }
            Side::Next => {
                session.hop_out = None;
                session.next_confirmed = false;
                session.epochs.next
            }
        };
        session.missing_since.get_or_insert(now.instant);
        // It waits as one whose neighbours were there: until it is told of others.
        session.ready_sent = true;
        let lost = NeighbourLost { epoch, failure: Failure { peer: who, ..failure } };
        session.lost[side as usize] = Some(lost.clone());
        self.tell_client(key, Frame::NeighbourLost(lost));
    }

    /// The client names another neighbour.
    pub(crate) fn reroute(&mut self, now: Now, key: SessionKey, reroute: Reroute) {
        if let Err(failure) = self.try_reroute(now, key, reroute) {
            self.end_session(key, failure);
        }
    }

    fn try_reroute(&mut self, now: Now, key: SessionKey, reroute: Reroute) -> Result<(), Failure> {
        let protocol = |detail: &str| Err(Failure::new(FailureCode::Protocol, detail));
        let Reroute { epoch, previous, next, answered, merges } = reroute;
        let Some(session) = self.sessions.get(&key) else { return Ok(()) };
        if session.grace.is_none() {
            return protocol("this session was not opened to outlive its neighbours");
        }
        if epoch <= session.newest_epoch() {
            return protocol("another neighbour comes with a newer epoch");
        }
        let mut open = session.open.clone();
        if let Some(previous) = previous {
            if open.previous == PreviousHop::Client || previous == PreviousHop::Client {
                return protocol("a peer takes the place of a peer");
            }
            open.previous = previous;
        }
        if let Some(next) = &next {
            let may = match open.next {
                NextHop::Client => false,
                NextHop::Peer { .. } => matches!(next, NextHop::Peer { .. }),
                // A standby, whose time has come.
                NextHop::Nobody => *next != NextHop::Nobody && (!open.stage.tail || *next == NextHop::Client),
            };
            if !may {
                return protocol("a peer takes the place of a peer");
            }
            open.next = next.clone();
        }
        let here = Place { peer: self.config.id, now: now.utc };
        let authorized = self.gate.authorize(&session.member, open, here);
        let (open, _) = authorized.map_err(|error| Failure::new(FailureCode::NotAllowed, error))?.into_parts();
        // Who stands by was looked at when it began to, and is not dialled.
        if !next.as_ref().is_some_and(|next| session.is_stood_by_by(next)) {
            self.check_neighbours(now, key.client, &open)?;
        }
        let Some(session) = self.sessions.get_mut(&key) else { return Ok(()) };
        (session.open, session.ready_sent, session.opened) = (open, false, now.instant);
        session.missing_since.get_or_insert(now.instant);
        let mut old = Vec::new();
        if previous.is_some() {
            session.epochs.previous = epoch;
            session.lost[Side::Previous as usize] = None;
            session.receipts = Default::default();
            session.forgive();
            old.extend(session.hop_in.take());
        }
        if let Some(next) = &next {
            session.settled = if merges { answered } else { 0 };
            session.epochs.next = epoch;
            session.lost[Side::Next as usize] = None;
            // Whoever stood by is asked now to answer the client.
            session.next_confirmed = *next == NextHop::Client;
            let is_whole = !session.next_confirmed
                || session.answers_from(answered, epoch)
                    && (session.open.stage.tail || session.journal.resume(answered, 0));
            if !is_whole {
                let detail = "what the client has to be sent was let go of here";
                return Err(Failure::new(FailureCode::Forgotten, detail));
            }
            old.extend(session.hop_out.take());
            for dialling in self.dials.values_mut().filter(|dialling| dialling.session == Some(key)) {
                if dialling.standby.is_none() {
                    dialling.session = None;
                }
            }
        }
        for stream in old {
            self.close_stream(stream, Failure::new(FailureCode::Done, ""));
        }
        if let Some(next) = &next
            && !self.promote_standby(key, next)
        {
            self.end_standby(key);
            self.dial(key, next, None);
        }
        self.unpark(key);
        self.report_ready(key);
        self.flush(key);
        Ok(())
    }
}
