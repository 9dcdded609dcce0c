//! How a session opens: the client's word, the previous peer's stream, the next peer's confirmation.

use std::time::Instant;

use potluck_core::{CacheId, Defence, PeerId, SessionKey, StageCommand, StageError};
use potluck_grant::{Authorized, Member};
use potluck_wire::{
    CONTROL_BYTES_MAX, Codec, Failure, FailureCode, Frame, HopOpen, NextHop, OpenSession, PreviousHop,
    step_frame_bytes_max,
};

use crate::{
    DialId, Effect, Now, Peer, StageSlot, StreamId,
    away::client_limit,
    peer::{DIALS_MAX, DIALS_PER_CLIENT_MAX, PARKED_MAX, PARKED_PER_PEER_MAX, Role, Stream},
    repair::Side,
    session::{Epochs, Session},
};

impl Peer {
    pub(crate) fn open_session(&mut self, now: Now, stream: StreamId, open: Authorized<OpenSession>) {
        let (open, client) = open.into_parts();
        if let Err(failure) = self.try_open(now, stream, client, open) {
            self.close_stream(stream, failure);
        }
    }

    fn try_open(&mut self, now: Now, stream: StreamId, member: Member, open: OpenSession) -> Result<(), Failure> {
        let key = SessionKey { client: member.peer(), id: open.session };
        self.check_open(now, key, &open)?;
        let slot = self.stage_for(&open)?;
        if !self.sessions.contains_key(&key) {
            self.make_room(slot);
        }
        let prefix = self.prefix_cache(key, slot, &open)?;
        if self.sessions.contains_key(&key) {
            self.end_session(key, Failure::new(FailureCode::Epoch, "the client opened the session again"));
        }
        let serial = self.serial();
        let stage = &mut self.stages[usize::from(slot.0)];
        let caches = stage.shape().caches;
        let busy = || Failure::new(FailureCode::Busy, format!("all {caches} caches of this stage are in use"));
        let cache = stage.take_cache().ok_or_else(busy)?;
        let (width, vocabulary) = (stage.shape().width, stage.shape().vocabulary);
        let positions = open.positions;
        let command = match prefix {
            Some((from, positions)) => StageCommand::Fork { from, to: cache, positions },
            None => StageCommand::Open { cache, positions },
        };
        self.effects.push_back(Effect::Stage { stage: slot, command });
        self.become_role(stream, Role::Client(key));
        self.effects.push_back(Effect::Limit { stream, frame_bytes_max: client_limit(&open, width) });
        self.dial(key, &open.next, None);
        let next_confirmed = matches!(open.next, NextHop::Client | NextHop::Nobody);
        let session = Session {
            key,
            serial,
            stale: 0,
            slot,
            cache,
            width,
            vocabulary,
            client: stream,
            away_since: None,
            returned_at: None,
            lost: Default::default(),
            hop_in: None,
            hop_out: None,
            cache_open: false,
            next_confirmed,
            ready_sent: false,
            expected: 0,
            held: prefix.map_or(0, |(_, positions)| positions),
            solid: prefix.map_or(0, |(_, positions)| positions),
            receipts: Default::default(),
            credit: Default::default(),
            epochs: Epochs { previous: open.epoch, next: open.epoch },
            grace: None,
            early: Vec::new(),
            missing_since: None,
            next_expects: 0,
            replays: false,
            settled: 0,
            standby: None,
            journal: Default::default(),
            answers: Default::default(),
            sent: Default::default(),
            sent_bytes: 0,
            answers_lost: 0,
            told: 0,
            answered: None,
            row_wanted: None,
            row_to_come: None,
            moving: None,
            saved_at: None,
            in_flight: Default::default(),
            tally: Default::default(),
            last_step: now.instant,
            opened: now.instant,
            open,
            member,
        };
        self.sessions.insert(key, session);
        self.unpark(key);
        Ok(())
    }

    /// What can be said of an opening without touching anything.
    fn check_open(&self, now: Now, key: SessionKey, open: &OpenSession) -> Result<(), Failure> {
        let refuse = |code, detail: &str| Err(Failure::new(code, detail));
        if self.draining {
            return refuse(FailureCode::NotServed, "this peer is about to serve something else");
        }
        // Whoever opens it anew does not come back to it.
        let present = self.sessions.get(&key).filter(|session| session.away_since.is_none());
        let current = present.map(|session| session.epochs.previous.max(session.epochs.next));
        if let Some(current) = current.filter(|current| open.epoch <= *current && Defence::SessionEpoch.stands()) {
            let detail = format!("epoch {}; the session is at {current}", open.epoch);
            return Err(Failure::new(FailureCode::Epoch, detail));
        }
        // Those that it is away from make room.
        let held = self.present_of(key.client);
        if !self.sessions.contains_key(&key)
            && held >= self.config.sessions_per_client
            && Defence::ClientSessions.stands()
        {
            return Err(Failure::new(FailureCode::Busy, format!("this client has {held} sessions open here")));
        }
        if (open.codec_in == Codec::Tokens) != open.stage.head || open.codec_out == Codec::Tokens {
            return refuse(FailureCode::Protocol, "tokens enter at the head of the chain and nowhere else");
        }
        if open.stage.head && open.previous != PreviousHop::Client {
            return refuse(FailureCode::Protocol, "the head of the chain takes its steps from the client");
        }
        if open.stage.tail && !matches!(open.next, NextHop::Client | NextHop::Nobody) {
            return refuse(FailureCode::Protocol, "the tail of the chain answers the client");
        }
        if open.positions == 0 {
            return refuse(FailureCode::Protocol, "a session of no positions");
        }
        self.check_neighbours(now, key.client, open)
    }

    pub(crate) fn check_neighbours(&self, now: Now, client: PeerId, open: &OpenSession) -> Result<(), Failure> {
        let itself = || Err(Failure::new(FailureCode::Protocol, "a peer cannot be its own neighbour on a route"));
        if open.previous == PreviousHop::Peer(self.config.id) {
            return itself();
        }
        let NextHop::Peer { address, grant } = &open.next else { return Ok(()) };
        if address.peer == self.config.id {
            return itself();
        }
        let theirs = self.dials.values().filter(|dialling| dialling.client == client).count();
        if self.dials.len() >= DIALS_MAX || theirs >= DIALS_PER_CLIENT_MAX {
            return Err(Failure::new(FailureCode::Busy, "too many peers are being dialled"));
        }
        match self.gate.check_lender(grant, address.peer, now.utc) {
            Err(error) if Defence::NextPeer.stands() => {
                Err(Failure::new(FailureCode::NotAdmitted, error).of(address.peer))
            }
            _ => Ok(()),
        }
    }

    fn stage_for(&self, open: &OpenSession) -> Result<StageSlot, Failure> {
        let serving = self.stages.iter().enumerate().filter(|(_, stage)| stage.shape().spec == open.stage);
        let room = |slot: usize| self.room_in(StageSlot(slot as u16));
        let Some((slot, stage)) = serving.max_by_key(|(slot, stage)| (stage.is_ready(), room(*slot))) else {
            let detail = format!("layers {} of model {}", open.stage.layers, open.stage.model.short());
            return Err(Failure::new(FailureCode::NotServed, detail));
        };
        if !stage.is_ready() {
            return Err(Failure::new(FailureCode::EngineLost, "the engine is starting again; try in a moment"));
        }
        let context = stage.shape().context;
        if open.positions > context {
            let detail = format!("{} positions asked for; this stage holds {context} a session", open.positions);
            return Err(Failure::new(FailureCode::ContextFull, detail));
        }
        Ok(StageSlot(slot as u16))
    }

    /// The cache to start from, where the client asks for a prefix of another of its sessions.
    fn prefix_cache(
        &self,
        key: SessionKey,
        slot: StageSlot,
        open: &OpenSession,
    ) -> Result<Option<(CacheId, u32)>, Failure> {
        let Some(prefix) = open.prefix else { return Ok(None) };
        let from = SessionKey { id: prefix.session, ..key };
        if self.stages[usize::from(slot.0)].shape().exact {
            return Err(Failure::new(FailureCode::NotServed, "an exact stage shares no prefix"));
        }
        match self.sessions.get(&from) {
            Some(session)
                if session.slot == slot
                    && from != key
                    && (1..=session.held.min(open.positions)).contains(&prefix.positions)
                    && session.in_flight.is_empty()
                    && !session.replays =>
            {
                Ok(Some((session.cache, prefix.positions)))
            }
            _ => Err(Failure::new(FailureCode::UnknownSession, "the prefix's session does not hold these positions")),
        }
    }

    pub(crate) fn hop_opened(&mut self, stream: StreamId, since: Instant, hop: &Authorized<HopOpen>) {
        let (HopOpen { session: key, epoch }, from) = (*hop.request(), hop.by().peer());
        match self.sessions.get(&key).map(|session| session.epochs.previous) {
            Some(current) if epoch == current => self.attach(stream, from, key),
            Some(current) if epoch < current => {
                let detail = format!("epoch {epoch}; the session is at {current}");
                self.close_stream(stream, Failure::new(FailureCode::Epoch, detail));
            }
            // The client's word may be on its way: wait for it, within bounds.
            _ if (self.parked() >= PARKED_MAX || self.parked_of(from) >= PARKED_PER_PEER_MAX)
                && Defence::ParkedHops.stands() =>
            {
                self.close_stream(stream, Failure::new(FailureCode::Busy, "too many sessions are opening"));
            }
            _ => self.become_role(stream, Role::Parked { session: key, epoch, since }),
        }
    }

    /// The session has come: whoever waited for it is attached, or refused.
    pub(crate) fn unpark(&mut self, key: SessionKey) {
        let Some(current) = self.sessions.get(&key).map(|session| session.epochs.previous) else { return };
        let waiting = |(id, stream): (&StreamId, &Stream)| match stream.role {
            Role::Parked { session, epoch, .. } if session == key && epoch == current => Some((*id, stream.from)),
            _ => None,
        };
        for (stream, from) in self.streams.iter().filter_map(waiting).collect::<Vec<_>>() {
            self.attach(stream, from, key);
        }
    }

    /// Takes a hop stream as the session's, if it comes from the peer that the client named and is the first.
    fn attach(&mut self, stream: StreamId, from: PeerId, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let expected = session.open.previous == PreviousHop::Peer(from) && session.hop_in.is_none();
        if !expected && Defence::PreviousPeer.stands() {
            let detail = "this session takes its steps from somebody else";
            return self.close_stream(stream, Failure::new(FailureCode::UnknownSession, detail));
        }
        session.hop_in = Some(stream);
        let expected = session.expected;
        let frame_bytes_max = step_frame_bytes_max(session.width).max(CONTROL_BYTES_MAX);
        self.become_role(stream, Role::HopIn(key));
        self.effects.push_back(Effect::Limit { stream, frame_bytes_max });
        self.send(stream, if expected == 0 { Frame::HopReady } else { Frame::HopResumed { expected } });
        self.report_ready(key);
    }

    pub(crate) fn dialed(&mut self, now: Now, dial: DialId, result: Result<StreamId, Failure>) {
        let dialling = self.dials.remove(&dial);
        let (key, standby) = dialling.map_or((None, None), |dialling| (dialling.session, dialling.standby));
        if let (Some(key), Some(epoch)) = (key, standby) {
            return self.standby_dialed(key, epoch, result);
        }
        let session = key.and_then(|key| self.sessions.get_mut(&key));
        match (session, result) {
            (Some(session), Ok(stream)) => {
                session.hop_out = Some(stream);
                let hop = HopOpen { session: session.key, epoch: session.epochs.next };
                let from = next_peer(&session.open).unwrap_or(self.config.id);
                self.hop_dialled(stream, from, hop);
            }
            (Some(session), Err(failure)) => {
                let (key, peer) = (session.key, next_peer(&session.open));
                let failure = Failure { peer: failure.peer.or(peer), ..failure };
                self.neighbour_lost(now, key, Side::Next, (peer, failure));
            }
            // The session ended while its next peer was being dialled.
            (None, Ok(stream)) => self.turn_away(stream),
            (None, Err(_)) => {}
        }
    }

    /// A stream to the next peer, or to a standby, begins.
    pub(crate) fn hop_dialled(&mut self, stream: StreamId, to: PeerId, hop: HopOpen) {
        self.streams.insert(stream, Stream { from: to, role: Role::HopOut(hop.session) });
        self.send(stream, Frame::HopOpen(hop));
    }

    /// Nobody waits for it any more.
    pub(crate) fn turn_away(&mut self, stream: StreamId) {
        self.effects.push_back(Effect::Close { stream, failure: Failure::new(FailureCode::Done, "") });
    }

    /// The next peer, or the standby, takes the session's steps from this one on.
    pub(crate) fn next_confirmed(&mut self, stream: StreamId, key: SessionKey, expected: u32) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if let Some(standby) = session.standby.as_mut().filter(|standby| standby.stream == Some(stream)) {
            standby.is_confirmed = true;
            return self.flush_standby(key);
        }
        if std::mem::replace(&mut session.next_confirmed, true) {
            return;
        }
        session.next_expects = expected;
        // Next peers of the same opening began where this one did, which may be another session's positions.
        let is_another = expected > 0 || session.epochs.next > session.open.epoch;
        if session.grace.is_some() && is_another && !session.journal.resume(expected, session.settled) {
            let detail = "the steps that another peer would have to be sent were let go of here";
            return self.end_session(key, Failure::new(FailureCode::Forgotten, detail));
        }
        session.credit = Default::default();
        self.report_ready(key);
        self.flush(key);
    }

    pub(crate) fn cache_opened(&mut self, slot: StageSlot, cache: CacheId, result: Result<(), StageError>) {
        if self.stages.get_mut(usize::from(slot.0)).is_some_and(|stage| stage.settle(cache)) {
            return;
        }
        let holds = |session: &&mut Session| session.slot == slot && session.cache == cache && !session.cache_open;
        let Some(session) = self.sessions.values_mut().find(holds) else { return };
        let key = session.key;
        match result {
            Ok(()) => {
                session.cache_open = true;
                self.report_ready(key);
            }
            Err(error) => self.end_session(key, crate::steps::engine_failure(&error)),
        }
    }

    /// Tells the client, once for each opening and change of neighbours, that steps may come: cache open, next peer confirmed,
    /// previous peer here.
    pub(crate) fn report_ready(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let here = session.step_stream().is_some();
        let client = session.client_stream().filter(|_| !session.ready_sent);
        if let Some(client) = client.filter(|_| session.cache_open && session.next_confirmed && here) {
            session.ready_sent = true;
            session.missing_since = None;
            self.send(client, Frame::Ready);
        }
    }

    pub(crate) fn become_role(&mut self, stream: StreamId, role: Role) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.role = role;
        }
    }
}

/// The peer that a session's steps are passed to, if it is not the client.
pub(crate) fn next_peer(open: &OpenSession) -> Option<PeerId> {
    match &open.next {
        NextHop::Client | NextHop::Nobody => None,
        NextHop::Peer { address, .. } => Some(address.peer),
    }
}
