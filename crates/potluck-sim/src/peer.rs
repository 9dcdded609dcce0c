//! A simulated peer: the production machine, a toy stage, and a driver that decides nothing.

use std::time::Duration;

use potluck_core::{Account, LayerRange, PeerId, SecretKey, Stage as _, StageCommand, StageReply};
use potluck_grant::{Gate, Root};
use potluck_peer::{DialId, Effect, Event, Peer, PeerConfig, StageSlot, StreamId};
use potluck_wire::{Failure, FailureCode, Frame, HOP_FRAMES_MAX, PeerAddress};

use crate::{
    Scenario,
    toy::{self, ToyStage},
    wire::End,
    world::{Due, UTC_START, World},
};

/// Positions of a toy cache.
pub(crate) const CONTEXT: u32 = 256;

#[derive(Debug)]
pub(crate) struct SimPeer {
    pub(crate) id: PeerId,
    pub(crate) grant: Vec<u8>,
    pub(crate) gate: Gate,
    pub(crate) machine: Peer,
    pub(crate) stage: ToyStage,
    pub(crate) range: LayerRange,
    /// Counts the engine's lives: what an earlier one still owed is never delivered.
    generation: u64,
    busy_until: Duration,
    wake_at: Option<Duration>,
    pub(crate) alive: bool,
    pub(crate) frozen_until: Duration,
}

/// The grant of a simulated member.
pub(crate) fn grant(root: &Root, id: PeerId) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "the root is ours")]
    root.grant(id, UTC_START + 86_400).expect("a root signs").into_bytes()
}

impl SimPeer {
    pub(crate) fn new(index: usize, range: LayerRange, scenario: &Scenario, root: &Root) -> Self {
        let id = SecretKey::from_bytes(&[index as u8 + 1; 32]).peer_id();
        let config = PeerConfig {
            id,
            sessions_per_client: 4,
            idle_max: Duration::from_secs(60),
            open_timeout: Duration::from_secs(10),
        };
        let gate = Gate::new(root.public());
        let mut machine = Peer::new(config, gate.clone());
        let stage = ToyStage::new(toy::spec(range, scenario.layers), scenario.caches, CONTEXT);
        machine.add_stage(stage.shape().clone());
        Self {
            id,
            grant: grant(root, id),
            gate,
            machine,
            stage,
            range,
            generation: 0,
            busy_until: Duration::ZERO,
            wake_at: None,
            alive: true,
            frozen_until: Duration::ZERO,
        }
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
            End::Client(client, _) => (self.clients[client].id, &self.clients[client].grant),
        };
        match self.peers[to].gate.check(grant, holder, self.time().utc) {
            Ok(member) => self.tell(to, Event::StreamOpened { stream: StreamId(stream as u64), from: member }),
            Err(_) => self.check(false, "every simulated member has a valid grant"),
        }
    }

    pub(crate) fn peer_frame(&mut self, peer: usize, stream: usize, frame: Frame) {
        self.tell(peer, Event::Frame { stream: StreamId(stream as u64), frame });
    }

    pub(crate) fn peer_stream_closed(&mut self, peer: usize, stream: usize, failure: Failure) {
        self.tell(peer, Event::Closed { stream: StreamId(stream as u64), failure });
    }

    pub(crate) fn dialed(&mut self, peer: usize, dial: DialId, result: Result<usize, Failure>) {
        let result = result.map(|to| StreamId(self.open_stream(End::Peer(peer), End::Peer(to)) as u64));
        self.tell(peer, Event::Dialed { dial, result });
    }

    pub(crate) fn replied(&mut self, peer: usize, slot: StageSlot, generation: u64, reply: StageReply) {
        if self.peers[peer].generation == generation {
            self.tell(peer, Event::Stage { stage: slot, reply });
        }
    }

    pub(crate) fn wake_peer(&mut self, peer: usize) {
        self.peers[peer].wake_at = None;
        self.tell(peer, Event::Timeout);
    }

    /// The peer is gone. Whoever was connected notices after a while.
    pub(crate) fn kill(&mut self, peer: usize) {
        self.peers[peer].alive = false;
        let held = |stream: &usize| self.streams[*stream].ends.contains(&End::Peer(peer));
        for stream in (0..self.streams.len()).filter(held).collect::<Vec<_>>() {
            self.break_stream(stream);
        }
    }

    /// The engine's process ends; another is ready a second later.
    pub(crate) fn lose_engine(&mut self, peer: usize) {
        let sim = &mut self.peers[peer];
        sim.generation += 1;
        sim.busy_until = Duration::ZERO;
        let shape = sim.stage.shape().clone();
        sim.stage = ToyStage::new(shape.spec, shape.caches, shape.context);
        let (slot, generation) = (StageSlot(0), sim.generation);
        let reply = StageReply::Lost { reason: "killed by signal 9".into() };
        self.after(Duration::ZERO, Due::Replied { peer, slot, generation, reply });
        let reply = StageReply::Ready(shape);
        self.after(Duration::from_secs(1), Due::Replied { peer, slot, generation, reply });
    }

    /// Hands an event to a peer's machine and does what it asks for.
    fn tell(&mut self, peer: usize, event: Event) {
        if !self.peers[peer].alive {
            return;
        }
        let now = self.time();
        self.peers[peer].machine.handle(now, event);
        while let Some(effect) = self.peers[peer].machine.poll() {
            self.perform(peer, effect);
        }
        self.set_alarm(peer);
        let status = self.peers[peer].machine.status();
        let names = self.scenario.sessions * (1 + self.scenario.returns as usize);
        let streams_max = 3 * names + 2 * self.scenario.peers;
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
        let reached = self.by_id.get(&to).copied().filter(|to| self.peers[*to].alive);
        let (wait, result) = match reached {
            Some(to) => (self.delay() * 2, Ok(to)),
            None => (self.detection(), Err(Failure::new(FailureCode::PeerLost, "no answer"))),
        };
        self.after(wait, Due::Dialed { peer, dial, result });
    }

    fn compute(&mut self, peer: usize, slot: StageSlot, command: StageCommand) {
        let rows: usize = match &command {
            StageCommand::Forward { steps, .. } => steps.iter().map(|step| step.positions(toy::WIDTH)).sum(),
            _ => 0,
        };
        let sim = &mut self.peers[peer];
        let reply = command.apply(&mut sim.stage);
        let start = sim.busy_until.max(self.now);
        sim.busy_until = start + Duration::from_micros(200 + 100 * rows as u64);
        let (at, generation) = (sim.busy_until, sim.generation);
        if let Some(reply) = reply {
            self.at(at, Due::Replied { peer, slot, generation, reply });
        }
    }
}
