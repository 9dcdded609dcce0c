//! How a session waits for its client: where the connection to it is lost, and nobody has said that the session is over, the client may
//! have lost its way to us alone. It comes back on a new stream, and goes on where it was.
//!
//! What either side has sent and the other has not had is sent again: steps by the client, from the one that is expected here; what
//! comes back from the last peer by us, from the one that the client has not had. Whoever is away makes room for whoever is there.

use std::time::{Duration, Instant};

use potluck_chain::STEPS_IN_FLIGHT_MAX;
use potluck_core::{PeerId, SessionId, SessionKey};
use potluck_grant::{Member, Place};
use potluck_wire::{
    AnswerFrame, CONTROL_BYTES_MAX, Failure, FailureCode, Frame, NextHop, OpenSession, PreviousHop, Return,
    step_frame_bytes_max,
};

use crate::{
    Effect, Now, Peer, StageSlot, StreamId,
    peer::Role,
    queue::StageQueue,
    session::{Answering, Session},
};

/// Longest that a session waits for its client. A client may ask for less, and gets less where another needs the cache.
pub const AWAY_MAX: Duration = Duration::from_secs(15);

/// A client that comes back sooner than that after it has come back is refused with `Busy`: each time it may have much sent again.
const RETURN_EVERY: Duration = Duration::from_secs(1);

/// Bytes of the answers that are kept for a client which may not have had them. Beyond it the oldest go.
const SENT_BYTES_MAX: usize = 8 << 20;

impl Session {
    /// The stream to the client, unless it is away.
    pub(crate) fn client_stream(&self) -> Option<StreamId> {
        self.away_since.is_none().then_some(self.client)
    }

    /// Until when it waits for its client.
    pub(crate) fn away_until(&self) -> Option<Instant> {
        Some(self.away_since? + self.grace.unwrap_or_default().min(AWAY_MAX))
    }

    /// Keeps an answer that is sent, for a client that may not get it.
    pub(crate) fn keep_answer(&mut self, answer: &AnswerFrame) {
        if self.grace.is_none() {
            return;
        }
        self.sent_bytes += answer.bytes();
        self.sent.push_back(answer.clone());
        // The client waits for no more than these.
        while self.sent.len() > STEPS_IN_FLIGHT_MAX || self.sent_bytes > SENT_BYTES_MAX {
            let Some(oldest) = self.sent.pop_front() else { break };
            self.sent_bytes -= oldest.bytes();
            self.answers_lost = oldest.sequence.saturating_add(1);
        }
    }

    /// The client has what came back for the steps before that one, and is sent the rest again. False where some of it was let go of.
    fn sends_again_from(&mut self, answered: u32) -> bool {
        self.credit = Default::default();
        self.told = self.told.max(answered);
        self.sent_bytes = 0;
        let epoch = self.epochs.next;
        for answer in std::mem::take(&mut self.sent).into_iter().rev().filter(|answer| answer.sequence >= answered) {
            self.answers.push_front(Answering { answer: Some(AnswerFrame { epoch, ..answer }), owed: false });
        }
        match self.open.stage.tail {
            true => answered >= self.answers_lost,
            false => self.journal.go_on(answered, 0),
        }
    }
}

impl Peer {
    /// A stream broke off with its connection. Where it is a client's, its session waits for it to come back.
    pub(crate) fn broken(&mut self, now: Now, stream: StreamId, failure: Failure) {
        let key = self.streams.get(&stream).and_then(|stream| match stream.role {
            Role::Client(key) => Some(key),
            _ => None,
        });
        let session = key.and_then(|key| self.sessions.get_mut(&key));
        // Whoever stands by is let go of by a client that loses it.
        let waits = |session: &&mut Session| {
            session.grace.is_some() && session.ready_sent && session.open.next != NextHop::Nobody
        };
        let Some(session) = session.filter(waits) else { return self.closed(now, stream, failure) };
        session.away_since = Some(now.instant);
        (session.row_wanted, session.row_to_come) = (None, None);
        self.streams.remove(&stream);
    }

    /// Tells a session's client, unless it is away.
    pub(crate) fn tell_client(&mut self, key: SessionKey, frame: Frame) {
        let client = self.sessions.get(&key).and_then(Session::client_stream);
        self.effects.extend(client.map(|stream| Effect::Send { stream, frame }));
    }

    /// A client takes up a session that it has here, on this stream. It may have noticed sooner than this peer that the old one is lost.
    pub(crate) fn client_returns(&mut self, now: Now, stream: StreamId, back: Return) {
        let Some(member) = self.forget_member(stream) else { return };
        if let Err(failure) = self.try_return(now, stream, member, back) {
            self.close_stream(stream, failure);
        }
    }

    fn try_return(&mut self, now: Now, stream: StreamId, member: Member, back: Return) -> Result<(), Failure> {
        let key = SessionKey { client: member.peer(), id: back.session };
        let kept = self.sessions.get(&key).filter(|session| session.grace.is_some());
        let Some(session) = kept else {
            return Err(Failure::new(FailureCode::UnknownSession, "no such session is kept here"));
        };
        let epochs = session.epochs;
        if (epochs.previous, epochs.next) != (back.previous, back.next) {
            let detail = format!("epochs {} and {}; the session is at {epochs:?}", back.previous, back.next);
            return Err(Failure::new(FailureCode::Epoch, detail));
        }
        let is_soon = session.returned_at.is_some_and(|at| now.instant.saturating_duration_since(at) < RETURN_EVERY);
        if is_soon || session.away_since.is_some() && self.present_of(key.client) >= self.config.sessions_per_client {
            return Err(Failure::new(FailureCode::Busy, "it comes back too often, or has other sessions here"));
        }
        // Its grant may have been taken back meanwhile, or be another.
        let here = Place { peer: self.config.id, now: now.utc };
        let authorized = self.gate.authorize(&member, session.open.clone(), here);
        let (open, member) = authorized.map_err(|error| Failure::new(FailureCode::NotAllowed, error))?.into_parts();
        let Some(session) = self.sessions.get_mut(&key) else { return Ok(()) };
        if session.open.next == NextHop::Client && !session.sends_again_from(back.answered) {
            let failure = Failure::new(FailureCode::Forgotten, "what the client has to be sent was let go of here");
            self.end_session(key, failure.clone());
            return Err(failure);
        }
        let old = std::mem::replace(&mut session.client, stream);
        (session.open, session.member) = (open, member);
        (session.away_since, session.returned_at) = (None, Some(now.instant));
        (session.row_wanted, session.row_to_come, session.moving) = (None, None, None);
        if session.open.previous == PreviousHop::Client {
            session.receipts = Default::default();
            session.forgive();
        }
        let (expected, lost) = (session.expected, session.lost.clone());
        let limit = client_limit(&session.open, session.width);
        // The client has let go of whoever stood by.
        self.end_standby(key);
        self.close_stream(old, Failure::new(FailureCode::Done, ""));
        self.become_role(stream, Role::Client(key));
        self.effects.push_back(Effect::Limit { stream, frame_bytes_max: limit });
        self.send(stream, Frame::Returned { expected });
        for lost in lost.into_iter().flatten() {
            self.send(stream, Frame::NeighbourLost(lost));
        }
        if self.draining {
            self.send(stream, Frame::Leaving);
        }
        self.report_ready(key);
        self.flush(key);
        Ok(())
    }

    /// Sessions of that stage whose clients are away.
    pub(crate) fn away_in(&self, slot: StageSlot) -> impl Iterator<Item = &Session> {
        self.sessions.values().filter(move |session| session.slot == slot && session.away_since.is_some())
    }

    /// Caches of that stage that whoever comes can have.
    pub(crate) fn room_in(&self, slot: StageSlot) -> u16 {
        let free = self.stages.get(usize::from(slot.0)).map_or(0, StageQueue::free_caches);
        free + self.away_in(slot).count() as u16
    }

    /// Somebody needs a cache of that stage: where none is free, whoever has been away longest has had it.
    pub(crate) fn make_room(&mut self, slot: StageSlot) {
        let has_room = self.stages.get(usize::from(slot.0)).is_some_and(|stage| stage.free_caches() > 0);
        let longest = self.away_in(slot).min_by_key(|session| session.away_since).map(|session| session.key);
        if let Some(key) = longest.filter(|_| !has_room) {
            self.end_session(key, Failure::new(FailureCode::Cancelled, "its client was away, and another came"));
        }
    }

    /// Sessions of a client that is not away from them.
    pub(crate) fn present_of(&self, client: PeerId) -> u16 {
        let first = SessionKey { client, id: SessionId::from_bytes([0; 16]) };
        let theirs = self.sessions.range(first..).take_while(|(key, _)| key.client == client);
        theirs.filter(|(_, session)| session.away_since.is_none()).count() as u16
    }
}

/// Bytes of the longest frame on the client's own stream: it carries steps only where the session's steps start.
pub(crate) fn client_limit(open: &OpenSession, width: u32) -> usize {
    let limit = if open.previous == PreviousHop::Client { step_frame_bytes_max(width) } else { CONTROL_BYTES_MAX };
    limit.max(CONTROL_BYTES_MAX)
}
