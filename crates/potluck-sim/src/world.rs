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
    faults::{Fault, Part},
    peer::SimPeer,
    scenario::{Line, Report, Scenario},
    wire::{End, Parcel, SimStream},
};

/// Virtual UTC seconds at the start of a run.
pub(crate) const UTC_START: u64 = 1_800_000_000;

/// No session takes longer: what is not over by then hangs.
const HORIZON: Duration = Duration::from_secs(3_600);

/// Of an hour, the time in which sessions begin and things happen. What they lead to is over by its end.
const BUSY_MS: u64 = 50 * 60_000;

/// Events of one run: more means that something goes round in circles.
const EVENTS_MAX: usize = 2_000_000;

/// Of many sessions, for each.
const EVENTS_OF_A_SESSION: usize = 20_000;

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
        life: u64,
        dial: DialId,
        result: Result<usize, Failure>,
    },
    Replied {
        peer: usize,
        slot: StageSlot,
        generation: u64,
        reply: StageReply,
        way: Option<u64>,
    },
    /// The turn of a state of that peer's that is to be kept, or to come back.
    Moves {
        peer: usize,
        slot: StageSlot,
        generation: u64,
        way: u64,
    },
    Wake(End),
    /// That client looks for other peers.
    Mend(usize),
    /// That client looks for peers that stand by.
    StandBy(usize),
    Fault(Fault),
    /// That peer, which was killed, starts again.
    Restart(usize),
    /// An hour ends.
    Quiet,
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
    /// Who does not reach whom, and until when.
    pub(crate) parts: Vec<(Part, Duration)>,
    pub(crate) root: Root,
    /// What is told of what happens.
    tell: Option<fn(&str)>,
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
        let mut peers: Vec<_> = (0..scenario.peers).map(peer).collect();
        let skew = i64::from(scenario.faults.skew_s);
        peers.iter_mut().for_each(|peer| peer.skew_s = rng.i64(-skew..=skew));
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
            parts: Vec::new(),
            root,
            tell: None,
            report: Report::default(),
            scenario,
        };
        world.schedule_start();
        world.schedule_faults();
        world
    }

    /// The same run, which tells of every fault, loss, repair and end.
    #[must_use]
    pub fn telling(self, tell: fn(&str)) -> Self {
        Self { tell: Some(tell), ..self }
    }

    /// Tells what happens now, if anybody listens.
    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        if let Some(tell) = self.tell {
            tell(&format!("{:>9.3} s  {}", self.now.as_secs_f64(), what()));
        }
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
            self.happen(order, due);
            let events_max = EVENTS_MAX.max(EVENTS_OF_A_SESSION * self.clients.len());
            self.check(
                self.report.events < events_max && self.now < HORIZON + self.hour(self.scenario.hours),
                "the run ends",
            );
        }
        self.check_end();
        self.report.elapsed = self.now;
        self.report
    }

    pub(crate) fn instant(&self) -> Instant {
        self.start + self.now
    }

    /// What a peer's clock says.
    pub(crate) fn time_of(&self, peer: usize) -> Now {
        let utc = UTC_START + self.now.as_secs();
        Now { instant: self.instant(), utc: utc.saturating_add_signed(self.peers[peer].skew_s) }
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
        let Line { delay_ms, jitter_ms, .. } = self.scenario.line;
        Duration::from_micros(self.rng.u64(1_000 * delay_ms.saturating_sub(jitter_ms)..=1_000 * (delay_ms + jitter_ms)))
    }

    /// How long it takes to notice that a peer is gone.
    pub(crate) fn detection(&mut self) -> Duration {
        Duration::from_millis(self.rng.u64(500..=3_500))
    }

    pub(crate) fn check(&self, holds: bool, promise: &str) {
        if !holds {
            let scenario = serde_json::to_string(&self.scenario).unwrap_or_default();
            panic!(
                "broken promise: {promise}, at {:?}\nto repeat it, keep this and run make sim SCENARIO=FILE\n{scenario}",
                self.now
            );
        }
    }

    /// Opens a stream between two ends; the other side learns of it after a delay.
    pub(crate) fn open_stream(&mut self, from: End, to: End) -> usize {
        let index = self.streams.len();
        self.streams.push(SimStream::new(from, to, self.scenario.line, &mut self.rng));
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
            Some(Parcel::Closed(failure)) => self.stream_ended(stream, side, (failure, false)),
            None => self.check(false, "a link brings what it said, when it said"),
        }
    }

    fn happen(&mut self, order: u64, due: Due) {
        if let Some(until) = self.frozen(&due).or_else(|| self.held_back(&due)) {
            // What waited longer happens first, however often it has to wait.
            self.queue.push(Reverse((until, order)));
            self.due.insert(order, due);
            return;
        }
        match due {
            Due::Arrive { stream, side } => self.arrived(stream, side),
            Due::Broken { stream, side, failure } => self.stream_ended(stream, side, (failure, true)),
            Due::Dialed { peer, life, dial, result } => self.dialed(peer, life, dial, result),
            Due::Replied { peer, slot, generation, reply, way } => self.replied(peer, slot, (generation, way), reply),
            Due::Moves { peer, slot, generation, way } => self.moves(peer, slot, generation, way),
            Due::Wake(End::Peer(peer)) => self.wake_peer(peer),
            Due::Wake(End::Client(client)) => self.wake_client(client),
            Due::Mend(client) => self.mend(client),
            Due::StandBy(client) => self.stand_by(client),
            Due::Fault(fault) => {
                self.note(|| format!("{fault:?}"));
                self.strike(fault);
            }
            Due::Restart(peer) => {
                self.note(|| format!("peer {peer} is back"));
                self.restart(peer);
            }
            Due::Quiet => self.check_nothing_is_held(),
        }
    }

    /// What is said to somebody who cannot be reached arrives when that is over.
    fn held_back(&self, due: &Due) -> Option<Duration> {
        let Due::Arrive { stream, side } = due else { return None };
        let ends = self.streams[*stream].ends;
        self.parted(ends[1 - *side].node(), ends[*side].node())
    }

    /// What happens to a frozen peer happens when it thaws.
    fn frozen(&self, due: &Due) -> Option<Duration> {
        let peer = match due {
            Due::Arrive { stream, side } | Due::Broken { stream, side, .. } => {
                match self.streams[*stream].ends[*side] {
                    End::Peer(peer) => peer,
                    End::Client(_) => return None,
                }
            }
            Due::Dialed { peer, .. }
            | Due::Replied { peer, .. }
            | Due::Moves { peer, .. }
            | Due::Wake(End::Peer(peer)) => *peer,
            _ => return None,
        };
        let until = self.peers[peer].frozen_until;
        (self.peers[peer].alive && until > self.now).then_some(until)
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
                    End::Client(client) => self.client_frame(client, stream, frame),
                },
                Err(error) => {
                    let failure = Failure::new(FailureCode::Protocol, error);
                    self.close(stream, side, failure.clone());
                    self.deliver_end(stream, side, (failure, false));
                }
            }
        }
    }

    /// `broke_off`: with its connection, and without a word.
    fn stream_ended(&mut self, stream: usize, side: usize, (failure, broke_off): (Failure, bool)) {
        if std::mem::replace(&mut self.streams[stream].open[side], false) {
            self.deliver_end(stream, side, (failure, broke_off));
        }
    }

    fn deliver_end(&mut self, stream: usize, side: usize, how: (Failure, bool)) {
        match self.streams[stream].ends[side] {
            End::Peer(peer) => self.peer_stream_ended(peer, stream, how),
            End::Client(client) => self.client_stream_ended(client, stream, how),
        }
    }

    fn schedule_start(&mut self) {
        for client in 0..self.clients.len() {
            let at = Duration::from_millis(self.scenario.start_ms + self.rng.u64(0..1_000));
            let at = at + self.some_time();
            self.at(at, Due::Wake(End::Client(client)));
        }
        for hour in 1..=self.scenario.hours {
            self.at(self.hour(hour) - Duration::from_secs(1), Due::Quiet);
        }
    }

    pub(crate) fn hour(&self, hour: u32) -> Duration {
        hour * Duration::from_secs(3_600)
    }

    /// Where all is spread over hours: one of them, and a time of it that is not its end.
    pub(crate) fn some_time(&mut self) -> Duration {
        match self.scenario.hours {
            0 => Duration::ZERO,
            hours => {
                let hour = self.rng.u32(..hours);
                self.hour(hour) + Duration::from_millis(self.rng.u64(..BUSY_MS))
            }
        }
    }

    fn check_nothing_is_held(&self) {
        for peer in 0..self.peers.len() {
            let sim = &self.peers[peer];
            let status = sim.machine.status();
            if sim.alive {
                let left = (status.streams, status.parked, status.sessions, status.dials);
                self.check(left == (0, 0, 0, 0), &format!("peer {peer} holds nothing in the end: {status:?}"));
                self.check(status.free_caches == self.scenario.caches, "every cache is free in the end");
            }
        }
    }

    fn check_end(&mut self) {
        for client in 0..self.clients.len() {
            self.check(self.clients[client].is_over(), "every session ends, well or with an error");
        }
        let lost = self.report.failed_under_way;
        let all_survive = lost == 0 || !self.scenario.survives;
        self.check(all_survive, &format!("no session that is under way is lost: {:?}", self.report.failed));
        self.report.stale_frames = self.peers.iter().map(|peer| peer.machine.status().stale_frames).sum();
        self.check_nothing_is_held();
    }
}
