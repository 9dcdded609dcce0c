//! Attacks on sessions: others' and a stage's own bounds.

use std::time::Duration;

use potluck_core::{Rows, SessionId, SessionKey, StageSpec, Tree};
use potluck_net::NetDeadlines;
use potluck_sim::toy;
use potluck_wire::{
    ALPN, Bounds, Codec, CodecSet, FailureCode, Frame, FrameReader, HopOpen, NextHop, OpenSession, PeerAddress,
    PreviousHop, StepFrame, Welcome,
};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    attacker::{Attacker, Raw, Victim, endpoint, open, step},
    swarm::{CONTEXT, FAR, grant_of, key, lend, node, root, spec},
};

const SOON: Duration = Duration::from_secs(2);

/// A peer with one of two layers.
async fn half(start: u32) -> Victim {
    let node = node(10, NetDeadlines::default()).await;
    let serving = lend(&node, spec(start, start + 1, 2), Duration::from_secs(2));
    Victim { node, serving }
}

fn open_half(stage: StageSpec, previous: PreviousHop, next: NextHop) -> Frame {
    let (codec_in, positions) = (if stage.head { Codec::Tokens } else { Codec::F32 }, CONTEXT);
    Frame::Open(Box::new(OpenSession {
        session: SessionId::from_bytes([1; 16]),
        epoch: 0,
        stage,
        positions,
        previous,
        next,
        codec_in,
        codec_out: Codec::F32,
        prefix: None,
        idle_ms: 60_000,
    }))
}

/// A member whose session is open and ready.
async fn ready(victim: &Victim) -> (Attacker, Raw) {
    let attacker = Attacker::member(victim, 66).await;
    let mut stream = attacker.stream().await;
    stream.send(&open(1, 0)).await;
    assert_eq!(stream.frame().await, Frame::Ready);
    (attacker, stream)
}

/// What comes next that is no credit.
async fn said(stream: &mut Raw) -> Option<Frame> {
    loop {
        match timeout(SOON, stream.next()).await {
            Ok(Some(Frame::Credit { .. })) => {}
            Ok(said) => return said,
            Err(_) => return None,
        }
    }
}

pub(crate) async fn sends_steps_into_anothers_session() -> bool {
    let victim = half(1).await;
    // A client opens its session here; its steps come from the peer before.
    let client = Attacker::member(&victim, 66).await;
    let mut theirs = client.stream().await;
    let before = PreviousHop::Peer(key(70).peer_id());
    theirs.send(&open_half(spec(1, 2, 2), before, NextHop::Client)).await;
    let waits = |status: &potluck_peer::PeerStatus| status.sessions == 1;
    victim.serving.status.clone().wait_for(waits).await.unwrap();
    let attacker = Attacker::member(&victim, 71).await;
    let mut stream = attacker.stream().await;
    let session = SessionKey { client: key(66).peer_id(), id: SessionId::from_bytes([1; 16]) };
    stream.send(&Frame::HopOpen(HopOpen { session, epoch: 0 })).await;
    said(&mut stream).await == Some(Frame::HopReady)
}

pub(crate) async fn sends_a_step_twice() -> bool {
    let victim = Victim::start().await;
    let (_attacker, mut stream) = ready(&victim).await;
    stream.send(&step(0, 0, 0)).await;
    assert!(matches!(said(&mut stream).await, Some(Frame::Answer(_))));
    stream.send(&step(0, 0, 0)).await;
    matches!(said(&mut stream).await, Some(Frame::Answer(_)))
}

pub(crate) async fn lets_hops_wait_for_no_session() -> bool {
    let victim = half(1).await;
    let attacker = Attacker::member(&victim, 66).await;
    let mut waiting = Vec::new();
    for n in 0..40 {
        let mut stream = attacker.stream().await;
        let session = SessionKey { client: key(70).peer_id(), id: SessionId::from_bytes([n; 16]) };
        stream.send(&Frame::HopOpen(HopOpen { session, epoch: 0 })).await;
        waiting.push(stream);
    }
    let mut refused = 0;
    for stream in &mut waiting {
        // Those that wait are told in the end that nobody came.
        match stream.next().await {
            Some(Frame::Failed(failure)) if failure.code == FailureCode::Busy => refused += 1,
            Some(Frame::Failed(failure)) => assert_eq!(failure.code, FailureCode::Deadline),
            other => panic!("{other:?}"),
        }
    }
    refused == 0
}

pub(crate) async fn takes_every_cache() -> bool {
    let victim = Victim::start().await;
    let attacker = Attacker::member(&victim, 66).await;
    let mut kept = Vec::new();
    for session in 0..5 {
        let mut stream = attacker.stream().await;
        stream.send(&open(session, 0)).await;
        if stream.frame().await != Frame::Ready {
            return false;
        }
        kept.push(stream);
    }
    true
}

pub(crate) async fn opens_its_session_again_in_the_same_epoch() -> bool {
    let victim = Victim::start().await;
    let (attacker, _first) = ready(&victim).await;
    let mut stream = attacker.stream().await;
    stream.send(&open(1, 0)).await;
    stream.frame().await == Frame::Ready
}

pub(crate) async fn sends_steps_without_credit() -> bool {
    let victim = Victim::start().await;
    let (_attacker, mut stream) = ready(&victim).await;
    let mut bytes = Vec::new();
    // One write: the victim has them all before it can have granted anything.
    (0..60).for_each(|n| step(n, 0, n).encode(&mut bytes));
    stream.send.write_all(&bytes).await.unwrap();
    let mut answered = 0;
    while let Some(Frame::Answer(_)) = said(&mut stream).await {
        answered += 1;
        if answered == 60 {
            return true;
        }
    }
    false
}

pub(crate) async fn sends_tokens_that_are_none() -> bool {
    let victim = Victim::start().await;
    let (_attacker, mut stream) = ready(&victim).await;
    let payload = Codec::encode_tokens(&[toy::VOCABULARY + 5]);
    let (rows, codec) = (Rows::Last, Codec::Tokens);
    let step = StepFrame {
        sequence: 0,
        epoch: 0,
        start: 0,
        count: 1,
        rows,
        top: 4,
        codec,
        payload,
        pad: false,
        tree: Tree::chain(),
        fence: false,
        skipped: false,
    };
    stream.send(&Frame::Step(step)).await;
    matches!(said(&mut stream).await, Some(Frame::Answer(_)))
}

/// A listener that knows nothing of the swarm, and whether anybody came.
async fn bystander(n: u8) -> (PeerAddress, oneshot::Receiver<()>) {
    let endpoint = endpoint(n, vec![ALPN.to_vec()]).await;
    let at = endpoint.bound_sockets().into_iter().find(|at| at.ip().is_loopback()).unwrap();
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        if endpoint.accept().await.is_some() {
            let _ = tell.send(());
        }
    });
    (PeerAddress { peer: key(n).peer_id(), addresses: vec![at.to_string()], relay: None }, told)
}

pub(crate) async fn has_a_stranger_knocked_at() -> bool {
    let victim = half(0).await;
    let attacker = Attacker::member(&victim, 66).await;
    let (address, told) = bystander(90).await;
    let mut stream = attacker.stream().await;
    let grant = grant_of(&potluck_grant::Root::from_bytes(&[8; 32]), key(90).peer_id(), FAR);
    stream.send(&open_half(spec(0, 1, 2), PreviousHop::Client, NextHop::Peer { address, grant })).await;
    timeout(SOON, told).await.is_ok_and(|told| told.is_ok())
}

pub(crate) async fn grants_credit_that_is_not_due() -> bool {
    let victim = half(0).await;
    let grant = grant_of(&root(), key(20).peer_id(), FAR);
    // The next peer of the route: a member, and no good.
    let next = endpoint(20, vec![ALPN.to_vec()]).await;
    let at = next.bound_sockets().into_iter().find(|at| at.ip().is_loopback()).unwrap();
    let address = PeerAddress { peer: key(20).peer_id(), addresses: vec![at.to_string()], relay: None };
    let shown = grant.clone();
    tokio::spawn(async move {
        let connection = next.accept().await.unwrap().await.unwrap();
        let (send, receive) = connection.accept_bi().await.unwrap();
        let mut greeting = Raw { send, receive, reader: FrameReader::new(1 << 16) };
        let _ = greeting.frame().await;
        let bounds = Bounds { step_positions: 512, hop_frames: 16, sessions: 8 };
        let welcome = Welcome { version: 1, features: 0, codecs: CodecSet::all(), bounds, grant: shown };
        greeting.send(&Frame::Welcome(welcome)).await;
        let _ = greeting.send.finish();
        let (send, receive) = connection.accept_bi().await.unwrap();
        let mut hop = Raw { send, receive, reader: FrameReader::new(1 << 16) };
        assert!(matches!(hop.frame().await, Frame::HopOpen(_)));
        hop.send(&Frame::HopReady).await;
        hop.send(&Frame::Credit { frames: u32::MAX }).await;
        connection.closed().await;
    });
    let client = Attacker::member(&victim, 66).await;
    let mut stream = client.stream().await;
    stream.send(&open_half(spec(0, 1, 2), PreviousHop::Client, NextHop::Peer { address, grant })).await;
    loop {
        match timeout(SOON, stream.next()).await {
            Ok(Some(Frame::Ready)) => {}
            // The session is ended, and its client told.
            Ok(Some(Frame::Failed(_)) | None) => return false,
            Ok(Some(other)) => panic!("a {} frame", other.kind()),
            Err(_) => return true,
        }
    }
}
