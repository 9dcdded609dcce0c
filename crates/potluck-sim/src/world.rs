//! The world: a clock, a queue of what is to happen, and everybody in it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::{Duration, Instant},
};

use potluck_core::{LayerRange, PeerId, StageReply};
use potluck_grant::Root;
use potluck_netem::link::Fate;
use potluck_peer::{DialId, Now, StageSlot};
use potluck_wire::{Failure, FailureCode, Frame};

use crate::{
    client::SimClient,
    peer::SimPeer,
    scenario::{Report, Scenario},
    wire::{End, Parcel, SimStream},
};

/// Virtual UTC seconds at the start of a run.
pub(crate) const UTC_START: u64 = 1_800_000_000;

/// No session takes longer: what is not over by then hangs.
const HORIZON: Duration = Duration::from_secs(3_600);

/// Events of one run: more means that something goes round in circles.
const EVENTS_MAX: usize = 2_000_000;

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Due {
    /// What the link to that side brings then.
    Arrive {
        stream: usize,
        side: usize,
    },
    /// That side finds out that the stream is broken.
    Broken {
        stream: usize,
        side: usize,
        failure: Failure,
    },
    Dialed {
        peer: usize,
        dial: DialId,
        result: Result<usize, Failure>,
    },
    Replied {
        peer: usize,
        slot: StageSlot,
        generation: u64,
        reply: StageReply,
    },
    Wake(End),
    /// That client looks for other peers.
    Mend(usize),
    Kill(usize),
    LoseEngine(usize),
    Freeze(usize, Duration),
    Cut(u64),
}

/// A run in progress.
#[derive(Debug)]
pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) rng: fastrand::Rng,
    start: Instant,
    pub(crate) now: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    due: BTreeMap<u64, Due>,
    order: u64,
    pub(crate) peers: Vec<SimPeer>,
    pub(crate) clients: Vec<SimClient>,
    pub(crate) streams: Vec<SimStream>,
    pub(crate) by_id: BTreeMap<PeerId, usize>,
    pub(crate) report: Report,
}

impl World {
    /// Sets everything up: a swarm, its peers, and clients that open their sessions within the first second.
    pub fn new(scenario: Scenario) -> Self {
        let mut rng = fastrand::Rng::with_seed(scenario.seed);
        let root = Root::from_bytes(&[7; 32]);
        #[expect(clippy::expect_used, reason = "scenarios are ours")]
        let ranges = LayerRange::new(0, scenario.layers)
            .and_then(|all| all.split(scenario.stages))
            .expect("a scenario has as many layers as stages");
        let peer = |index: usize| SimPeer::new(index, ranges[index % ranges.len()], &scenario, &root);
        let peers: Vec<_> = (0..scenario.peers).map(peer).collect();
        let by_id = peers.iter().enumerate().map(|(index, peer)| (peer.id, index)).collect();
        let client = |index| SimClient::new(index, &ranges, &peers, &scenario, &root, &mut rng);
        let clients: Vec<_> = (0..scenario.sessions).map(client).collect();
        let mut world = Self {
            rng,
            start: Instant::now(),
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            due: BTreeMap::new(),
            order: 0,
            peers,
            clients,
            streams: Vec::new(),
            by_id,
            report: Report::default(),
            scenario,
        };
        world.schedule_start();
        world.schedule_faults();
        world
    }

    /// Runs until nothing is left to happen.
    ///
    /// # Panics
    /// Where a promise is broken; the message repeats the run.
    pub fn run(mut self) -> Report {
        while let Some(Reverse((at, order))) = self.queue.pop() {
            self.now = at;
            self.report.events += 1;
            let Some(due) = self.due.remove(&order) else { continue };
            self.happen(due);
            self.check(self.report.events < EVENTS_MAX && self.now < HORIZON, "the run ends");
        }
        self.check_end();
        self.report.elapsed = self.now;
        self.report
    }

    pub(crate) fn instant(&self) -> Instant {
        self.start + self.now
    }

    pub(crate) fn time(&self) -> Now {
        Now { instant: self.instant(), utc: UTC_START + self.now.as_secs() }
    }

    pub(crate) fn since_start(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.start)
    }

    pub(crate) fn after(&mut self, delay: Duration, due: Due) {
        self.at(self.now + delay, due);
    }

    pub(crate) fn at(&mut self, at: Duration, due: Due) {
        self.order += 1;
        self.queue.push(Reverse((at.max(self.now), self.order)));
        self.due.insert(self.order, due);
    }

    /// How long something small is on its way.
    pub(crate) fn delay(&mut self) -> Duration {
        let link = self.scenario.link;
        let [least, most] = [link.delay.saturating_sub(link.jitter), link.delay + link.jitter];
        Duration::from_micros(self.rng.u64(least.as_micros() as u64..=most.as_micros() as u64))
    }

    /// How long it takes to notice that a peer is gone.
    pub(crate) fn detection(&mut self) -> Duration {
        Duration::from_millis(self.rng.u64(500..=3_500))
    }

    pub(crate) fn check(&self, holds: bool, promise: &str) {
        assert!(
            holds,
            "broken promise: {promise}, at {:?}\nrepeat: make sim SEED={:#x}\n{:#?}",
            self.now, self.scenario.seed, self.scenario
        );
    }

    /// Opens a stream between two ends; the other side learns of it after a delay.
    pub(crate) fn open_stream(&mut self, from: End, to: End) -> usize {
        let index = self.streams.len();
        self.streams.push(SimStream::new(from, to, self.scenario.link, &mut self.rng));
        self.put(index, 1, Parcel::Opened);
        index
    }

    /// Sends a frame from `side` of a stream.
    pub(crate) fn send(&mut self, stream: usize, side: usize, frame: &Frame) {
        let other = 1 - side;
        let Self { streams, scenario, rng, .. } = self;
        let bytes = streams[stream].transmit(other, frame, &scenario.faults, rng);
        // Delivered in two pieces now and then: readers must not care where packets end.
        let cut = if self.rng.bool() { self.rng.usize(..=bytes.len()) } else { 0 };
        let (first, second) = bytes.split_at(cut);
        for bytes in [first, second] {
            if !bytes.is_empty() {
                self.put(stream, other, Parcel::Bytes(bytes.to_vec()));
            }
        }
    }

    /// Ends `side` of a stream: what was sent before still arrives, then the other side learns of the end.
    pub(crate) fn close(&mut self, stream: usize, side: usize, failure: Failure) {
        if failure.code != FailureCode::Done {
            let faultless = Frame::Failed(failure);
            let mut bytes = Vec::new();
            faultless.encode(&mut bytes);
            self.put(stream, 1 - side, Parcel::Bytes(bytes));
        }
        self.streams[stream].open[side] = false;
        let failure = Failure::new(FailureCode::Done, "the other side finished the stream");
        self.put(stream, 1 - side, Parcel::Closed(failure));
    }

    /// Something goes on its way to that side of a stream.
    fn put(&mut self, stream: usize, side: usize, parcel: Parcel) {
        let bytes = parcel.bytes();
        match self.streams[stream].links[side].push(self.now, parcel, bytes) {
            Fate::Arrives { at } => self.at(at, Due::Arrive { stream, side }),
            fate => self.check(false, &format!("a stream's link takes what it is given: {fate:?}")),
        }
    }

    fn arrived(&mut self, stream: usize, side: usize) {
        match self.streams[stream].links[side].poll(self.now) {
            Some(Parcel::Opened) => self.stream_opened(stream),
            Some(Parcel::Bytes(bytes)) => self.bytes_arrived(stream, side, &bytes),
            Some(Parcel::Closed(failure)) => self.stream_closed(stream, side, failure),
            None => self.check(false, "a link brings what it said, when it said"),
        }
    }

    fn happen(&mut self, due: Due) {
        if let Some((peer, until)) = self.frozen(&due) {
            self.check(self.peers[peer].alive, "only the living freeze");
            return self.at(until, due);
        }
        match due {
            Due::Arrive { stream, side } => self.arrived(stream, side),
            Due::Broken { stream, side, failure } => self.stream_closed(stream, side, failure),
            Due::Dialed { peer, dial, result } => self.dialed(peer, dial, result),
            Due::Replied { peer, slot, generation, reply } => self.replied(peer, slot, generation, reply),
            Due::Wake(End::Peer(peer)) => self.wake_peer(peer),
            Due::Wake(End::Client(client, _)) => self.wake_client(client),
            Due::Mend(client) => self.mend(client),
            Due::Kill(peer) => self.kill(peer),
            Due::LoseEngine(peer) => self.lose_engine(peer),
            Due::Freeze(peer, time) => {
                // Never shortened: what waits for the thaw keeps its order.
                let until = self.peers[peer].frozen_until.max(self.now + time);
                self.peers[peer].frozen_until = until;
            }
            Due::Cut(draw) => self.cut(draw),
        }
    }

    /// What happens to a frozen peer happens when it thaws.
    fn frozen(&self, due: &Due) -> Option<(usize, Duration)> {
        let peer = match due {
            Due::Arrive { stream, side } | Due::Broken { stream, side, .. } => {
                match self.streams[*stream].ends[*side] {
                    End::Peer(peer) => peer,
                    End::Client(..) => return None,
                }
            }
            Due::Dialed { peer, .. } | Due::Replied { peer, .. } | Due::Wake(End::Peer(peer)) => *peer,
            _ => return None,
        };
        let until = self.peers[peer].frozen_until;
        (self.peers[peer].alive && until > self.now).then_some((peer, until))
    }

    fn bytes_arrived(&mut self, stream: usize, side: usize, bytes: &[u8]) {
        if !self.streams[stream].open[side] {
            return;
        }
        self.streams[stream].readers[side].push(bytes);
        while self.streams[stream].open[side] {
            match self.streams[stream].readers[side].next() {
                Ok(None) => break,
                Ok(Some(frame)) => match self.streams[stream].ends[side] {
                    End::Peer(peer) => self.peer_frame(peer, stream, frame),
                    End::Client(client, hop) => self.client_frame(client, hop, stream, frame),
                },
                Err(error) => {
                    let failure = Failure::new(FailureCode::Protocol, error);
                    self.close(stream, side, failure.clone());
                    self.deliver_closed(stream, side, failure);
                }
            }
        }
    }

    fn stream_closed(&mut self, stream: usize, side: usize, failure: Failure) {
        if std::mem::replace(&mut self.streams[stream].open[side], false) {
            self.deliver_closed(stream, side, failure);
        }
    }

    fn deliver_closed(&mut self, stream: usize, side: usize, failure: Failure) {
        match self.streams[stream].ends[side] {
            End::Peer(peer) => self.peer_stream_closed(peer, stream, failure),
            End::Client(client, hop) => self.client_stream_closed(client, hop, stream, failure),
        }
    }

    /// Both sides learn, each in its time, that a stream or its connection broke.
    pub(crate) fn break_stream(&mut self, stream: usize) {
        for side in 0..2 {
            if self.streams[stream].open[side] {
                let detection = self.detection();
                let failure = Failure::new(FailureCode::PeerLost, "the connection broke");
                self.after(detection, Due::Broken { stream, side, failure });
            }
        }
    }

    fn cut(&mut self, draw: u64) {
        let open: Vec<_> = (0..self.streams.len()).filter(|&s| self.streams[s].open == [true, true]).collect();
        if !open.is_empty() {
            self.break_stream(open[draw as usize % open.len()]);
        }
    }

    fn schedule_start(&mut self) {
        for client in 0..self.clients.len() {
            let at = self.scenario.start + Duration::from_millis(self.rng.u64(0..1_000));
            self.at(at, Due::Wake(End::Client(client, 0)));
        }
    }

    fn schedule_faults(&mut self) {
        let faults = self.scenario.faults;
        let when = |rng: &mut fastrand::Rng| Duration::from_millis(rng.u64(0..8_000));
        for _ in 0..faults.kills {
            let (at, peer) = (when(&mut self.rng), self.rng.usize(..self.peers.len()));
            self.at(at, Due::Kill(peer));
        }
        for _ in 0..faults.engine_losses {
            let (at, peer) = (when(&mut self.rng), self.rng.usize(..self.peers.len()));
            self.at(at, Due::LoseEngine(peer));
        }
        for _ in 0..faults.freezes {
            let (at, peer) = (when(&mut self.rng), self.rng.usize(..self.peers.len()));
            let time = Duration::from_millis(self.rng.u64(100..5_000));
            self.at(at, Due::Freeze(peer, time));
        }
        for _ in 0..faults.cuts {
            let (at, draw) = (when(&mut self.rng), self.rng.u64(..));
            self.at(at, Due::Cut(draw));
        }
    }

    fn check_end(&mut self) {
        for client in 0..self.clients.len() {
            self.check(self.clients[client].is_over(), "every session ends, well or with an error");
        }
        for peer in 0..self.peers.len() {
            let sim = &self.peers[peer];
            let status = sim.machine.status();
            self.report.stale_frames += status.stale_frames;
            if sim.alive {
                let left = (status.streams, status.parked, status.sessions, status.dials);
                self.check(left == (0, 0, 0, 0), &format!("peer {peer} holds nothing in the end: {status:?}"));
                self.check(status.free_caches == self.scenario.caches, "every cache is free in the end");
            }
        }
    }
}
