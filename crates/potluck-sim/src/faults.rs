//! What goes wrong, when, and what it does to whom.

use std::time::Duration;

use potluck_core::StageReply;
use potluck_peer::StageSlot;
use potluck_wire::{Failure, FailureCode};

use crate::{
    peer::SimPeer,
    scenario::Faults,
    toy::ToyStage,
    wire::{End, Node},
    world::{Due, World},
};

/// Faults begin in this time.
const STRIKES_MS: u64 = 8_000;

/// Longest that a fault lasts which passes.
const LASTS_MAX_MS: u64 = 8_000;

/// Whoever says that it goes, and goes so much later, has had its sessions taken over.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(6);

/// Whoever has heard nothing of another for so long takes it for lost.
const SILENCE: Duration = Duration::from_secs(3);

/// Something that goes wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    Kill(usize),
    Restart(usize, Duration),
    /// It says that it is about to go, and is gone that much later.
    Drain(usize, Duration),
    Gone(usize, Duration),
    LoseEngine(usize),
    Freeze(usize, Duration),
    Slow(usize, u32, Duration),
    /// One stream of those that are open.
    Cut(u64),
    /// Every connection of a peer.
    Unplug(usize),
    Part(Part, Duration),
    Leave(usize),
}

/// Nothing passes from one to another, or from or to anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    from: Option<Node>,
    to: Option<Node>,
}

impl Part {
    fn holds_back(self, from: Node, to: Node) -> bool {
        self.from.is_none_or(|node| node == from) && self.to.is_none_or(|node| node == to)
    }
}

impl World {
    pub(crate) fn schedule_faults(&mut self) {
        let faults = self.scenario.faults;
        let (peers, clients) = (self.peers.len(), self.clients.len());
        let mut rng = self.rng.fork();
        let lasts = |rng: &mut fastrand::Rng| Duration::from_millis(rng.u64(100..=LASTS_MAX_MS));
        let mut plan = Vec::new();
        plan.extend((0..faults.kills).map(|_| Fault::Kill(rng.usize(..peers))));
        for _ in 0..faults.restarts {
            let away = Duration::from_millis(rng.u64(100..5_000));
            plan.push(Fault::Restart(rng.usize(..peers), away));
        }
        plan.extend((0..faults.engine_losses).map(|_| Fault::LoseEngine(rng.usize(..peers))));
        plan.extend((0..faults.freezes).map(|_| Fault::Freeze(rng.usize(..peers), lasts(&mut rng))));
        let short = |rng: &mut fastrand::Rng| Duration::from_millis(rng.u64(100..3_000));
        plan.extend((0..faults.naps).map(|_| Fault::Freeze(rng.usize(..peers), short(&mut rng))));
        plan.extend((0..faults.slows).map(|_| Fault::Slow(rng.usize(..peers), rng.u32(2..=50), lasts(&mut rng))));
        plan.extend((0..faults.cuts).map(|_| Fault::Cut(rng.u64(..))));
        plan.extend((0..faults.leaves).map(|_| Fault::Leave(rng.usize(..clients))));
        plan.extend((0..faults.drains).map(|_| Fault::Drain(rng.usize(..peers), lasts(&mut rng))));
        for fault in plan {
            let at = Duration::from_millis(rng.u64(..STRIKES_MS)) + self.some_time();
            self.at(at, Due::Fault(fault));
        }
        for _ in 0..faults.flaps {
            let (peer, mut at) = (rng.usize(..peers), Duration::from_millis(rng.u64(..STRIKES_MS)));
            at += self.some_time();
            for _ in 0..rng.u32(2..=6) {
                self.at(at, Due::Fault(Fault::Unplug(peer)));
                at += Duration::from_millis(rng.u64(100..1_500));
            }
        }
        for _ in 0..faults.partitions {
            let at = Duration::from_millis(rng.u64(..STRIKES_MS)) + self.some_time();
            let somebody = |rng: &mut fastrand::Rng| match rng.usize(..peers + clients) {
                peer if peer < peers => Node::Peer(peer),
                client => Node::Client(client - peers),
            };
            let (node, other) = (Some(somebody(&mut rng)), somebody(&mut rng));
            let other = Some(other).filter(|other| Some(*other) != node && rng.bool());
            let [out, back] = [Part { from: node, to: other }, Part { from: other, to: node }];
            let parts = vec![vec![out], vec![back], vec![out, back]].swap_remove(rng.usize(..3));
            let time = lasts(&mut rng);
            for part in parts {
                self.at(at, Due::Fault(Fault::Part(part, time)));
            }
        }
        self.schedule_outages(&mut rng);
    }

    /// A client is cut off from everybody.
    fn schedule_outages(&mut self, rng: &mut fastrand::Rng) {
        for _ in 0..self.scenario.faults.outages {
            let at = Duration::from_millis(rng.u64(..STRIKES_MS)) + self.some_time();
            let node = Some(Node::Client(rng.usize(..self.clients.len())));
            let time = Duration::from_millis(rng.u64(100..=LASTS_MAX_MS));
            for part in [Part { from: node, to: None }, Part { from: None, to: node }] {
                self.at(at, Due::Fault(Fault::Part(part, time)));
            }
        }
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(peer) => {
                self.kill(peer);
                self.peers[peer].is_gone = true;
            }
            Fault::Restart(peer, away) => {
                if self.peers[peer].alive {
                    self.kill(peer);
                    self.after(away, Due::Restart(peer));
                }
            }
            Fault::Drain(peer, time) => {
                if self.drain_peer(peer) {
                    self.after(time, Due::Fault(Fault::Gone(peer, time)));
                }
            }
            Fault::Gone(peer, time) => {
                // It may have been killed, and be back, meanwhile.
                if self.peers[peer].alive && self.peers[peer].is_leaving {
                    let left = self.peers[peer].machine.status().sessions;
                    self.report.left_behind += left;
                    // Where nothing else goes wrong, and another is there.
                    let Faults { drains, .. } = self.scenario.faults;
                    let is_calm = self.scenario.faults == Faults { drains, ..Faults::default() } && drains == 1;
                    let may = is_calm && self.scenario.survives && time >= HANDED_OVER_WITHIN;
                    self.check(!may || left == 0, "whoever has said in time that it goes has no session left then");
                    self.kill(peer);
                    self.after(Duration::from_secs(1), Due::Restart(peer));
                }
            }
            Fault::LoseEngine(peer) => self.lose_engine(peer),
            Fault::Freeze(peer, time) => {
                // Never shortened: what waits for the thaw keeps its order.
                let until = self.peers[peer].frozen_until.max(self.now + time);
                self.peers[peer].frozen_until = until;
                if time > SILENCE {
                    self.break_streams(|ends| ends.contains(&Node::Peer(peer)), SILENCE);
                }
            }
            Fault::Slow(peer, times, time) => self.peers[peer].slow = (times, self.now + time),
            Fault::Cut(draw) => self.cut(draw),
            Fault::Unplug(peer) => self.break_streams(|ends| ends.contains(&Node::Peer(peer)), Duration::ZERO),
            Fault::Part(part, time) => {
                self.parts.retain(|(_, until)| *until > self.now);
                self.parts.push((part, self.now + time));
                if time > SILENCE {
                    // Whoever hears nothing lets go; then the other hears nothing either.
                    let touched = move |[a, b]: [Node; 2]| part.holds_back(a, b) || part.holds_back(b, a);
                    self.break_streams(touched, SILENCE);
                }
            }
            Fault::Leave(client) => self.leave(client),
        }
    }

    /// Until when nothing passes from one to the other, where that is later than now.
    pub(crate) fn parted(&self, from: Node, to: Node) -> Option<Duration> {
        let parts = self.parts.iter().filter(|(part, until)| *until > self.now && part.holds_back(from, to));
        parts.map(|(_, until)| *until).max()
    }

    /// Until when two cannot talk: one of them stands still, or what one says does not reach the other.
    fn apart(&self, one: Node, other: Node) -> Option<Duration> {
        let still = |node| match node {
            Node::Peer(peer) => Some(self.peers[peer].frozen_until).filter(|until| *until > self.now),
            Node::Client(_) => None,
        };
        [self.parted(one, other), self.parted(other, one), still(one), still(other)].into_iter().flatten().max()
    }

    /// How long it takes to reach another, where that succeeds.
    pub(crate) fn reaches(&self, one: Node, other: Node) -> Option<Duration> {
        if matches!(other, Node::Peer(peer) if !self.peers[peer].alive) {
            return None;
        }
        let wait = self.apart(one, other).map_or(Duration::ZERO, |until| until - self.now);
        Some(wait).filter(|wait| *wait <= SILENCE)
    }

    /// The peer is gone. Whoever was connected notices after a while.
    fn kill(&mut self, peer: usize) {
        self.peers[peer].alive = false;
        for stream in 0..self.streams.len() {
            for side in 0..2 {
                let is_its_own = self.streams[stream].ends[side] == End::Peer(peer);
                self.streams[stream].open[side] &= !is_its_own;
            }
        }
        self.break_streams(|ends| ends.contains(&Node::Peer(peer)), Duration::ZERO);
    }

    /// The peer is back, and has forgotten everything but who it is, and what was put aside.
    pub(crate) fn restart(&mut self, peer: usize) {
        let SimPeer { range, skew_s, life, generation, is_gone, .. } = self.peers[peer];
        if is_gone {
            return;
        }
        let mut anew = SimPeer::new(peer, range, &self.scenario, &self.root);
        (anew.skew_s, anew.life, anew.generation) = (skew_s, life + 1, generation + 1);
        // What it keeps is on its disk.
        anew.disk = std::mem::take(&mut self.peers[peer].disk);
        self.peers[peer] = anew;
    }

    /// The engine's process ends; another is ready a second later.
    fn lose_engine(&mut self, peer: usize) {
        let sim = &mut self.peers[peer];
        sim.generation += 1;
        sim.busy_until = Duration::ZERO;
        let shape = potluck_core::Stage::shape(&sim.stage).clone();
        sim.stage = ToyStage::new(shape.spec, shape.caches, shape.context);
        let (slot, generation) = (StageSlot(0), sim.generation);
        let reply = StageReply::Lost { reason: "killed by signal 9".into() };
        self.after(Duration::ZERO, Due::Replied { peer, slot, generation, reply, way: None });
        let reply = StageReply::Ready(shape);
        self.after(Duration::from_secs(1), Due::Replied { peer, slot, generation, reply, way: None });
    }

    fn cut(&mut self, draw: u64) {
        let open: Vec<_> = (0..self.streams.len()).filter(|&s| self.streams[s].open == [true, true]).collect();
        if !open.is_empty() {
            self.break_stream(open[draw as usize % open.len()], Duration::ZERO);
        }
    }

    fn break_streams(&mut self, which: impl Fn([Node; 2]) -> bool, not_before: Duration) {
        for stream in 0..self.streams.len() {
            if which(self.streams[stream].ends.map(End::node)) {
                self.break_stream(stream, not_before);
            }
        }
    }

    /// Both sides learn, each in its time, that a stream or its connection broke.
    pub(crate) fn break_stream(&mut self, stream: usize, not_before: Duration) {
        for side in 0..2 {
            if self.streams[stream].open[side] {
                let noticed = not_before.max(self.detection());
                let failure = Failure::new(FailureCode::PeerLost, "the connection broke");
                self.after(noticed, Due::Broken { stream, side, failure });
            }
        }
    }
}
