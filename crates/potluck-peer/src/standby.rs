//! A session's standby: what this peer passes on it also sends to another, which is ready to take the next one's place.
//!
//! The standby computes what the next peer computes, and keeps what it would pass on: its next peer is [`NextHop::Nobody`] until a
//! [`Reroute`](potluck_wire::Reroute) names one. The stream to it has an epoch, credit and a place in the journal of its own, and what
//! becomes of it changes nothing else.

use potluck_chain::{Credit, Level, STEPS_IN_FLIGHT_MAX};
use potluck_core::{PeerId, SessionKey};
use potluck_grant::Place;
use potluck_wire::{Failure, FailureCode, Frame, Mirror, NeighbourLost, NextHop, OpenSession};

use crate::{
    Effect, Now, Peer, StreamId,
    open::next_peer,
    session::{Answering, Session},
};

/// Bytes of the answers that a last peer keeps which stands by. Beyond it the oldest go.
const ANSWERS_BYTES_MAX: usize = 64 << 20;

/// Where the standby of a session's next peer is, and how far the stream to it has come.
#[derive(Debug)]
pub(crate) struct Standby {
    pub(crate) epoch: u32,
    pub(crate) who: PeerId,
    /// None while it is dialled.
    pub(crate) stream: Option<StreamId>,
    pub(crate) is_confirmed: bool,
    pub(crate) credit: Credit,
    pub(crate) level: Level,
}

impl Session {
    /// Whether that peer stands by, and has a place in the journal.
    pub(crate) fn is_stood_by_by(&self, next: &NextHop) -> bool {
        let NextHop::Peer { address, .. } = next else { return false };
        let standby = self.standby.as_ref().filter(|_| self.journal.is_mirrored());
        standby.is_some_and(|standby| standby.who == address.peer)
    }

    /// Whether that is the stream to the standby.
    pub(crate) fn is_standby(&self, stream: StreamId) -> bool {
        self.standby.as_ref().is_some_and(|standby| standby.stream == Some(stream))
    }

    /// Nobody is behind a standby: what it computed is kept, and counts as passed on. For how many steps credit is owed.
    pub(crate) fn keep_for_whoever_comes(&mut self) -> usize {
        let mut owed = self.journal.pass_over();
        let bytes = |answering: &Answering| answering.answer.as_ref().map_or(0, potluck_wire::AnswerFrame::bytes);
        let mut kept = 0;
        for answering in &mut self.answers {
            owed += usize::from(std::mem::take(&mut answering.owed));
            kept += bytes(answering);
        }
        // The client waits for no more than these.
        while self.answers.len() > STEPS_IN_FLIGHT_MAX || kept > ANSWERS_BYTES_MAX {
            let Some(oldest) = self.answers.pop_front() else { break };
            kept -= bytes(&oldest);
            self.answers_lost = oldest.answer.map_or(self.answers_lost, |answer| answer.sequence.saturating_add(1));
        }
        owed
    }

    /// A standby that takes its place answers the client from that step on. False where it has let go of one of these answers.
    #[must_use]
    pub(crate) fn answers_from(&mut self, answered: u32, epoch: u32) -> bool {
        self.told = answered;
        for answering in &mut self.answers {
            let answer = answering.answer.take().filter(|answer| answer.sequence >= answered);
            answering.answer = answer.map(|answer| potluck_wire::AnswerFrame { epoch, ..answer });
        }
        answered >= self.answers_lost
    }
}

impl Peer {
    /// The client names a standby of the next peer, or takes it back.
    pub(crate) fn mirror(&mut self, now: Now, key: SessionKey, mirror: Mirror) {
        if let Err(failure) = self.try_mirror(now, key, mirror) {
            self.end_session(key, failure);
        }
    }

    fn try_mirror(&mut self, now: Now, key: SessionKey, mirror: Mirror) -> Result<(), Failure> {
        let protocol = |detail: &str| Err(Failure::new(FailureCode::Protocol, detail));
        let Mirror { epoch, standby, answered, merges } = mirror;
        let Some(session) = self.sessions.get(&key) else { return Ok(()) };
        if session.grace.is_none() || next_peer(&session.open).is_none() {
            return protocol("this session has no next peer that another could stand by for");
        }
        if epoch <= session.newest_epoch() {
            return protocol("a standby comes with a newer epoch");
        }
        let (member, open) = (session.member.clone(), session.open.clone());
        self.end_standby(key);
        let Some(next) = standby else { return Ok(()) };
        let NextHop::Peer { address, .. } = &next else { return protocol("a standby is a peer") };
        let who = address.peer;
        if next_peer(&open) == Some(who) {
            return protocol("a peer does not stand by for itself");
        }
        // Whoever cannot stand by does not end what goes on without it.
        let here = Place { peer: self.config.id, now: now.utc };
        let authorized = self.gate.authorize(&member, OpenSession { next: next.clone(), ..open }, here);
        let allowed = match authorized {
            Ok(open) => self.check_neighbours(now, key.client, open.request()),
            Err(error) => Err(Failure::new(FailureCode::NotAllowed, error)),
        };
        let Some(session) = self.sessions.get_mut(&key) else { return Ok(()) };
        let is_whole = session.journal.mirror(if merges { answered } else { 0 });
        session.standby = Some(Standby {
            epoch,
            who,
            stream: None,
            is_confirmed: false,
            credit: Credit::default(),
            level: Level::default(),
        });
        match allowed {
            Err(failure) => self.standby_lost(key, failure),
            Ok(()) if !is_whole => {
                let detail = "what a standby would have to be sent was let go of";
                self.standby_lost(key, Failure::new(FailureCode::Forgotten, detail));
            }
            Ok(()) => self.dial(key, &next, Some(epoch)),
        }
        Ok(())
    }

    /// The standby was reached, or not.
    pub(crate) fn standby_dialed(&mut self, key: SessionKey, epoch: u32, result: Result<StreamId, Failure>) {
        let session = self.sessions.get_mut(&key);
        let standby = session.and_then(|session| session.standby.as_mut()).filter(|standby| standby.epoch == epoch);
        match (standby, result) {
            (Some(standby), Ok(stream)) => {
                standby.stream = Some(stream);
                let who = standby.who;
                self.hop_dialled(stream, who, potluck_wire::HopOpen { session: key, epoch });
            }
            (Some(_), Err(failure)) => self.standby_lost(key, failure),
            (None, Ok(stream)) => self.turn_away(stream),
            (None, Err(_)) => {}
        }
    }

    /// The standby is gone, or of no use: its client is told, and nothing else happens.
    pub(crate) fn standby_lost(&mut self, key: SessionKey, failure: Failure) {
        let Some(session) = self.sessions.get(&key) else { return };
        let Some(standby) = &session.standby else { return };
        let (epoch, who) = (standby.epoch, standby.who);
        self.end_standby(key);
        let failure = Failure { peer: Some(who), ..failure };
        self.tell_client(key, Frame::NeighbourLost(NeighbourLost { epoch, failure }));
    }

    pub(crate) fn end_standby(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.journal.end_mirror();
        let standby = session.standby.take();
        if let Some(Standby { epoch, stream, .. }) = standby {
            let dialling = self.dials.values_mut();
            let its_own = dialling.filter(|dialling| dialling.session == Some(key) && dialling.standby == Some(epoch));
            its_own.for_each(|dialling| dialling.session = None);
            if let Some(stream) = stream {
                self.close_stream(stream, Failure::new(FailureCode::Done, ""));
            }
        }
    }

    /// Sends the standby what it has credit for.
    pub(crate) fn flush_standby(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let Some(standby) = &mut session.standby else { return };
        if !session.journal.is_mirrored() {
            let detail = "it was so far behind that what it needs was let go of";
            return self.standby_lost(key, Failure::new(FailureCode::Forgotten, detail));
        }
        let Some(stream) = standby.stream.filter(|_| standby.is_confirmed) else { return };
        while session.journal.mirror_waits() && standby.credit.take() {
            let Some(outgoing) = session.journal.send_mirror(standby.epoch) else { break };
            self.effects.push_back(Effect::Send { stream, frame: outgoing.frame() });
        }
        if standby.level.look(&standby.credit, session.journal.mirror_waits()) {
            let epoch = standby.epoch;
            self.tell_client(key, Frame::CaughtUp { epoch });
        }
    }

    /// The standby takes the place of the next peer, if it is this one, with its stream or the dial that is under way. False: somebody has
    /// to be dialled.
    pub(crate) fn promote_standby(&mut self, key: SessionKey, next: &NextHop) -> bool {
        let Some(session) = self.sessions.get_mut(&key) else { return false };
        if !session.is_stood_by_by(next) {
            return false;
        }
        let (Some(standby), Some(owed)) = (session.standby.take(), session.journal.promote()) else { return false };
        (session.hop_out, session.credit) = (standby.stream, standby.credit);
        session.epochs.next = standby.epoch;
        (session.next_confirmed, session.next_expects) = (standby.is_confirmed, 0);
        let dialling = self.dials.values_mut();
        let its_own = dialling.filter(|it| it.session == Some(key) && it.standby == Some(standby.epoch));
        its_own.for_each(|dialling| dialling.standby = None);
        self.grant(key, owed);
        true
    }
}
