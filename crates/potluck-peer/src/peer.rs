//! The machine: what it holds, how an event reaches its place, how a session ends.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use potluck_core::{PeerId, SessionKey, StageCommand, StageReply, StageShape, StageSpec};
use potluck_grant::{Authorized, Gate, Member, Meter, Place, Request};
use potluck_wire::{Failure, FailureCode, Frame, NextHop, PreviousHop};

use crate::{
    DialId, Effect, Event, Now, PeerConfig, StageSlot, StreamId,
    queue::{Queued, StageQueue},
    repair::{GRACE_MAX, Side},
    session::Session,
};

/// Hop streams that wait for their session's client, over all peers. The next one is refused with `Busy`.
pub(crate) const PARKED_MAX: usize = 256;

/// Hop streams of one peer that wait for their session's client. The next one is refused with `Busy`.
pub(crate) const PARKED_PER_PEER_MAX: usize = 32;

/// Dials under way, those included whose session has ended since. A session that needs another is refused with `Busy`.
pub(crate) const DIALS_MAX: usize = 256;

/// Dials under way for one client. A session that needs another is refused with `Busy`.
pub(crate) const DIALS_PER_CLIENT_MAX: usize = 32;

/// Bytes of steps that wait for one stage, over all sessions. Beyond it the session whose step came ends with `OverBudget`.
pub(crate) const WAITING_BYTES_MAX: usize = 512 << 20;

/// How long a session may be at rest in a stage that is drained. A gateway's slots are open for as long as it runs: without it,
/// they would hold a stage for ever.
pub const DRAIN_REST: Duration = Duration::from_secs(20);

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Opened by a member; its first frame has not come.
    Fresh { since: Instant },
    /// A client's, for this session.
    Client(SessionKey),
    /// From a previous peer whose client has not opened the session here yet.
    Parked { session: SessionKey, epoch: u32, since: Instant },
    /// From the previous peer.
    HopIn(SessionKey),
    /// To the next peer.
    HopOut(SessionKey),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) from: PeerId,
    pub(crate) role: Role,
}

/// For whom a dial is under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialling {
    pub(crate) client: PeerId,
    /// None where the session has ended since.
    pub(crate) session: Option<SessionKey>,
    /// The epoch of the stream to a standby; none: it is to the next peer.
    pub(crate) standby: Option<u32>,
}

/// A whole peer. See the crate's documentation.
#[derive(Debug)]
pub struct Peer {
    pub(crate) config: PeerConfig,
    pub(crate) gate: Gate,
    pub(crate) stages: Vec<StageQueue>,
    pub(crate) streams: BTreeMap<StreamId, Stream>,
    /// Who opened a stream, until its first frame says what for.
    members: BTreeMap<StreamId, Member>,
    pub(crate) sessions: BTreeMap<SessionKey, Session>,
    pub(crate) dials: BTreeMap<DialId, Dialling>,
    pub(crate) effects: VecDeque<Effect>,
    next_dial: u64,
    next_serial: u64,
    stale_frames: u64,
    failed_sessions: u64,
    pub(crate) draining: bool,
    share: u8,
    pub(crate) meter: Meter,
    pub(crate) stopwatch: Option<fn() -> Instant>,
}

/// How much of a peer is in use: what tests and metrics look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerStatus {
    /// Streams open.
    pub streams: usize,
    /// Hop streams that wait for their session's client.
    pub parked: usize,
    /// Sessions open.
    pub sessions: usize,
    /// Dials under way.
    pub dials: usize,
    /// Caches that no session holds, over all stages.
    pub free_caches: u16,
    /// Sessions whose clients are away, over all stages: whoever comes can have their caches.
    pub away: u16,
    /// Steps that wait for a stage, over all sessions.
    pub steps_waiting: usize,
    /// Frames dropped as twins or as late, so far.
    pub stale_frames: u64,
    /// Sessions that ended other than by their client's will, so far.
    pub failed_sessions: u64,
}

impl Peer {
    /// A peer without stages, which admits whom `gate` admits.
    pub fn new(config: PeerConfig, gate: Gate) -> Self {
        Self {
            config,
            gate,
            stages: Vec::new(),
            streams: BTreeMap::new(),
            members: BTreeMap::new(),
            sessions: BTreeMap::new(),
            dials: BTreeMap::new(),
            effects: VecDeque::new(),
            next_dial: 0,
            next_serial: 0,
            stale_frames: 0,
            failed_sessions: 0,
            draining: false,
            share: 100,
            meter: Meter::default(),
            stopwatch: None,
        }
    }

    /// What counts how much grants allow: one that goes on over restarts, where it is to.
    pub fn set_meter(&mut self, meter: Meter) {
        self.meter = meter;
    }

    /// What reads the time within an event, for sessions' accounts. Without it, as in the simulator, coding takes no time.
    pub fn set_stopwatch(&mut self, read: fn() -> Instant) {
        self.stopwatch = Some(read);
    }

    /// Takes no new sessions from now on; those that are open go on to their end, or to other peers: their clients are told. Drain
    /// [`poll`](Self::poll) afterwards.
    pub fn drain(&mut self) {
        if !std::mem::replace(&mut self.draining, true) {
            let kept = self.sessions.values().filter(|session| session.grace.is_some());
            let told = kept.filter_map(Session::client_stream);
            self.effects.extend(told.map(|stream| Effect::Send { stream, frame: Frame::Leaving }));
        }
    }

    /// Adds a stage that is loaded and ready. Its slot is where the driver sends [`Effect::Stage`].
    pub fn add_stage(&mut self, shape: StageShape) -> StageSlot {
        let mut stage = StageQueue::new(shape);
        stage.limit_share(self.share);
        self.stages.push(stage);
        StageSlot((self.stages.len() - 1) as u16)
    }

    /// Each stage, also those that are added later, runs for so many per cent of the time at most, 1 to 100, and rests after each batch
    /// until that holds.
    pub fn limit_share(&mut self, per_cent: u8) {
        self.share = per_cent;
        self.stages.iter_mut().for_each(|stage| stage.limit_share(per_cent));
    }

    /// Which part of which model a stage is.
    pub fn stage_spec(&self, slot: StageSlot) -> Option<StageSpec> {
        self.stages.get(usize::from(slot.0)).map(|stage| stage.shape().spec)
    }

    /// How much of the peer is in use.
    pub fn status(&self) -> PeerStatus {
        PeerStatus {
            streams: self.streams.len(),
            parked: self.parked(),
            sessions: self.sessions.len(),
            dials: self.dials.len(),
            free_caches: self.stages.iter().map(StageQueue::free_caches).sum(),
            away: self.sessions.values().filter(|session| session.away_since.is_some()).count() as u16,
            steps_waiting: self.stages.iter().map(StageQueue::waiting).sum(),
            stale_frames: self.stale_frames,
            failed_sessions: self.failed_sessions,
        }
    }

    /// Whose sessions are open, and how many each has.
    pub fn clients(&self) -> BTreeMap<PeerId, usize> {
        let mut clients = BTreeMap::new();
        self.sessions.keys().for_each(|key| *clients.entry(key.client).or_default() += 1);
        clients
    }

    /// Sessions that were opened here, so far.
    pub fn sessions_opened(&self) -> u64 {
        self.next_serial
    }

    /// Something happened. Drain [`poll`](Self::poll) afterwards.
    pub fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::StreamOpened { stream, from } => {
                let role = Role::Fresh { since: now.instant };
                self.streams.insert(stream, Stream { from: from.peer(), role });
                self.members.insert(stream, from);
            }
            Event::Frame { stream, frame } => self.frame(now, stream, frame),
            Event::Closed { stream, failure } => self.closed(now, stream, failure),
            Event::Broken { stream, failure } => self.broken(now, stream, failure),
            Event::Dialed { dial, result } => self.dialed(now, dial, result),
            Event::Stage { stage, reply } => self.stage_replied(now, stage, reply),
            Event::Timeout => self.expire(now.instant),
        }
        self.run_stages(now.instant);
    }

    /// What is to be done now; `None` until the next event.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call `handle` with [`Event::Timeout`]; `None`: only events move the machine.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let streams = self.streams.values().filter_map(|stream| self.stream_deadline(stream.role));
        let held = self.stages.iter().filter_map(StageQueue::held_until);
        streams.chain(self.sessions.values().map(|session| self.session_deadline(session))).chain(held).min()
    }

    fn frame(&mut self, now: Now, stream: StreamId, frame: Frame) {
        let Some(Stream { role, .. }) = self.streams.get(&stream).copied() else { return };
        match (role, frame) {
            (Role::Fresh { .. }, Frame::Open(open)) => {
                if let Some(open) = self.authorized(now, stream, *open) {
                    self.open_session(now, stream, open);
                }
            }
            (Role::Fresh { since }, Frame::HopOpen(hop)) => {
                if let Some(hop) = self.authorized(now, stream, hop) {
                    self.hop_opened(stream, since, &hop);
                }
            }
            (Role::Fresh { .. }, Frame::Return(back)) => self.client_returns(now, stream, back),
            (Role::Client(key) | Role::HopIn(key), Frame::Step(step)) => self.step_came(now, stream, key, &step, None),
            (Role::Client(key) | Role::HopIn(key), Frame::Replay { due, step, .. }) => {
                self.step_came(now, stream, key, &step, Some(due))
            }
            (Role::Client(key) | Role::HopOut(key), Frame::Credit { frames }) => self.credited(stream, key, frames),
            (Role::Client(key), Frame::RowRequest { sequence, row }) => self.row_requested(key, sequence, row),
            (Role::Client(key), Frame::AskAccount) => self.account_asked(stream, key),
            (Role::Client(key), Frame::Keep(keep)) => self.keep(now, key, keep),
            (Role::Client(key), Frame::Reroute(reroute)) => self.reroute(now, key, *reroute),
            (Role::Client(key), Frame::Mirror(mirror)) => self.mirror(now, key, *mirror),
            (Role::Client(key), Frame::Save(save)) => self.save(now, key, &save),
            (Role::Client(key), Frame::Restore(restore)) => self.restore(key, &restore),
            (Role::HopOut(key), Frame::HopReady) => self.next_confirmed(stream, key, 0),
            (Role::HopOut(key), Frame::HopResumed { expected }) => self.next_confirmed(stream, key, expected),
            (_, Frame::Failed(failure)) => {
                self.effects.push_back(Effect::Close { stream, failure: Failure::new(FailureCode::Done, "") });
                self.closed(now, stream, failure);
            }
            (_, frame) => {
                let detail = format!("a {} frame does not belong on this stream", frame.kind());
                self.misbehaved(stream, Failure::new(FailureCode::Protocol, detail));
            }
        }
    }

    /// What a stream's first frame asks for, if its sender may. Otherwise the stream ends.
    fn authorized<R: Request>(&mut self, now: Now, stream: StreamId, request: R) -> Option<Authorized<R>> {
        let by = self.members.remove(&stream)?;
        let here = Place { peer: self.config.id, now: now.utc };
        let answer = self.gate.authorize(&by, request, here);
        answer.map_err(|error| self.close_stream(stream, Failure::new(FailureCode::NotAllowed, error))).ok()
    }

    /// A stream's sender broke the protocol: the stream ends, and with it the session that relied on it.
    pub(crate) fn misbehaved(&mut self, stream: StreamId, failure: Failure) {
        let Some(Stream { from, role }) = self.streams.get(&stream).copied() else { return };
        match role {
            Role::Client(key) => self.end_session(key, failure),
            // Whoever stands by is not needed.
            Role::HopOut(key) if self.is_standby(key, stream) => self.standby_lost(key, failure),
            Role::HopIn(key) | Role::HopOut(key) => self.end_session(key, failure.of(from)),
            Role::Fresh { .. } | Role::Parked { .. } => self.close_stream(stream, failure),
        }
    }

    pub(crate) fn closed(&mut self, now: Now, stream: StreamId, failure: Failure) {
        let Some(Stream { from, role }) = self.streams.remove(&stream) else { return };
        self.members.remove(&stream);
        match role {
            Role::Fresh { .. } | Role::Parked { .. } => {}
            Role::Client(key) => self.end_session(key, Failure::new(FailureCode::Cancelled, "the client left")),
            Role::HopIn(key) if failure.code == FailureCode::Done => {
                let failure = Failure::new(FailureCode::Cancelled, "the previous peer finished").of(from);
                self.neighbour_lost(now, key, Side::Previous, (Some(from), failure));
            }
            Role::HopOut(key) if self.is_standby(key, stream) => self.standby_lost(key, failure),
            Role::HopIn(key) | Role::HopOut(key) => {
                // What a neighbour says of itself is passed on; what it says of another keeps that other's name.
                let peer = failure.peer.or(Some(from));
                let code = if failure.code == FailureCode::Done { FailureCode::PeerLost } else { failure.code };
                let side = if role == Role::HopIn(key) { Side::Previous } else { Side::Next };
                self.neighbour_lost(now, key, side, (Some(from), Failure { code, peer, ..failure }));
            }
        }
    }

    /// Ends a session: its cache is freed, and each of its streams is told why.
    pub(crate) fn end_session(&mut self, key: SessionKey, failure: Failure) {
        let Some(session) = self.sessions.remove(&key) else { return };
        if !matches!(failure.code, FailureCode::Done | FailureCode::Cancelled) {
            self.failed_sessions += 1;
        }
        for dialling in self.dials.values_mut().filter(|dialling| dialling.session == Some(key)) {
            dialling.session = None;
        }
        let standby = session.standby.as_ref().and_then(|standby| standby.stream);
        for stream in [Some(session.client), session.hop_in, session.hop_out, standby].into_iter().flatten() {
            self.close_stream(stream, failure.clone());
        }
        if let Some(stage) = self.stages.get_mut(usize::from(session.slot.0)) {
            stage.forget(key, session.cache, session.cache_open);
            let command = StageCommand::Close { cache: session.cache };
            self.effects.push_back(Effect::Stage { stage: session.slot, command });
        }
    }

    /// Who opened a stream whose first frame has come.
    pub(crate) fn forget_member(&mut self, stream: StreamId) -> Option<Member> {
        self.members.remove(&stream)
    }

    pub(crate) fn close_stream(&mut self, stream: StreamId, failure: Failure) {
        self.members.remove(&stream);
        if self.streams.remove(&stream).is_some() {
            self.effects.push_back(Effect::Close { stream, failure });
        }
    }

    pub(crate) fn send(&mut self, stream: StreamId, frame: Frame) {
        self.effects.push_back(Effect::Send { stream, frame });
    }

    fn is_standby(&self, key: SessionKey, stream: StreamId) -> bool {
        self.sessions.get(&key).is_some_and(|session| session.is_standby(stream))
    }

    /// `standby`: the epoch of the stream to one; none: it is to the next peer.
    pub(crate) fn dial(&mut self, key: SessionKey, next: &NextHop, standby: Option<u32>) {
        let NextHop::Peer { address, .. } = next else { return };
        let dial = DialId(self.next_dial);
        self.next_dial += 1;
        self.dials.insert(dial, Dialling { client: key.client, session: Some(key), standby });
        self.effects.push_back(Effect::Dial { dial, to: address.clone() });
    }

    pub(crate) fn parked(&self) -> usize {
        self.streams.values().filter(|stream| matches!(stream.role, Role::Parked { .. })).count()
    }

    pub(crate) fn parked_of(&self, peer: PeerId) -> usize {
        let theirs = self.streams.values().filter(|stream| stream.from == peer);
        theirs.filter(|stream| matches!(stream.role, Role::Parked { .. })).count()
    }

    pub(crate) fn enqueue(&mut self, slot: StageSlot, key: SessionKey, queued: Queued) {
        let Some(stage) = self.stages.get_mut(usize::from(slot.0)) else { return };
        stage.push(key, queued);
        if stage.waiting_bytes() > WAITING_BYTES_MAX
            && let Some(heaviest) = stage.heaviest()
        {
            // Whoever's step was the last need not be whose steps fill the room.
            let detail = format!("{} bytes of steps wait for this stage, most of them yours", stage.waiting_bytes());
            self.end_session(heaviest, Failure::new(FailureCode::OverBudget, detail));
        }
    }

    /// A number that no session has had.
    pub(crate) fn serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }

    pub(crate) fn count_stale(&mut self) {
        self.stale_frames += 1;
    }

    fn run_stages(&mut self, event: Instant) {
        self.pass_skipped();
        let now = self.watch(event).now();
        for (slot, stage) in self.stages.iter_mut().enumerate() {
            if let Some((batch, steps)) = stage.next_batch(now) {
                let command = StageCommand::Forward { batch, steps };
                self.effects.push_back(Effect::Stage { stage: StageSlot(slot as u16), command });
            }
        }
    }

    fn stage_replied(&mut self, now: Now, slot: StageSlot, reply: StageReply) {
        match reply {
            StageReply::Opened { cache, result } => self.cache_opened(slot, cache, result),
            StageReply::Forwarded { batch, results, compute_us } => {
                self.forwarded(now, slot, (batch, Duration::from_micros(compute_us)), results);
            }
            StageReply::Row { cache, row, result } => self.row_came(slot, cache, row, result),
            StageReply::Saved { cache, result } => self.saved(slot, cache, &result),
            StageReply::Restored { cache, result } => self.restored(slot, cache, &result),
            // A stage's driver asks for them itself.
            StageReply::Exported { .. } | StageReply::Imported { .. } => {}
            StageReply::Lost { reason } => self.stage_lost(slot, &reason),
            StageReply::Ready(shape) => {
                if let Some(stage) = self.stages.get_mut(usize::from(slot.0)) {
                    stage.revive(shape);
                }
            }
        }
    }

    fn stage_lost(&mut self, slot: StageSlot, reason: &str) {
        let held = self.sessions.values().filter(|session| session.slot == slot);
        for key in held.map(|session| session.key).collect::<Vec<_>>() {
            self.end_session(key, Failure::new(FailureCode::EngineLost, reason));
        }
        // Afterwards: what the engine owed to these sessions, it owes no more.
        if let Some(stage) = self.stages.get_mut(usize::from(slot.0)) {
            stage.lose();
        }
    }

    fn stream_deadline(&self, role: Role) -> Option<Instant> {
        match role {
            Role::Fresh { since } | Role::Parked { since, .. } => Some(since + self.config.open_timeout),
            Role::Client(_) | Role::HopIn(_) | Role::HopOut(_) => None,
        }
    }

    fn session_deadline(&self, session: &Session) -> Instant {
        let deadline = self.present_deadline(session);
        session.away_until().map_or(deadline, |until| until.min(deadline))
    }

    /// Until when it waits for others than its client.
    fn present_deadline(&self, session: &Session) -> Instant {
        if let (Some(since), Some(grace)) = (session.missing_since, session.grace) {
            // Once it is told of another, it waits for that one as long as for the first.
            // However often that is, it ends.
            let open = self.config.open_timeout;
            if session.ready_sent { since + grace } else { (session.opened + open).min(since + GRACE_MAX + open) }
        } else if session.ready_sent {
            let idle = Duration::from_millis(session.open.idle_ms.into()).min(self.config.idle_max);
            // Who is at rest while a stage is drained opens its session elsewhere when it goes on.
            let rests = self.draining && session.in_flight.is_empty();
            session.last_step + if rests { idle.min(DRAIN_REST) } else { idle }
        } else {
            session.opened + self.config.open_timeout
        }
    }

    fn expire(&mut self, now: Instant) {
        let late = |(id, stream): (&StreamId, &Stream)| {
            self.stream_deadline(stream.role).filter(|deadline| *deadline <= now).map(|_| *id)
        };
        for stream in self.streams.iter().filter_map(late).collect::<Vec<_>>() {
            self.close_stream(stream, Failure::new(FailureCode::Deadline, "nothing came on this stream in time"));
        }
        let late = self.sessions.values().filter(|session| self.session_deadline(session) <= now);
        for key in late.map(|session| session.key).collect::<Vec<_>>() {
            let failure = self.lateness(key);
            self.end_session(key, failure);
        }
    }

    /// What a session that ran out of time was waiting for.
    fn lateness(&self, key: SessionKey) -> Failure {
        let Some(session) = self.sessions.get(&key) else { return Failure::new(FailureCode::Deadline, "") };
        match (&session.open.next, session.open.previous) {
            _ if session.away_since.is_some() => Failure::new(FailureCode::Cancelled, "the client did not come back"),
            _ if session.ready_sent && session.missing_since.is_some() => {
                Failure::new(FailureCode::PeerLost, "a neighbour was lost, and no other took its place")
            }
            _ if session.ready_sent && self.draining => {
                Failure::new(FailureCode::NotServed, "this peer is about to serve something else")
            }
            _ if session.ready_sent => Failure::new(FailureCode::Idle, "no step came"),
            _ if !session.cache_open => Failure::new(FailureCode::Deadline, "the engine did not open a cache"),
            (NextHop::Peer { address, .. }, _) if !session.next_confirmed => {
                Failure::new(FailureCode::PeerLost, "the next peer did not confirm the session").of(address.peer)
            }
            (_, PreviousHop::Peer(peer)) => {
                Failure::new(FailureCode::PeerLost, "the previous peer did not come").of(peer)
            }
            _ => Failure::new(FailureCode::Deadline, "the session was not ready in time"),
        }
    }
}
