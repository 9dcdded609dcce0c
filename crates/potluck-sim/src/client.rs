//! A simulated client: the production session, and a user who knows the right answers.

use std::{collections::BTreeSet, time::Duration};

use potluck_chain::{ClientSession, Deadlines, Effect, Event, Hop, OwnStage, RemoteStage, SessionConfig};
use potluck_core::{CacheId, LayerRange, PeerId, SessionId, SessionKey, Stage as _, StageCommand, StateKey};
use potluck_grant::Root;
use potluck_wire::{Codec, Failure, FailureCode, Frame};

use crate::{
    Scenario,
    disk::Disk,
    peer::{CONTEXT, SimPeer, grant, key},
    toy::{self, ToyStage},
    user::{User, random_tokens},
    wire::{End, Node},
    world::{Due, World},
};

/// Attempts of a client to replace peers. A storm may outlast them.
const MENDS_MAX: u32 = 40;

/// Attempts of a client to go on with the same peers, each time that it loses some.
const ASKED_BACK_MAX: u32 = 3;

/// Attempts of a client to find standbys.
const STANDBYS_MAX: u32 = 20;

#[derive(Debug)]
pub(crate) struct SimClient {
    pub(crate) id: PeerId,
    pub(crate) grant: Vec<u8>,
    config: SessionConfig,
    pub(crate) session: Option<ClientSession>,
    /// Own stages at the ends of the route, by stage of the route.
    own: Vec<(usize, ToyStage)>,
    streams: Vec<Option<usize>>,
    /// Stages of the route whose peers are lost.
    lost: Vec<usize>,
    /// Stages of the route whose peers are about to go.
    leaving: BTreeSet<usize>,
    /// Stages that were another peer's before.
    pub(crate) replaced: BTreeSet<usize>,
    /// Attempts to replace peers, so far.
    mends: u32,
    /// Attempts to find standbys, so far.
    sought: u32,
    /// Attempts to go on with the same peers, since all were there.
    asked_back: u32,
    wake_at: Option<Duration>,
    /// It is gone, without a word.
    pub(crate) has_left: bool,
    pub(crate) user: User,
    /// What own stages keep of sessions that were put aside.
    disk: Disk,
    /// The session that was put aside, until there is another; and what that one is to begin with.
    parked: Option<Kept>,
    restores: Option<Kept>,
    /// How often the user will still open a session of the same name, at the same epoch, after one has ended.
    returns: u32,
    pub(crate) prompt: Vec<Vec<u32>>,
}

/// Where what was computed in a session is, for one that goes on in its place.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kept {
    /// Whoever computed it has it.
    As(SessionId, StateKey),
    /// It has to be computed again.
    Nowhere,
}

impl SimClient {
    pub(crate) fn new(
        index: usize,
        ranges: &[LayerRange],
        peers: &[SimPeer],
        scenario: &Scenario,
        root: &Root,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let id = key('c', index).peer_id();
        let own_ends = ranges.len() > 1 && rng.bool();
        let mut own = Vec::new();
        let hop = |(place, range): (usize, &LayerRange)| {
            let spec = toy::spec(*range, scenario.layers);
            if own_ends && (place == 0 || place + 1 == ranges.len()) && ranges.len() > 2 {
                own.push((place, ToyStage::new(spec, 1, CONTEXT)));
                return Hop::Own(OwnStage { spec, cache: CacheId(0) });
            }
            let holders: Vec<_> = peers.iter().filter(|peer| peer.range == *range).collect();
            let peer = holders[rng.usize(..holders.len())];
            Hop::Remote(RemoteStage { spec, address: peer.address(), grant: peer.grant.clone(), speed: None })
        };
        let route: Vec<_> = ranges.iter().enumerate().map(hop).collect();
        let config = SessionConfig {
            key: SessionKey { client: id, id: SessionId::from_bytes((index as u128).to_le_bytes()) },
            epoch: 0,
            positions: CONTEXT,
            width: toy::WIDTH,
            vocabulary: toy::VOCABULARY,
            codec: if rng.bool() { Codec::F16 } else { Codec::F32 },
            codec_otherwise: None,
            route,
            prefix: None,
            pad: false,
            exact: scenario.exact.unwrap_or_else(|| rng.bool()),
            deadlines: Deadlines {
                step: Duration::from_secs(30),
                grace: scenario.recovers.then_some(Duration::from_secs(20)),
                ..Deadlines::default()
            },
        };
        // Now and then more steps than a hop has credit for.
        let chunks = if rng.u8(..4) == 0 { 24 } else { 4 };
        let prompt = (0..rng.usize(1..=chunks)).map(|_| random_tokens(rng, 24)).collect();
        let user = User::new(rng.usize(1..=scenario.longest));
        let returns = rng.u32(..=scenario.returns);
        // Those to standbys come behind.
        let streams = vec![None; 2 * ranges.len()];
        let (lost, leaving, replaced) = Default::default();
        Self {
            id,
            grant: grant(root, id),
            config,
            session: None,
            own,
            streams,
            lost,
            leaving,
            replaced,
            mends: 0,
            sought: 0,
            asked_back: 0,
            wake_at: None,
            has_left: false,
            user,
            disk: Disk::default(),
            parked: None,
            restores: None,
            returns,
            prompt,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.session.as_ref().is_none_or(ClientSession::is_over)
    }
}

impl SimClient {
    /// Nothing of the old session is for the next one.
    fn begins_anew(&mut self) {
        self.streams.fill(None);
        self.lost.clear();
        self.leaving.clear();
        self.replaced.clear();
        (self.mends, self.sought, self.asked_back) = (0, 0, 0);
        self.own.iter_mut().for_each(|(_, stage)| stage.close(CacheId(0)));
    }
}

impl World {
    pub(crate) fn client_frame(&mut self, client: usize, stream: usize, frame: Frame) {
        self.report.returned += usize::from(matches!(frame, Frame::Returned { .. }));
        if let Some(hop) = self.hop_of(client, stream) {
            self.inform(client, Event::Frame { hop, frame });
        }
    }

    pub(crate) fn client_stream_ended(&mut self, client: usize, stream: usize, (failure, broke_off): (Failure, bool)) {
        let Some(hop) = self.hop_of(client, stream) else { return };
        self.inform(client, if broke_off { Event::Broken { hop, failure } } else { Event::Closed { hop, failure } });
    }

    /// A standby's stream may be a stage's by now, and one that was ended is nobody's.
    fn hop_of(&self, client: usize, stream: usize) -> Option<usize> {
        self.clients[client].streams.iter().position(|held| *held == Some(stream))
    }

    pub(crate) fn wake_client(&mut self, client: usize) {
        self.clients[client].wake_at = None;
        if self.clients[client].has_left {
            return;
        }
        match &self.clients[client].session {
            Some(session) if session.is_over() && self.clients[client].parked.is_some() => self.take_up(client),
            Some(session) if session.is_over() && self.clients[client].returns > 0 => self.come_back(client),
            Some(_) => return self.inform(client, Event::Timeout),
            None => {}
        }
        match ClientSession::new(self.instant(), self.clients[client].config.clone()) {
            Ok(session) => self.clients[client].session = Some(session),
            Err(error) => self.check(false, &format!("a scenario's route is sound: {error}")),
        }
        self.drain(client);
    }

    /// The user starts over, under the same name and epoch: whatever is still under way for the old session is not for
    /// the new one.
    fn come_back(&mut self, client: usize) {
        let client = &mut self.clients[client];
        client.returns -= 1;
        client.restores = None;
        client.begins_anew();
        client.user = User::new(client.user.wanted);
        for chunk in client.prompt.iter_mut().flatten() {
            *chunk = (*chunk + 1) % toy::VOCABULARY;
        }
    }

    /// The session is at rest, and every stage keeps what it holds: it ends, and another goes on in its place, some time later.
    pub(crate) fn park(&mut self, client: usize, key: StateKey) {
        let sim = &mut self.clients[client];
        if let Some(session) = &mut sim.session {
            // Whoever has taken a place has kept what it holds.
            sim.config.route = session.route().to_vec();
            session.close();
        }
        sim.parked = Some(Kept::As(sim.config.key.id, key));
        sim.user.rests();
        self.report.parked += 1;
        self.note(|| format!("client {client}: its session is put aside"));
    }

    /// The user goes on with what was put aside, in another session.
    fn take_up(&mut self, client: usize) {
        let named = self.rng.u64(..);
        let client = &mut self.clients[client];
        client.restores = client.parked.take();
        client.config.key.id = SessionId::from_bytes((u128::from(named) << 64).to_le_bytes());
        client.begins_anew();
    }

    fn inform(&mut self, client: usize, event: Event) {
        let now = self.instant();
        if let Some(session) = &mut self.clients[client].session {
            session.handle(now, event);
        }
        self.drain(client);
    }

    fn drain(&mut self, client: usize) {
        while let Some(effect) = self.clients[client].session.as_mut().and_then(ClientSession::poll) {
            self.carry_out(client, effect);
        }
        let is_over = self.clients[client].session.as_ref().is_some_and(ClientSession::is_over);
        if is_over && self.clients[client].parked.is_some() {
            let later = Duration::from_millis(self.rng.u64(200..=3_000));
            return self.after(later, Due::Wake(End::Client(client)));
        }
        if is_over && self.clients[client].returns > 0 {
            let soon = Duration::from_micros(self.rng.u64(..20_000));
            return self.after(soon, Due::Wake(End::Client(client)));
        }
        let at = self.clients[client].session.as_ref().and_then(ClientSession::poll_timeout);
        let Some(at) = at.map(|at| self.since_start(at)) else { return };
        if self.clients[client].wake_at.is_none_or(|set| at < set) {
            self.clients[client].wake_at = Some(at);
            self.at(at, Due::Wake(End::Client(client)));
        }
    }

    fn carry_out(&mut self, client: usize, effect: Effect) {
        let tells = matches!(
            effect,
            Effect::Ready | Effect::Lost { .. } | Effect::Leaving { .. } | Effect::Repaired | Effect::Failed(_)
        );
        if tells || matches!(effect, Effect::Promoted { .. } | Effect::StandsBy { .. } | Effect::StandbyLost { .. }) {
            self.note(|| format!("client {client}: {effect:?}"));
        }
        match effect {
            Effect::Send { hop, frame } => {
                let stream = self.client_stream(client, hop);
                self.send(stream, 0, &frame);
            }
            Effect::Limit { hop, frame_bytes_max } => {
                let stream = self.client_stream(client, hop);
                self.streams[stream].readers[0].set_limit(frame_bytes_max);
            }
            Effect::Close { hop, failure } => {
                let stream = self.client_stream(client, hop);
                if self.streams[stream].open[0] {
                    self.close(stream, 0, failure);
                }
            }
            Effect::Own { hop, command } => self.own_compute(client, hop, command),
            Effect::Reopen { hop } => self.reopen(client, hop),
            Effect::Ready => match self.clients[client].restores.take() {
                Some(Kept::As(session, key)) => self.restore(client, (session, key)),
                Some(Kept::Nowhere) => self.restored(client, 0),
                None => {
                    self.send_prompt(client);
                    self.seek_standbys(client);
                }
            },
            Effect::Saved { positions, .. } => self.saved(client, positions),
            Effect::Restored { positions } => self.restored(client, positions),
            Effect::Lost { hop, .. } => self.lost(client, hop),
            Effect::Leaving { hop } => {
                self.clients[client].leaving.insert(hop);
                self.seek_standbys(client);
            }
            Effect::Repaired => {
                self.report.repairs += 1;
                self.clients[client].asked_back = 0;
                self.seek_standbys(client);
            }
            Effect::Promoted { hop } => self.promoted(client, hop),
            Effect::StandsBy { .. } => self.report.standbys += 1,
            Effect::StandbyLost { .. } => self.seek_standbys(client),
            Effect::Answer(answer) => self.answered(client, &answer),
            Effect::Row { logits, .. } => self.row_came(client, &logits),
            Effect::Accounts(accounts) => self.accounts_came(client, &accounts),
            Effect::Failed(error) => self.session_failed(client, &error),
        }
    }

    fn client_stream(&mut self, client: usize, hop: usize) -> usize {
        if let Some(stream) = self.clients[client].streams[hop] {
            return stream;
        }
        let SimClient { session, config, .. } = &self.clients[client];
        let named = match session {
            Some(session) => session.peer_at(hop).map(|remote| remote.address.peer),
            None => config.route[hop].peer(),
        };
        let peer = named.and_then(|id| self.by_id.get(&id)).copied().unwrap_or_default();
        let stream = self.open_stream(End::Client(client), End::Peer(peer));
        self.clients[client].streams[hop] = Some(stream);
        if self.reaches(Node::Client(client), Node::Peer(peer)).is_none() {
            self.break_stream(stream, Duration::ZERO);
        }
        stream
    }

    /// The session failed before it was known what it begins with: nothing is lost, and another begins with nothing. False where that was
    /// not it.
    pub(crate) fn begins_with_nothing(&mut self, client: usize) -> bool {
        let sim = &mut self.clients[client];
        let restored = sim.user.resumes.is_some() && sim.restores.is_none();
        if restored {
            sim.parked = Some(Kept::Nowhere);
        }
        restored
    }

    /// The client is gone: its session is nobody's any more.
    pub(crate) fn leave(&mut self, client: usize) {
        let sim = &mut self.clients[client];
        let was_over = sim.session.as_ref().is_some_and(ClientSession::is_over) && sim.returns == 0;
        if std::mem::replace(&mut sim.has_left, true) || was_over {
            return;
        }
        // One that has ended, and whose user is about to return, is counted already.
        let is_counted = sim.session.take().is_some_and(|session| session.is_over());
        self.report.left += usize::from(!is_counted);
        for stream in 0..self.streams.len() {
            if self.streams[stream].ends[0].node() == Node::Client(client) {
                self.streams[stream].open[0] = false;
                self.break_stream(stream, Duration::ZERO);
            }
        }
    }

    /// A standby has the place: its stream is the stage's.
    fn promoted(&mut self, client: usize, hop: usize) {
        let old = self.clients[client].streams[hop].map(|stream| self.streams[stream].ends[1]);
        let is_there = matches!(old, Some(End::Peer(peer)) if self.peers[peer].alive && self.peers[peer].is_leaving);
        self.reopen(client, hop);
        let stages = self.clients[client].streams.len() / 2;
        let streams = &mut self.clients[client].streams;
        streams[hop] = streams[stages + hop].take();
        self.clients[client].replaced.insert(hop);
        self.report.promoted += 1;
        self.report.handed_over += usize::from(self.clients[client].leaving.remove(&hop) && is_there);
    }

    /// Whether a client has heard who is about to go: mostly.
    fn has_heard(&mut self) -> bool {
        !self.peers.iter().any(|peer| peer.is_leaving) || self.rng.u8(..4) > 0
    }

    /// Some time later the client looks for peers that stand by.
    fn seek_standbys(&mut self, client: usize) {
        let wants = self.scenario.standbys || !self.clients[client].leaving.is_empty();
        if wants && self.clients[client].sought < STANDBYS_MAX {
            self.clients[client].sought += 1;
            let soon = Duration::from_millis(self.rng.u64(1..=500));
            self.after(soon, Due::StandBy(client));
        }
    }

    /// A peer that serves the same layers stands by for each stage that has none, or for those whose peers are about to go.
    pub(crate) fn stand_by(&mut self, client: usize) {
        let heard = self.has_heard();
        let Some(session) = self.clients[client].session.as_ref().filter(|session| !session.is_over()) else { return };
        let stages = session.route().len();
        let mut known: Vec<PeerId> =
            (0..2 * stages).filter_map(|hop| session.peer_at(hop)).map(|remote| remote.address.peer).collect();
        let mut found = Vec::new();
        let wanted = |hop: &usize| self.scenario.standbys || self.clients[client].leaving.contains(hop);
        for hop in (0..stages).filter(|hop| wanted(hop) && session.peer_at(stages + hop).is_none()) {
            let Some(spec) = session.peer_at(hop).map(|remote| remote.spec) else { continue };
            let may =
                |peer: &&SimPeer| peer.range == spec.layers && peer.is_offered(heard) && !known.contains(&peer.id);
            let Some(peer) = self.peers.iter().find(may) else { continue };
            known.push(peer.id);
            found.push((hop, RemoteStage { spec, address: peer.address(), grant: peer.grant.clone(), speed: None }));
        }
        let now = self.instant();
        for (hop, stage) in found {
            if let Some(session) = &mut self.clients[client].session {
                // While a place is empty nobody can.
                let _ = session.stand_by(now, hop, stage);
            }
        }
        self.drain(client);
    }

    /// The old stream is done with: what follows goes to whoever has the place now.
    fn reopen(&mut self, client: usize, hop: usize) {
        if let Some(stream) = self.clients[client].streams[hop].take()
            && self.streams[stream].open[0]
        {
            self.close(stream, 0, Failure::new(FailureCode::Done, ""));
        }
    }

    /// The client learns that it has lost a peer, and soon looks for another.
    fn lost(&mut self, client: usize, hop: usize) {
        self.report.losses += 1;
        self.clients[client].leaving.remove(&hop);
        let lost = &mut self.clients[client].lost;
        if !lost.contains(&hop) {
            lost.push(hop);
        }
        if lost.len() == 1 {
            let planning = Duration::from_millis(self.rng.u64(1..=800));
            self.after(planning, Due::Mend(client));
        }
    }

    /// Where the connections alone may be lost, the same peers are asked to go on, mostly.
    fn asks_back(&mut self, client: usize) -> bool {
        let (now, may) = (self.instant(), self.rng.u8(..4) > 0);
        let SimClient { session: Some(session), lost, asked_back, .. } = &mut self.clients[client] else {
            return false;
        };
        if !may || *asked_back >= ASKED_BACK_MAX || session.broken_off().is_none() {
            return false;
        }
        *asked_back += 1;
        lost.clear();
        let asked = session.come_back(now);
        self.note(|| format!("client {client}: the same peers are asked to go on"));
        self.check(asked.is_ok(), &format!("peers are come back to: {asked:?}"));
        true
    }

    /// Whoever serves the same layers takes the place of a lost peer: preferably another.
    pub(crate) fn mend(&mut self, client: usize) {
        if self.asks_back(client) {
            return self.drain(client);
        }
        let (now, heard) = (self.instant(), self.has_heard());
        let lost = std::mem::take(&mut self.clients[client].lost);
        let Some(session) = self.clients[client].session.as_ref().filter(|session| !session.is_over()) else { return };
        let route: Vec<Hop> = session.route().to_vec();
        let substitute = |hop: usize| {
            let spec = route[hop].spec();
            let elsewhere =
                |id: PeerId| route.iter().enumerate().any(|(at, hop_)| at != hop && hop_.peer() == Some(id));
            let serves = |peer: &&SimPeer| peer.range == spec.layers && peer.is_offered(heard) && !elsewhere(peer.id);
            let serving = self.peers.iter().filter(serves);
            let peer = serving.min_by_key(|peer| route[hop].peer() == Some(peer.id))?;
            let stage = RemoteStage { spec, address: peer.address(), grant: peer.grant.clone(), speed: None };
            Some((hop, stage))
        };
        let others: Option<Vec<_>> = lost.iter().map(|hop| substitute(*hop)).collect();
        let SimClient { session, mends, .. } = &mut self.clients[client];
        *mends += 1;
        match (others, session) {
            // Somebody may be back in a moment. The session waits for as long as it has grace.
            (None, Some(_)) if *mends < MENDS_MAX => {
                self.clients[client].lost = lost;
                let moment = Duration::from_millis(self.rng.u64(500..=1_500));
                return self.after(moment, Due::Mend(client));
            }
            (Some(_), Some(session)) if *mends >= MENDS_MAX => {
                session.close();
                self.failed(client, "peer_lost");
            }
            (Some(others), Some(session)) => {
                let names = others.iter().map(|(hop, other)| (*hop, other.address.peer));
                let taken: Vec<_> = names.filter_map(|(hop, peer)| Some((hop, *self.by_id.get(&peer)?))).collect();
                let replaced = session.replace(now, others);
                self.note(|| format!("client {client}: stages and the peers that take them: {taken:?}"));
                self.check(replaced.is_ok(), &format!("other peers are taken: {replaced:?}"));
                self.clients[client].replaced.extend(lost);
            }
            (_, Some(session)) => {
                session.close();
                self.failed(client, "peer_lost");
            }
            (_, None) => {}
        }
        self.drain(client);
    }

    fn own_compute(&mut self, client: usize, hop: usize, command: StageCommand) {
        let moves = matches!(command, StageCommand::Save { .. } | StageCommand::Restore { .. });
        let fails = moves && self.disk_fails();
        let SimClient { own, disk, .. } = &mut self.clients[client];
        let Some((_, stage)) = own.iter_mut().find(|(place, _)| *place == hop) else { return };
        let moved = disk.carry_out(stage, &command, fails);
        let Some(reply) = moved.or_else(|| command.apply(stage)) else { return };
        let now = self.instant();
        if let Some(session) = &mut self.clients[client].session {
            session.handle(now, Event::Own { hop, reply });
        }
    }
}
