//! Real endpoints on loopback: a chain of toy stages answers as the uncut model does, and nobody else is served.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use potluck_chain::{Deadlines, Hop, OwnStage, RemoteStage, SessionConfig, SessionError, Submission};
use potluck_core::{CacheId, LayerRange, Logits, Rows, SecretKey, SessionId, SessionKey, Stage as _, StageReply};
use potluck_grant::{Gate, Root};
use potluck_net::{
    Bind, Identity, Lan, NetDeadlines, NetError, Node, NodeConfig, OwnPort, Serving, SessionEvent, StagePort, serve,
};
use potluck_peer::{Peer, PeerConfig};
use potluck_sim::toy::{self, ToyStage};
use potluck_wire::{Codec, FailureCode};
use tokio::{net::UdpSocket, sync::mpsc};

const LAYERS: u32 = 6;
const CONTEXT: u32 = 256;

fn root() -> Root {
    Root::from_bytes(&[7; 32])
}

async fn node_of(key: u8, grants: &Root, gate: Gate) -> Node {
    let key = SecretKey::from_bytes(&[key; 32]);
    let grant = grants.grant(key.peer_id(), 4_000_000_000).unwrap().into_bytes();
    let identity = Identity { key, grant, gate };
    let deadlines = NetDeadlines::default();
    Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines }).await.unwrap()
}

async fn node(key: u8) -> Node {
    node_of(key, &root(), Gate::new(root().public())).await
}

/// A toy stage behind channels, as an engine's process is.
fn port(mut stage: ToyStage) -> StagePort {
    let (commands, mut asked) = mpsc::channel(64);
    let (answered, replies) = mpsc::channel::<StageReply>(64);
    tokio::spawn(async move {
        while let Some(command) = asked.recv().await {
            let command: potluck_core::StageCommand = command;
            if let Some(reply) = command.apply(&mut stage) {
                let _ = answered.send(reply).await;
            }
        }
    });
    StagePort { commands, replies }
}

struct Chain {
    route: Vec<Hop>,
    own: Vec<OwnPort>,
    serving: Vec<Serving>,
    nodes: Vec<Node>,
}

/// `stages` toy stages, each at a peer of its own; with `own_ends` the first and the last at the client.
async fn chain(stages: usize, own_ends: bool) -> Chain {
    let ranges = LayerRange::new(0, LAYERS).unwrap().split(stages).unwrap();
    let mut chain = Chain { route: vec![], own: vec![], serving: vec![], nodes: vec![] };
    for (hop, range) in ranges.into_iter().enumerate() {
        let spec = toy::spec(range, LAYERS);
        let stage = ToyStage::new(spec, 8, CONTEXT);
        if own_ends && (hop == 0 || hop + 1 == stages) {
            let StagePort { commands, replies } = port(stage);
            chain.own.push(OwnPort { hop, commands, replies });
            chain.route.push(Hop::Own(OwnStage { spec, cache: CacheId(0) }));
            continue;
        }
        let node = node(hop as u8 + 10).await;
        let config = PeerConfig {
            id: node.id(),
            sessions_per_client: 8,
            idle_max: Duration::from_secs(60),
            open_timeout: Duration::from_secs(10),
        };
        let mut machine = Peer::new(config, Gate::new(root().public()));
        machine.add_stage(stage.shape().clone());
        chain.route.push(Hop::Remote(RemoteStage { spec, address: node.address(), grant: vec![], speed: None }));
        chain.serving.push(serve(node.clone(), machine, vec![port(stage)]));
        chain.nodes.push(node);
    }
    chain
}

fn config(client: &Node, route: Vec<Hop>, session: u8, codec: Codec) -> SessionConfig {
    SessionConfig {
        key: SessionKey { client: client.id(), id: SessionId::from_bytes([session; 16]) },
        epoch: 0,
        positions: CONTEXT,
        width: toy::WIDTH,
        vocabulary: toy::VOCABULARY,
        codec,
        codec_otherwise: None,
        route,
        prefix: None,
        pad: false,
        exact: false,
        deadlines: Deadlines::default(),
    }
}

async fn answer(session: &mut potluck_net::Session) -> Result<u32, SessionError> {
    loop {
        if let SessionEvent::Answer(answer) = session.next().await?
            && let Some(Logits::Top { largest, .. }) = answer.rows.last()
        {
            return Ok(largest[0].0);
        }
    }
}

/// Greedy tokens after a prompt sent in chunks.
async fn greedy(session: &mut potluck_net::Session, prompt: &[u32], count: usize) -> Result<Vec<u32>, SessionError> {
    assert!(matches!(session.next().await?, SessionEvent::Ready));
    let mut tokens = prompt.to_vec();
    let chunks: Vec<_> = prompt.chunks(5).collect();
    for (index, chunk) in chunks.iter().enumerate() {
        let rows = if index + 1 == chunks.len() { Rows::Last } else { Rows::None };
        session.submit(Submission::chain(5 * index as u32, chunk.to_vec(), rows, 4))?;
    }
    for _ in 0..count {
        let token = answer(session).await?;
        session.submit(Submission::chain(tokens.len() as u32, vec![token], Rows::Last, 4))?;
        tokens.push(token);
    }
    Ok(tokens.split_off(prompt.len()))
}

fn expected(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    (0..count).for_each(|_| tokens.push(toy::greedy(&tokens, LAYERS)));
    tokens.split_off(prompt.len())
}

/// A way to `to` on which every `nth` packet is lost, either way, once it is told to lose any.
async fn losing(to: SocketAddr, nth: u64, loses: Arc<AtomicBool>) -> SocketAddr {
    let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let at = near.local_addr().unwrap();
    let is_lost = move |n: &mut u64| {
        *n += u64::from(loses.load(Ordering::Relaxed));
        *n % nth == 1
    };
    tokio::spawn(async move {
        let (mut ways, mut packet, mut n) = (HashMap::<SocketAddr, Arc<UdpSocket>>::new(), vec![0; 65_536], 0);
        loop {
            let Ok((len, from)) = near.recv_from(&mut packet).await else { continue };
            if let Entry::Vacant(new) = ways.entry(from) {
                let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                far.connect(to).await.unwrap();
                let (near, back, is_lost) = (near.clone(), far.clone(), is_lost.clone());
                tokio::spawn(async move {
                    let (mut packet, mut n) = (vec![0; 65_536], 0);
                    loop {
                        let Ok(len) = back.recv(&mut packet).await else { continue };
                        if !is_lost(&mut n) {
                            let _ = near.send_to(&packet[..len], from).await;
                        }
                    }
                });
                new.insert(far);
            }
            if !is_lost(&mut n) {
                let _ = ways[&from].send(&packet[..len]).await;
            }
        }
    });
    at
}

#[tokio::test]
async fn where_packets_are_lost_nothing_changes_and_echoes_stand_in() {
    let Chain { mut route, own, serving: _serving, nodes: _nodes } = chain(4, true).await;
    let loses = Arc::new(AtomicBool::new(false));
    for hop in &mut route {
        if let Hop::Remote(stage) = hop {
            let to = stage.address.addresses[0].parse().unwrap();
            stage.address.addresses = vec![losing(to, 6, loses.clone()).await.to_string()];
        }
    }
    let client = node(1).await;
    let mut session = client.open(config(&client, route, 1, Codec::F32), own).await.unwrap();
    loses.store(true, Ordering::Relaxed);
    let tokens = greedy(&mut session, &PROMPT, 240).await.unwrap();
    assert_eq!(tokens, expected(&PROMPT, 240));
    assert!(session.echoed_bytes() > 0, "{:?}", session.paths());
}

const PROMPT: [u32; 12] = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

#[tokio::test]
async fn a_chain_answers_as_the_uncut_model() {
    for (stages, own_ends, codec, pad) in [
        (1, false, Codec::F32, false),
        (1, false, Codec::F32, true),
        (3, false, Codec::F16, false),
        (3, false, Codec::F16, true),
        (3, true, Codec::F32, false),
        (3, true, Codec::F32, true),
    ] {
        let chain = chain(stages, own_ends).await;
        let client = node(99).await;
        let config = SessionConfig { pad, ..config(&client, chain.route, 1, codec) };
        let mut session = client.open(config, chain.own).await.unwrap();
        let tokens = greedy(&mut session, &PROMPT, 40).await.unwrap();
        assert_eq!(tokens, expected(&PROMPT, 40), "{stages} {own_ends} {pad}");
        let (written, read) = session.bytes();
        assert!(written > 0 && read > 0);
        // Each answer of the tail, and there are 40 at least, is as long as any other.
        assert_eq!(read > 40 * 1_024, pad && !own_ends, "{read} bytes came");
        session.close();
        for mut serving in chain.serving {
            serving.status.wait_for(|status| status.sessions == 0 && status.streams == 0).await.unwrap();
        }
    }
}

#[tokio::test]
async fn eight_sessions_at_once_do_not_mix() {
    let chain = chain(3, false).await;
    let client = node(99).await;
    let mut running = tokio::task::JoinSet::new();
    for number in 0..8u8 {
        let (client, config) = (client.clone(), config(&client, chain.route.clone(), number, Codec::F16));
        running.spawn(async move {
            let prompt: Vec<u32> = (0..number as u32 * 3 + 1).map(|i| (i * 7 + u32::from(number)) % 64).collect();
            let mut session = client.open(config, vec![]).await.unwrap();
            assert_eq!(greedy(&mut session, &prompt, 24).await.unwrap(), expected(&prompt, 24), "session {number}");
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    for mut serving in chain.serving {
        let status = *serving.status.wait_for(|status| status.sessions == 0 && status.streams == 0).await.unwrap();
        assert_eq!((status.free_caches, status.failed_sessions), (8, 0));
    }
}

#[tokio::test]
async fn a_stranger_learns_a_code_and_nothing_else() {
    let chain = chain(1, false).await;
    let gate = Gate::new(root().public());
    let stranger = node_of(66, &Root::from_bytes(&[8; 32]), gate).await;
    let error = stranger.connect(&chain.nodes[0].address()).await.unwrap_err();
    assert!(matches!(error, NetError::Refused { code: FailureCode::NotAdmitted, .. }), "{error}");
    let opened = stranger.open(config(&stranger, chain.route.clone(), 1, Codec::F32), vec![]).await;
    assert_eq!(opened.unwrap_err().code(), "not_admitted");
    assert_eq!(chain.serving[0].status.borrow().streams, 0);
}

#[tokio::test]
async fn nothing_is_passed_to_a_peer_of_another_swarm() {
    let other = Root::from_bytes(&[8; 32]);
    // It would let us in, but shows a grant of its own swarm.
    let false_peer = node_of(11, &other, Gate::new(root().public())).await;
    let machine = Peer::new(
        PeerConfig {
            id: false_peer.id(),
            sessions_per_client: 1,
            idle_max: Duration::from_secs(1),
            open_timeout: Duration::from_secs(1),
        },
        Gate::new(root().public()),
    );
    let _serving = serve(false_peer.clone(), machine, vec![]);
    let client = node(99).await;
    let error = client.connect(&false_peer.address()).await.unwrap_err();
    assert!(matches!(error, NetError::NotMember { .. }), "{error}");
}

#[tokio::test]
async fn a_peer_that_stops_ends_its_sessions_with_a_reason() {
    let mut chain = chain(3, false).await;
    let client = node(99).await;
    let mut session = client.open(config(&client, chain.route, 1, Codec::F32), vec![]).await.unwrap();
    greedy(&mut session, &PROMPT, 3).await.unwrap();
    let _ = answer(&mut session).await;
    chain.serving.remove(1).stop().await;
    let error = session.next().await.unwrap_err();
    assert!(matches!(&error, SessionError::Peer { failure, .. } if failure.code == FailureCode::Leaving), "{error}");
    for mut serving in chain.serving {
        serving.status.wait_for(|status| status.sessions == 0 && status.streams == 0).await.unwrap();
    }
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_a_typed_error() {
    let mut chain = chain(3, false).await;
    let gone = chain.nodes.remove(1);
    chain.serving.remove(1).stop().await;
    gone.close().await;
    let client = node(99).await;
    let error = client.open(config(&client, chain.route, 1, Codec::F32), vec![]).await.unwrap_err();
    assert!(matches!(error, SessionError::PeerLost { peer, .. } if peer == gone.id()), "{error}");
}
