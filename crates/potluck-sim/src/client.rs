//! A simulated client: the production session, and a user who knows the right answers.

use std::{collections::BTreeSet, time::Duration};

use potluck_chain::{ClientSession, Deadlines, Effect, Event, Hop, OwnStage, RemoteStage, SessionConfig};
use potluck_core::{CacheId, LayerRange, PeerId, SecretKey, SessionId, SessionKey, Stage as _, StageCommand};
use potluck_grant::Root;
use potluck_wire::{Codec, Failure, FailureCode, Frame};

use crate::{
    Scenario,
    peer::{CONTEXT, SimPeer, grant},
    toy::{self, ToyStage},
    user::{User, random_tokens},
    wire::End,
    world::{Due, World},
};

/// Attempts of a client to replace peers. A storm may outlast them.
const MENDS_MAX: u32 = 20;

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
    /// Stages that were another peer's before.
    pub(crate) replaced: BTreeSet<usize>,
    /// Attempts to replace peers, so far.
    mends: u32,
    wake_at: Option<Duration>,
    pub(crate) user: User,
    /// How often the user will still open a session of the same name, at the same epoch, after one has ended.
    returns: u32,
    pub(crate) prompt: Vec<Vec<u32>>,
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
        let id = SecretKey::from_bytes(&[index as u8 + 101; 32]).peer_id();
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
            key: SessionKey { client: id, id: SessionId::from_bytes([index as u8; 16]) },
            epoch: 0,
            positions: CONTEXT,
            width: toy::WIDTH,
            vocabulary: toy::VOCABULARY,
            codec: if rng.bool() { Codec::F16 } else { Codec::F32 },
            codec_otherwise: None,
            route,
            prefix: None,
            pad: false,
            deadlines: Deadlines {
                step: Duration::from_secs(30),
                grace: scenario.recovers.then_some(Duration::from_secs(20)),
                ..Deadlines::default()
            },
        };
        let prompt = (0..rng.usize(1..=4)).map(|_| random_tokens(rng, 24)).collect();
        let user = User::new(rng.usize(1..=24));
        let returns = rng.u32(..=scenario.returns);
        let streams = vec![None; ranges.len()];
        let (lost, replaced) = Default::default();
        Self {
            id,
            grant: grant(root, id),
            config,
            session: None,
            own,
            streams,
            lost,
            replaced,
            mends: 0,
            wake_at: None,
            user,
            returns,
            prompt,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.session.as_ref().is_none_or(ClientSession::is_over)
    }
}

impl World {
    pub(crate) fn client_frame(&mut self, client: usize, hop: usize, stream: usize, frame: Frame) {
        if self.clients[client].streams[hop] == Some(stream) {
            self.inform(client, Event::Frame { hop, frame });
        }
    }

    pub(crate) fn client_stream_closed(&mut self, client: usize, hop: usize, stream: usize, failure: Failure) {
        if self.clients[client].streams[hop] == Some(stream) {
            self.inform(client, Event::Closed { hop, failure });
        }
    }

    pub(crate) fn wake_client(&mut self, client: usize) {
        self.clients[client].wake_at = None;
        match &self.clients[client].session {
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
        client.streams.fill(None);
        client.lost.clear();
        client.replaced.clear();
        client.mends = 0;
        client.user = User::new(client.user.wanted);
        for chunk in client.prompt.iter_mut().flatten() {
            *chunk = (*chunk + 1) % toy::VOCABULARY;
        }
        client.own.iter_mut().for_each(|(_, stage)| stage.close(CacheId(0)));
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
        if self.clients[client].session.as_ref().is_some_and(ClientSession::is_over) && self.clients[client].returns > 0
        {
            let soon = Duration::from_micros(self.rng.u64(..20_000));
            return self.after(soon, Due::Wake(End::Client(client, 0)));
        }
        let at = self.clients[client].session.as_ref().and_then(ClientSession::poll_timeout);
        let Some(at) = at.map(|at| self.since_start(at)) else { return };
        if self.clients[client].wake_at.is_none_or(|set| at < set) {
            self.clients[client].wake_at = Some(at);
            self.at(at, Due::Wake(End::Client(client, 0)));
        }
    }

    fn carry_out(&mut self, client: usize, effect: Effect) {
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
            Effect::Ready => self.send_prompt(client),
            Effect::Lost { hop, .. } => self.lost(client, hop),
            Effect::Repaired => self.report.repairs += 1,
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
        let route = session.as_ref().map_or(&config.route[..], ClientSession::route);
        let peer = route[hop].peer().and_then(|id| self.by_id.get(&id)).copied();
        let peer = peer.unwrap_or_default();
        let stream = self.open_stream(End::Client(client, hop), End::Peer(peer));
        self.clients[client].streams[hop] = Some(stream);
        if !self.peers[peer].alive {
            self.break_stream(stream);
        }
        stream
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
        let lost = &mut self.clients[client].lost;
        if !lost.contains(&hop) {
            lost.push(hop);
        }
        if lost.len() == 1 {
            let planning = Duration::from_millis(self.rng.u64(1..=800));
            self.after(planning, Due::Mend(client));
        }
    }

    /// Whoever serves the same layers takes the place of a lost peer: preferably another.
    pub(crate) fn mend(&mut self, client: usize) {
        let now = self.instant();
        let lost = std::mem::take(&mut self.clients[client].lost);
        let Some(session) = self.clients[client].session.as_ref().filter(|session| !session.is_over()) else { return };
        let route: Vec<Hop> = session.route().to_vec();
        let substitute = |hop: usize| {
            let spec = route[hop].spec();
            let elsewhere =
                |id: PeerId| route.iter().enumerate().any(|(at, hop_)| at != hop && hop_.peer() == Some(id));
            let serving =
                self.peers.iter().filter(|peer| peer.range == spec.layers && peer.alive && !elsewhere(peer.id));
            let peer = serving.min_by_key(|peer| route[hop].peer() == Some(peer.id))?;
            let stage = RemoteStage { spec, address: peer.address(), grant: peer.grant.clone(), speed: None };
            Some((hop, stage))
        };
        let others: Option<Vec<_>> = lost.iter().map(|hop| substitute(*hop)).collect();
        let SimClient { session, mends, .. } = &mut self.clients[client];
        *mends += 1;
        match (others.filter(|_| *mends < MENDS_MAX), session) {
            (Some(others), Some(session)) => {
                let replaced = session.replace(now, others);
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
        let own = self.clients[client].own.iter_mut().find(|(place, _)| *place == hop);
        let Some(reply) = own.and_then(|(_, stage)| command.apply(stage)) else { return };
        let now = self.instant();
        if let Some(session) = &mut self.clients[client].session {
            session.handle(now, Event::Own { hop, reply });
        }
    }
}
