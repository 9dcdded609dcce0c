//! A simulated peer: the production machine, a toy stage, and a driver that decides nothing.

use std::{collections::BTreeMap, time::Duration};

use potluck_core::{Account, CacheId, LayerRange, PeerId, SecretKey, Stage as _, StageCommand, StageReply};
use potluck_grant::{Gate, Root};
use potluck_peer::{DialId, Effect, Event, Peer, PeerConfig, StageSlot, StreamId};
use potluck_wire::{Failure, FailureCode, Frame, HOP_FRAMES_MAX, PeerAddress};

use crate::{
    Scenario,
    disk::Disk,
    toy::{self, ToyStage},
    user::PARKS_MAX,
    wire::{End, Node},
    world::{Due, UTC_START, World},
};

/// Positions of a toy cache.
pub(crate) const CONTEXT: u32 = 1_024;

#[derive(Debug)]
pub(crate) struct SimPeer {
    pub(crate) id: PeerId,
    pub(crate) grant: Vec<u8>,
    pub(crate) gate: Gate,
    pub(crate) machine: Peer,
    pub(crate) stage: ToyStage,
    /// What it keeps of sessions that were put aside; and, for each cache whose state is on its way, which of these ways it is.
    pub(crate) disk: Disk,
    moving: BTreeMap<CacheId, (u64, StageCommand)>,
    ways: u64,
    pub(crate) range: LayerRange,
    /// Counts the engine's lives: what an earlier one still owed is never delivered.
    pub(crate) generation: u64,
    /// Counts the peer's lives: whom an earlier one dialled is nothing to it.
    pub(crate) life: u64,
    pub(crate) busy_until: Duration,
    /// How many times slower it computes, and until when.
    pub(crate) slow: (u32, Duration),
    /// Seconds that its clock is ahead.
    pub(crate) skew_s: i64,
    wake_at: Option<Duration>,
    pub(crate) alive: bool,
    /// It takes no new sessions.
    pub(crate) is_leaving: bool,
    /// It does not come back.
    pub(crate) is_gone: bool,
    pub(crate) frozen_until: Duration,
}

/// A key that nobody else has.
pub(crate) fn key(role: char, index: usize) -> SecretKey {
    let mut bytes = [role as u8; 32];
    bytes[..8].copy_from_slice(&(index as u64).to_le_bytes());
    SecretKey::from_bytes(&bytes)
}

/// The grant of a simulated member.
pub(crate) fn grant(root: &Root, id: PeerId) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "the root is ours")]
    root.grant(id, UTC_START + 30 * 86_400).expect("a root signs").into_bytes()
}

impl SimPeer {
    pub(crate) fn new(index: usize, range: LayerRange, scenario: &Scenario, root: &Root) -> Self {
        let id = key('p', index).peer_id();
        let config = PeerConfig {
            id,
            sessions_per_client: 4,
            idle_max: Duration::from_secs(60),
            open_timeout: Duration::from_secs(10),
        };
        let gate = Gate::new(root.public());
        let mut machine = Peer::new(config, gate.clone());
        if scenario.shares {
            let mut rng = fastrand::Rng::with_seed(scenario.seed ^ (index as u64) << 16);
            machine.limit_share(if rng.bool() { rng.u8(20..=100) } else { 100 });
        }
        let stage = ToyStage::new(toy::spec(range, scenario.layers), scenario.caches, CONTEXT);
        machine.add_stage(stage.shape().clone());
        Self {
            id,
            grant: grant(root, id),
            gate,
            machine,
            stage,
            disk: Disk::default(),
            moving: BTreeMap::new(),
            ways: 0,
            range,
            generation: 0,
            life: 0,
            slow: (1, Duration::ZERO),
            skew_s: 0,
            busy_until: Duration::ZERO,
            wake_at: None,
            alive: true,
            is_leaving: false,
            is_gone: false,
            frozen_until: Duration::ZERO,
        }
    }

    /// Whether it is taken for one that takes sessions. `heard`: also by who would have to have heard that it is about to go.
    pub(crate) fn is_offered(&self, heard: bool) -> bool {
        self.alive && !(heard && self.is_leaving)
    }

    /// Which way of a state a command begins. Whoever closes a cache ends what was on its way, and so does whoever computes in it: the
    /// caches of which that is said.
    fn way(&mut self, command: &StageCommand) -> (Option<u64>, Vec<StageReply>) {
        let mut called_off = Vec::new();
        match command {
            StageCommand::Save { cache, .. } | StageCommand::Restore { cache, .. } => {
                self.ways += 1;
                self.moving.insert(*cache, (self.ways, command.clone()));
                return (Some(self.ways), called_off);
            }
            StageCommand::Open { cache, .. } | StageCommand::Close { cache } | StageCommand::Fork { to: cache, .. } => {
                self.moving.remove(cache);
            }
            StageCommand::Forward { steps, .. } => {
                let moving = steps.iter().filter_map(|step| self.moving.remove(&step.cache));
                called_off.extend(moving.filter_map(|(_, command)| command.apply(&mut self.stage)));
            }
            _ => {}
        }
        (None, called_off)
    }

    pub(crate) fn address(&self) -> PeerAddress {
        PeerAddress { peer: self.id, addresses: Vec::new(), relay: None }
    }
}

impl World {
    pub(crate) fn stream_opened(&mut self, stream: usize) {
        let [from, End::Peer(to)] = self.streams[stream].ends else { return };
        if !self.streams[stream].open[1] || !self.peers[to].alive {
            return;
        }
        let (holder, grant) = match from {
            End::Peer(peer) => (self.peers[peer].id, &self.peers[peer].grant),
            End::Client(client) => (self.clients[client].id, &self.clients[client].grant),
        };
        match self.peers[to].gate.check(grant, holder, self.time_of(to).utc) {
            Ok(member) => self.tell(to, Event::StreamOpened { stream: StreamId(stream as u64), from: member }),
            Err(_) => self.check(false, "every simulated member has a valid grant"),
        }
    }

    pub(crate) fn peer_frame(&mut self, peer: usize, stream: usize, frame: Frame) {
        self.tell(peer, Event::Frame { stream: StreamId(stream as u64), frame });
    }

    pub(crate) fn peer_stream_ended(&mut self, peer: usize, stream: usize, (failure, broke_off): (Failure, bool)) {
        let stream = StreamId(stream as u64);
        self.tell(peer, if broke_off { Event::Broken { stream, failure } } else { Event::Closed { stream, failure } });
    }

    pub(crate) fn dialed(&mut self, peer: usize, life: u64, dial: DialId, result: Result<usize, Failure>) {
        if self.peers[peer].life != life {
            return;
        }
        let result = result.map(|to| StreamId(self.open_stream(End::Peer(peer), End::Peer(to)) as u64));
        self.tell(peer, Event::Dialed { dial, result });
    }

    pub(crate) fn replied(
        &mut self,
        peer: usize,
        slot: StageSlot,
        (generation, way): (u64, Option<u64>),
        reply: StageReply,
    ) {
        let sim = &mut self.peers[peer];
        // Of a session that has ended meanwhile, a driver says nothing.
        let is_present = match (&reply, way) {
            (StageReply::Saved { cache, .. } | StageReply::Restored { cache, .. }, Some(_)) => {
                sim.moving.remove(cache).is_some()
            }
            _ => true,
        };
        if sim.generation == generation && is_present {
            self.tell(peer, Event::Stage { stage: slot, reply });
        }
    }

    /// It is the turn of a state that is to be kept, or to come back.
    pub(crate) fn moves(&mut self, peer: usize, slot: StageSlot, generation: u64, way: u64) {
        let sim = &mut self.peers[peer];
        let command =
            sim.moving.values().find(|(on_its_way, _)| *on_its_way == way).map(|(_, command)| command.clone());
        let Some(command) = command.filter(|_| sim.generation == generation) else { return };
        let fails = self.disk_fails();
        let sim = &mut self.peers[peer];
        if let Some(reply) = sim.disk.carry_out(&mut sim.stage, &command, fails) {
            self.replied(peer, slot, (generation, Some(way)), reply);
        }
    }

    pub(crate) fn wake_peer(&mut self, peer: usize) {
        self.peers[peer].wake_at = None;
        self.tell(peer, Event::Timeout);
    }

    /// Hands an event to a peer's machine and does what it asks for.
    fn tell(&mut self, peer: usize, event: Event) {
        if !self.peers[peer].alive {
            return;
        }
        let now = self.time_of(peer);
        self.peers[peer].machine.handle(now, event);
        self.follow(peer);
    }

    /// The peer says that it is about to go, unless it is gone.
    pub(crate) fn drain_peer(&mut self, peer: usize) -> bool {
        let sim = &mut self.peers[peer];
        if !sim.alive {
            return false;
        }
        sim.is_leaving = true;
        sim.machine.drain();
        self.follow(peer);
        true
    }

    /// Does what a peer's machine asks for.
    fn follow(&mut self, peer: usize) {
        while let Some(effect) = self.peers[peer].machine.poll() {
            self.perform(peer, effect);
        }
        self.set_alarm(peer);
        let status = self.peers[peer].machine.status();
        let lives = 1 + self.scenario.returns + if self.scenario.parks { PARKS_MAX } else { 0 };
        let names = self.scenario.sessions * lives as usize;
        let each = if self.scenario.standbys { 4 } else { 3 };
        let streams_max = each * names + 2 * self.scenario.peers;
        self.check(status.sessions <= self.scenario.caches.into(), "no more sessions than caches");
        self.check(status.streams <= streams_max, "streams stay within what sessions need");
        self.check(
            status.steps_waiting <= status.sessions * HOP_FRAMES_MAX as usize,
            "no session's queue exceeds its credit",
        );
    }

    fn set_alarm(&mut self, peer: usize) {
        let Some(at) = self.peers[peer].machine.poll_timeout().map(|at| self.since_start(at)) else { return };
        if self.peers[peer].wake_at.is_none_or(|set| at < set) {
            self.peers[peer].wake_at = Some(at);
            self.at(at, Due::Wake(End::Peer(peer)));
        }
    }

    fn side(&self, peer: usize, stream: usize) -> usize {
        usize::from(self.streams[stream].ends[0] != End::Peer(peer))
    }

    fn perform(&mut self, peer: usize, effect: Effect) {
        match effect {
            Effect::Dial { dial, to } => self.dial(peer, dial, to.peer),
            Effect::Send { stream: StreamId(stream), frame } => {
                if let Frame::Replay { step, .. } = &frame {
                    self.report.replayed.0 += 1;
                    self.report.replayed.1 += u64::from(step.count);
                }
                let (stream, side) = (stream as usize, self.side(peer, stream as usize));
                self.check(self.streams[stream].open[side], "nothing is sent on a stream that is closed");
                self.send(stream, side, &frame);
            }
            Effect::Account { stream, account, next } => {
                let next_rtt_us = next.map(|_| 2 * self.delay().as_micros() as u32);
                let frame = Frame::Account(Account { next_rtt_us, ..account });
                self.perform(peer, Effect::Send { stream, frame });
            }
            Effect::Limit { stream: StreamId(stream), frame_bytes_max } => {
                let (stream, side) = (stream as usize, self.side(peer, stream as usize));
                self.streams[stream].readers[side].set_limit(frame_bytes_max);
            }
            Effect::Close { stream: StreamId(stream), failure } => {
                let (stream, side) = (stream as usize, self.side(peer, stream as usize));
                self.close(stream, side, failure);
            }
            Effect::Stage { stage, command } => self.compute(peer, stage, command),
        }
    }

    fn dial(&mut self, peer: usize, dial: DialId, to: PeerId) {
        let to = self.by_id.get(&to).copied();
        let reached = to.and_then(|to| Some((to, self.reaches(Node::Peer(peer), Node::Peer(to))?)));
        let (wait, result) = match reached {
            Some((to, wait)) => (wait + self.delay() * 2, Ok(to)),
            None => (self.detection(), Err(Failure::new(FailureCode::PeerLost, "no answer"))),
        };
        let life = self.peers[peer].life;
        self.after(wait, Due::Dialed { peer, life, dial, result });
    }

    /// Whether a disk is full, or has lost what is asked for: now and then.
    pub(crate) fn disk_fails(&mut self) -> bool {
        self.rng.u8(..6) == 0
    }

    fn compute(&mut self, peer: usize, slot: StageSlot, command: StageCommand) {
        let rows: usize = match &command {
            StageCommand::Forward { steps, .. } => steps.iter().map(|step| step.positions(toy::WIDTH)).sum(),
            _ => 0,
        };
        let sim = &mut self.peers[peer];
        let generation = sim.generation;
        let (way, called_off) = sim.way(&command);
        for reply in called_off {
            self.after(Duration::ZERO, Due::Replied { peer, slot, generation, reply, way: None });
        }
        if let Some(way) = way {
            // Others may have to be kept first, and the disk may be slow.
            let most_ms = if self.rng.u8(..32) == 0 { 60_000 } else { 50 };
            let wait = Duration::from_millis(self.rng.u64(..most_ms));
            return self.after(wait, Due::Moves { peer, slot, generation, way });
        }
        let sim = &mut self.peers[peer];
        let reply = command.apply(&mut sim.stage);
        let start = sim.busy_until.max(self.now);
        let (times, until) = sim.slow;
        let times = if until > self.now { times } else { 1 };
        sim.busy_until = start + times * Duration::from_micros(200 + 100 * rows as u64);
        let at = sim.busy_until;
        if let Some(reply) = reply {
            self.at(at, Due::Replied { peer, slot, generation, reply, way: None });
        }
    }
}
