//! A peer that is attacked, and an endpoint of its own that says to it what it likes.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{net::SocketAddr, time::Duration};

use iroh::{
    Endpoint, EndpointAddr, EndpointId, TransportAddr,
    endpoint::{Connection, ConnectionError, RecvStream, RelayMode, SendStream, presets},
};
use potluck_chain::{Deadlines, Hop, RemoteStage, SessionConfig};
use potluck_core::{Rows, SessionId, SessionKey, StageSpec, Tree};
use potluck_net::{NetDeadlines, Node, Serving};
use potluck_sim::toy;
use potluck_wire::{
    ALPN, Codec, CodecSet, FailureCode, Frame, FrameReader, Hello, NextHop, OpenSession, PeerAddress, PreviousHop,
    StepFrame, TEXT_BYTES_MAX, answer_frame_bytes_max,
};

use crate::swarm::{CONTEXT, FAR, grant_of, key, lend, node, root, spec};

pub(crate) const LAYERS: u32 = 2;

/// Longest that any of these ends may take: the peer's own deadlines are far shorter.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A peer that serves a whole toy model, with short deadlines for strangers.
pub(crate) struct Victim {
    pub(crate) node: Node,
    pub(crate) serving: Serving,
}

impl Victim {
    pub(crate) async fn start() -> Self {
        let deadlines = NetDeadlines { greet: Duration::from_millis(400), ..NetDeadlines::default() };
        let node = node(10, deadlines).await;
        let serving = lend(&node, whole(), Duration::from_millis(500));
        Self { node, serving }
    }

    /// Still serves, and keeps nothing of what was done to it.
    pub(crate) async fn is_unharmed(&mut self) {
        let clean = |status: &potluck_peer::PeerStatus| status.streams == 0 && status.sessions == 0;
        let waited = tokio::time::timeout(PATIENCE, self.serving.status.wait_for(clean)).await;
        assert_eq!(waited.expect("everything is let go of").unwrap().free_caches, 8);
        let member = Attacker::member(self, 77).await;
        let mut stream = member.stream().await;
        stream.send(&open(1, 0)).await;
        assert_eq!(stream.frame().await, Frame::Ready);
        stream.send(&step(0, 0, 0)).await;
        assert!(matches!(stream.frame().await, Frame::Answer(_)));
        drop(stream);
        let waited = tokio::time::timeout(PATIENCE, self.serving.status.wait_for(clean)).await;
        waited.expect("and of the session").unwrap();
    }
}

pub(crate) fn whole() -> StageSpec {
    spec(0, LAYERS, LAYERS)
}

/// An endpoint that keeps no rules.
pub(crate) struct Attacker {
    pub(crate) endpoint: Endpoint,
    pub(crate) connection: Connection,
}

impl Attacker {
    /// Connected, and not a word said.
    pub(crate) async fn connect(victim: &Victim, n: u8) -> Self {
        Self::try_connect(&victim.node.address(), n).await.unwrap()
    }

    /// The same, if the handshake comes to its end.
    pub(crate) async fn try_connect(address: &PeerAddress, n: u8) -> Option<Self> {
        let endpoint = endpoint(n, vec![]).await;
        let id = EndpointId::from_bytes(address.peer.as_bytes()).unwrap();
        let ips = address.addresses.iter().map(|text| TransportAddr::Ip(text.parse().unwrap()));
        let connection = endpoint.connect(EndpointAddr::from_parts(id, ips), ALPN).await.ok()?;
        Some(Self { endpoint, connection })
    }

    /// Greeted with that grant; none where it is not let in.
    pub(crate) async fn with_grant(victim: &Victim, n: u8, grant: Vec<u8>) -> Option<Self> {
        let attacker = Self::connect(victim, n).await;
        let mut stream = attacker.stream().await;
        stream.send(&hello(grant)).await;
        match stream.next().await {
            Some(Frame::Welcome(_)) => Some(attacker),
            _ => None,
        }
    }

    /// Greeted, with a grant that holds: a member that turns bad.
    pub(crate) async fn member(victim: &Victim, n: u8) -> Self {
        Self::member_until(victim, n, FAR).await
    }

    pub(crate) async fn member_until(victim: &Victim, n: u8, expires: u64) -> Self {
        let attacker = Self::connect(victim, n).await;
        let mut stream = attacker.stream().await;
        stream.send(&hello(grant_of(&root(), key(n).peer_id(), expires))).await;
        assert!(matches!(stream.frame().await, Frame::Welcome(_)));
        attacker
    }

    pub(crate) async fn stream(&self) -> Raw {
        let (send, receive) = self.connection.open_bi().await.unwrap();
        Raw {
            send,
            receive,
            reader: FrameReader::new(answer_frame_bytes_max(toy::WIDTH, toy::VOCABULARY).max(1 << 16)),
        }
    }

    /// The code with which the victim closes the connection.
    pub(crate) async fn closed(&self) -> FailureCode {
        match tokio::time::timeout(PATIENCE, self.connection.closed()).await.expect("it is closed in time") {
            ConnectionError::ApplicationClosed(close) => {
                FailureCode::from_number(close.error_code.into_inner()).expect("with a code of ours")
            }
            other => panic!("closed otherwise: {other}"),
        }
    }
}

pub(crate) struct Raw {
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
    pub(crate) reader: FrameReader,
}

impl Raw {
    pub(crate) async fn send(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.send.write_all(&bytes).await.unwrap();
    }

    /// What the victim says next.
    pub(crate) async fn frame(&mut self) -> Frame {
        self.next().await.expect("the victim says something")
    }

    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.reader.next().unwrap() {
                return Some(frame);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.receive.read_chunk(1 << 16)).await;
            self.reader.push(&chunk.expect("something comes in time").ok()??);
        }
    }

    /// The code with which the victim ends this stream, and that it does end it.
    pub(crate) async fn failed(&mut self) -> FailureCode {
        loop {
            match self.frame().await {
                Frame::Failed(failure) => {
                    assert!(failure.detail.len() <= TEXT_BYTES_MAX);
                    assert_eq!(self.next().await, None, "the last frame is the last");
                    return failure.code;
                }
                Frame::Answer(_) | Frame::Credit { .. } | Frame::Ready => {}
                other => panic!("a {} frame", other.kind()),
            }
        }
    }
}

/// A session of that client over one peer that has the whole model.
pub(crate) fn session_over(client: &Node, address: PeerAddress) -> SessionConfig {
    SessionConfig {
        key: SessionKey { client: client.id(), id: SessionId::from_bytes([1; 16]) },
        epoch: 0,
        positions: CONTEXT,
        width: toy::WIDTH,
        vocabulary: toy::VOCABULARY,
        codec: Codec::F32,
        codec_otherwise: None,
        route: vec![Hop::Remote(RemoteStage { spec: whole(), address, grant: Vec::new(), speed: None })],
        prefix: None,
        pad: false,
        exact: false,
        deadlines: Deadlines { step: Duration::from_secs(10), ..Deadlines::default() },
    }
}

/// An endpoint with that key, which keeps no rules.
pub(crate) async fn endpoint(n: u8, alpns: Vec<Vec<u8>>) -> Endpoint {
    Endpoint::builder(presets::Minimal)
        .secret_key(iroh::SecretKey::from_bytes(&key(n).to_bytes()))
        .alpns(alpns)
        .relay_mode(RelayMode::Disabled)
        .bind_addr(SocketAddr::from(([127, 0, 0, 1], 0)))
        .unwrap()
        .bind()
        .await
        .unwrap()
}

pub(crate) fn hello(grant: Vec<u8>) -> Frame {
    let (version_min, version_max, features) = (1, 1, 0);
    Frame::Hello(Hello { version_min, version_max, features, codecs: CodecSet::all(), grant, agent: "raw".into() })
}

pub(crate) fn open(session: u8, epoch: u32) -> Frame {
    Frame::Open(Box::new(OpenSession {
        session: SessionId::from_bytes([session; 16]),
        epoch,
        stage: whole(),
        positions: CONTEXT,
        previous: PreviousHop::Client,
        next: NextHop::Client,
        codec_in: Codec::Tokens,
        codec_out: Codec::F32,
        prefix: None,
        idle_ms: 60_000,
    }))
}

/// One token at position `start`.
pub(crate) fn step(sequence: u32, epoch: u32, start: u32) -> Frame {
    let payload = Codec::encode_tokens(&[start % toy::VOCABULARY]);
    Frame::Step(StepFrame {
        sequence,
        epoch,
        start,
        count: 1,
        rows: Rows::Last,
        top: 4,
        codec: Codec::Tokens,
        payload,
        pad: false,
        tree: Tree::chain(),
        fence: false,
        skipped: false,
    })
}
