//! A middle stage at a peer, and what its streams bring.

use std::time::{Duration, Instant};

use potluck_core::{
    CacheId, LayerRange, ModelId, PeerId, Rows, SecretKey, SessionId, SessionKey, StageCommand, StageReply, StageShape,
    StageSpec, Tree,
};
use potluck_grant::{Caveats, Gate, Member, Role, Root};
use potluck_peer::{DialId, Effect, Event, Now, Peer, PeerConfig, StageSlot, StreamId};
use potluck_wire::{
    Codec, Failure, FailureCode, Frame, HopOpen, NextHop, OpenSession, PeerAddress, PreviousHop, StepFrame,
};

/// Sessions that the stage has room for.
pub(crate) const CACHES: u16 = 3;
pub(crate) const WIDTH: u32 = 4;
pub(crate) const UTC: u64 = 1_800_000_000;

pub(crate) fn root() -> Root {
    Root::from_bytes(&[1; 32])
}

pub(crate) fn id(n: u8) -> PeerId {
    SecretKey::from_bytes(&[n; 32]).peer_id()
}

pub(crate) fn grant(n: u8) -> Vec<u8> {
    root().grant(id(n), UTC + 1_000).unwrap().into_bytes()
}

pub(crate) fn member(n: u8) -> Member {
    Gate::new(root().public()).check(&grant(n), id(n), UTC).unwrap()
}

pub(crate) fn spec() -> StageSpec {
    let layers = LayerRange::new(2, 4).unwrap();
    StageSpec { model: ModelId::from_bytes([5; 32]), layers, head: false, tail: false }
}

/// A middle stage at peer 2, between peers 1 and 3; clients are 9 and 8.
pub(crate) struct Test {
    pub(crate) peer: Peer,
    pub(crate) start: Instant,
    pub(crate) seconds: u64,
}

impl Test {
    pub(crate) fn new() -> Self {
        let config = PeerConfig {
            id: id(2),
            sessions_per_client: PeerConfig::fair_share(CACHES),
            idle_max: Duration::from_secs(60),
            open_timeout: Duration::from_secs(10),
        };
        let mut peer = Peer::new(config, Gate::new(root().public()));
        peer.add_stage(StageShape {
            spec: spec(),
            width: WIDTH,
            vocabulary: 16,
            caches: CACHES,
            context: 64,
            cache_bytes_per_position: 1,
            weight_bytes: 1,
            exact: false,
        });
        Self { peer, start: Instant::now(), seconds: 0 }
    }

    pub(crate) fn tell(&mut self, event: Event) -> Vec<Effect> {
        let now = Now { instant: self.start + Duration::from_secs(self.seconds), utc: UTC + self.seconds };
        self.peer.handle(now, event);
        std::iter::from_fn(|| self.peer.poll()).collect()
    }

    pub(crate) fn stream(&mut self, stream: u64, from: u8, first: Frame) -> Vec<Effect> {
        self.tell(Event::StreamOpened { stream: StreamId(stream), from: member(from) });
        self.frame(stream, first)
    }

    pub(crate) fn frame(&mut self, stream: u64, frame: Frame) -> Vec<Effect> {
        self.tell(Event::Frame { stream: StreamId(stream), frame })
    }

    /// Opens a session of client 9 on stream 1, hop in from peer 1 on stream 2, hop out on stream 3.
    pub(crate) fn ready(&mut self) {
        self.stream(1, 9, Frame::Open(Box::new(open())));
        self.stream(2, 1, Frame::HopOpen(hop(0)));
        self.tell(Event::Stage {
            stage: StageSlot(0),
            reply: StageReply::Opened { cache: CacheId(0), result: Ok(()) },
        });
        self.tell(Event::Dialed { dial: DialId(0), result: Ok(StreamId(3)) });
        let effects = self.frame(3, Frame::HopReady);
        assert!(sends(&effects, 1, &Frame::Ready), "{effects:?}");
    }

    pub(crate) fn assert_empty(&self) {
        let status = self.peer.status();
        assert_eq!((status.streams, status.sessions, status.dials, status.steps_waiting), (0, 0, 0, 0), "{status:?}");
        assert_eq!(status.free_caches, 3);
        assert_eq!(self.peer.poll_timeout(), None);
    }
}

pub(crate) fn open() -> OpenSession {
    let address = PeerAddress { peer: id(3), addresses: vec![], relay: None };
    OpenSession {
        session: SessionId::from_bytes([4; 16]),
        epoch: 0,
        stage: spec(),
        positions: 32,
        previous: PreviousHop::Peer(id(1)),
        next: NextHop::Peer { address, grant: grant(3) },
        codec_in: Codec::F32,
        codec_out: Codec::F32,
        prefix: None,
        idle_ms: 30_000,
    }
}

pub(crate) fn hop(epoch: u32) -> HopOpen {
    HopOpen { session: SessionKey { client: id(9), id: SessionId::from_bytes([4; 16]) }, epoch }
}

pub(crate) fn step(sequence: u32, epoch: u32, start: u32, count: u16) -> StepFrame {
    let mut payload = Vec::new();
    Codec::F32.encode(&vec![1.0; usize::from(count) * WIDTH as usize], WIDTH as usize, &mut payload).unwrap();
    StepFrame {
        sequence,
        epoch,
        start,
        count,
        rows: Rows::Last,
        top: 4,
        codec: Codec::F32,
        payload,
        pad: false,
        tree: Tree::chain(),
        fence: false,
        skipped: false,
    }
}

pub(crate) fn sends(effects: &[Effect], on: u64, what: &Frame) -> bool {
    effects.iter().any(|e| matches!(e, Effect::Send { stream, frame } if *stream == StreamId(on) && frame == what))
}

pub(crate) fn closes(effects: &[Effect], on: u64) -> Option<Failure> {
    effects.iter().find_map(|effect| match effect {
        Effect::Close { stream, failure } if *stream == StreamId(on) => Some(failure.clone()),
        _ => None,
    })
}

pub(crate) fn runs(effects: &[Effect]) -> usize {
    let forwards = |effect: &&Effect| matches!(effect, Effect::Stage { command: StageCommand::Forward { .. }, .. });
    effects.iter().filter(forwards).count()
}

/// The session ends with this code on each of its streams, and nothing of it is left.
pub(crate) fn ends_with(mut test: Test, frame: StepFrame, code: FailureCode) {
    let effects = test.frame(2, Frame::Step(frame));
    for stream in [1, 2, 3] {
        let failure = closes(&effects, stream).unwrap_or_else(|| panic!("stream {stream} stays open: {effects:?}"));
        assert_eq!(failure.code, code, "{failure:?}");
    }
    let closed = |e: &Effect| matches!(e, Effect::Stage { command: StageCommand::Close { cache: CacheId(0) }, .. });
    assert!(effects.iter().any(closed), "the cache stays open: {effects:?}");
    test.assert_empty();
}

pub(crate) fn ready() -> Test {
    let mut test = Test::new();
    test.ready();
    test
}

/// A member by a grant that says this.
pub(crate) fn member_as(n: u8, role: Role, caveats: Caveats) -> Member {
    let caveats = Caveats { role: Some(role), until: Some(UTC + 1_000), ..caveats };
    let grant = root().grant_as(id(n), &caveats).unwrap().into_bytes();
    Gate::new(root().public()).check(&grant, id(n), UTC).unwrap()
}
