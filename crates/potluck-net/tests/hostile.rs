//! What a peer makes of strangers and of members that misbehave: a typed end of what they touched, and of nothing else.
//!
//! The attacker is an endpoint of its own that says what it likes; the peer is the real one, on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod attacker;
mod swarm;

use attacker::{Attacker, PATIENCE, Raw, Victim, endpoint, hello, open, session_over, step, whole};
use iroh::endpoint::{ConnectionError, VarInt};
use potluck_chain::SessionConfig;
use potluck_core::{Offer, Rows, SessionId, SessionKey, StageSpeed, Tree};
use potluck_grant::Root;
use potluck_net::{Lending, NetError, Node};
use potluck_sim::toy;
use potluck_wire::{
    ALPN, ASK_BYTES_MAX, Ask, Bounds, Codec, CodecSet, FEATURES, FailureCode, Frame, FrameReader, Hello, HopOpen,
    PeerAddress, StepFrame, Upstream, Welcome, step_frame_bytes_max,
};
use swarm::{CONTEXT, FAR, grant_of, key, root};

#[tokio::test]
async fn garbage_instead_of_a_greeting() {
    let mut victim = Victim::start().await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[1, 0, 0, 0, 99], &[5, 0, 0, 0, 1, 255, 255, 255, 255], &[0; 64]] {
        let attacker = Attacker::connect(&victim, 66).await;
        let mut stream = attacker.stream().await;
        stream.send.write_all(garbage).await.unwrap();
        assert_eq!(attacker.closed().await, FailureCode::Protocol, "{garbage:?}");
    }
    victim.is_unharmed().await;
}

#[tokio::test]
async fn an_oversized_length_in_the_greeting() {
    let mut victim = Victim::start().await;
    let attacker = Attacker::connect(&victim, 66).await;
    let mut stream = attacker.stream().await;
    stream.send.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    assert_eq!(attacker.closed().await, FailureCode::Protocol, "refused by its length alone");
    victim.is_unharmed().await;
}

#[tokio::test]
async fn a_dialer_that_says_nothing_or_half_a_word() {
    let mut victim = Victim::start().await;
    let silent = Attacker::connect(&victim, 66).await;
    let half = Attacker::connect(&victim, 67).await;
    let mut stream = half.stream().await;
    stream.send.write_all(&[200, 0, 0, 0, 1]).await.unwrap();
    assert_eq!(silent.closed().await, FailureCode::Deadline);
    assert_eq!(half.closed().await, FailureCode::Deadline);
    victim.is_unharmed().await;
}

#[tokio::test]
async fn a_version_that_is_not_spoken() {
    let mut victim = Victim::start().await;
    for (version_min, version_max) in [(2, 9), (0, 0), (9, 1)] {
        let attacker = Attacker::connect(&victim, 66).await;
        let mut stream = attacker.stream().await;
        let grant = grant_of(&root(), key(66).peer_id(), FAR);
        let (features, codecs) = (0, CodecSet::all());
        stream
            .send(&Frame::Hello(Hello { version_min, version_max, features, codecs, grant, agent: "raw".into() }))
            .await;
        let Frame::Refused(refusal) = stream.frame().await else { panic!("it is let in") };
        assert_eq!((refusal.code, refusal.version_min, refusal.version_max), (FailureCode::Version, 1, 1));
        drop(stream);
        assert_eq!(attacker.closed().await, FailureCode::Version);
    }
    victim.is_unharmed().await;
}

#[tokio::test]
async fn what_is_not_offered_is_not_agreed() {
    let mut victim = Victim::start().await;
    let attacker = Attacker::connect(&victim, 66).await;
    let mut stream = attacker.stream().await;
    let grant = grant_of(&root(), key(66).peer_id(), FAR);
    let (features, codecs, agent) = (u64::MAX, CodecSet(u32::MAX), String::new());
    stream.send(&Frame::Hello(Hello { version_min: 0, version_max: 900, features, codecs, grant, agent })).await;
    let Frame::Welcome(welcome) = stream.frame().await else { panic!("it is not let in") };
    assert_eq!((welcome.version, welcome.features, welcome.codecs), (1, FEATURES, CodecSet::all()));
    drop((stream, attacker));
    victim.is_unharmed().await;
}

#[tokio::test]
async fn grants_that_do_not_hold() {
    let mut victim = Victim::start().await;
    let own = key(66).peer_id();
    let mut forged = grant_of(&root(), own, FAR);
    let middle = forged.len() / 2;
    forged[middle] ^= 1;
    let bad = [
        ("another's", grant_of(&root(), key(10).peer_id(), FAR)),
        ("expired", grant_of(&root(), own, 1_000)),
        ("of another root", grant_of(&Root::from_bytes(&[8; 32]), own, FAR)),
        ("forged", forged),
        ("none", vec![]),
        ("oversized", vec![0; potluck_wire::GRANT_BYTES_MAX]),
    ];
    for (what, grant) in bad {
        let attacker = Attacker::connect(&victim, 66).await;
        let mut stream = attacker.stream().await;
        stream.send(&hello(grant)).await;
        let Frame::Refused(refusal) = stream.frame().await else { panic!("{what}: it is let in") };
        assert_eq!(refusal.code, FailureCode::NotAdmitted, "{what}");
        drop(stream);
        assert_eq!(attacker.closed().await, FailureCode::NotAdmitted, "{what}");
    }
    victim.is_unharmed().await;
}

#[tokio::test]
async fn a_stranger_cannot_talk_before_it_has_greeted() {
    let mut victim = Victim::start().await;
    let attacker = Attacker::connect(&victim, 66).await;
    let mut stream = attacker.stream().await;
    stream.send(&open(1, 0)).await;
    assert_eq!(attacker.closed().await, FailureCode::Protocol);
    assert_eq!(victim.serving.status.borrow().sessions, 0);
    victim.is_unharmed().await;
}

#[tokio::test]
async fn a_grant_that_expires_opens_nothing_more() {
    let mut victim = Victim::start().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let member = Attacker::member_until(&victim, 66, now + 1).await;
    // One stream after the other, until the grant's time is over.
    let refused = async {
        loop {
            let Ok((send, receive)) = member.connection.open_bi().await else { return };
            let mut stream = Raw { send, receive, reader: FrameReader::new(1 << 16) };
            let mut bytes = Vec::new();
            open(1, 0).encode(&mut bytes);
            if stream.send.write_all(&bytes).await.is_err() || stream.next().await.is_none() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert_eq!(member.closed().await, FailureCode::NotAdmitted);
    victim.is_unharmed().await;
}

#[tokio::test]
async fn a_request_to_an_upstream_that_is_not_what_it_announces() {
    let mut victim = Victim::start().await;
    let (_offered, watched) = tokio::sync::watch::channel(Upstream::default());
    let (asks, mut asked) = tokio::sync::mpsc::channel(1);
    victim.node.lend(Lending { offered: watched, asks, places: 8 });
    let member = Attacker::member(&victim, 66).await;
    let ask = |bytes| Frame::Ask(Ask { endpoint: potluck_core::Endpoint::Completions, bytes });
    let part = |bytes| Frame::Part(vec![7; bytes]);
    for frames in [
        vec![ask(10), part(11)],
        vec![ask(10), part(4), part(7)],
        vec![ask(10), part(0)],
        vec![ask(10), Frame::ListModels],
        vec![ask(10), ask(10)],
        // More than any request may have is no frame.
        vec![ask(ASK_BYTES_MAX + 1)],
    ] {
        let mut stream = member.stream().await;
        for frame in &frames {
            stream.send(frame).await;
        }
        assert_eq!(stream.failed().await, FailureCode::Protocol, "{frames:?}");
    }
    // Half a request, and then the end; and one whose sender goes before it is answered.
    let mut stream = member.stream().await;
    stream.send(&ask(10)).await;
    stream.send(&part(4)).await;
    stream.send.finish().unwrap();
    assert_eq!(stream.next().await, None);
    assert!(asked.try_recv().is_err(), "nothing of all that has reached the upstream");
    let mut stream = member.stream().await;
    stream.send(&ask(3)).await;
    stream.send(&part(3)).await;
    let request = tokio::time::timeout(PATIENCE, asked.recv()).await.unwrap().unwrap();
    assert_eq!(request.body, vec![7; 3]);
    stream.send(&part(1)).await;
    tokio::time::timeout(PATIENCE, request.reply.closed()).await.expect("more than was announced ends it");
    drop(stream);
    // An ask that is not a stream's first frame is the session's to refuse.
    let mut stream = member.stream().await;
    stream.send(&open(1, 0)).await;
    assert_eq!(stream.frame().await, Frame::Ready);
    stream.send(&ask(3)).await;
    assert_eq!(stream.failed().await, FailureCode::Protocol);
    victim.is_unharmed().await;
}

#[tokio::test]
async fn a_member_that_sends_garbage_loses_that_stream() {
    let mut victim = Victim::start().await;
    let member = Attacker::member(&victim, 66).await;
    for garbage in [&[1, 0, 0, 0, 99][..], &[255; 8], &[2, 0, 0, 0, 10, 128]] {
        let mut stream = member.stream().await;
        stream.send.write_all(garbage).await.unwrap();
        assert_eq!(stream.failed().await, FailureCode::Protocol, "{garbage:?}");
    }
    // Half a frame, and then the end.
    let mut stream = member.stream().await;
    stream.send.write_all(&[9, 0, 0, 0, 8, 1]).await.unwrap();
    stream.send.finish().unwrap();
    assert_eq!(stream.failed().await, FailureCode::Protocol);
    // A stream that says nothing but a byte ends by the deadline for opening.
    let mut stream = member.stream().await;
    stream.send.write_all(&[9]).await.unwrap();
    assert_eq!(stream.failed().await, FailureCode::Deadline);
    victim.is_unharmed().await;
}

#[tokio::test]
async fn frames_that_do_not_belong() {
    let mut victim = Victim::start().await;
    let member = Attacker::member(&victim, 66).await;
    let session = SessionKey { client: key(66).peer_id(), id: SessionId::from_bytes([1; 16]) };
    let wrong_first = [step(0, 0, 0), Frame::Credit { frames: 1 }, Frame::Ready, Frame::HopReady, hello(vec![])];
    for frame in wrong_first {
        let mut stream = member.stream().await;
        stream.send(&frame).await;
        assert_eq!(stream.failed().await, FailureCode::Protocol, "{} first", frame.kind());
    }
    let wrong_later =
        [open(1, 0), Frame::HopOpen(HopOpen { session, epoch: 0 }), Frame::Credit { frames: 1 }, Frame::Ready];
    for frame in wrong_later {
        let mut stream = member.stream().await;
        stream.send(&open(1, 0)).await;
        assert_eq!(stream.frame().await, Frame::Ready);
        stream.send(&frame).await;
        assert_eq!(stream.failed().await, FailureCode::Protocol, "{} on a session's stream", frame.kind());
    }
    victim.is_unharmed().await;
}

#[tokio::test]
async fn epochs_and_numbers_that_are_wrong() {
    let mut victim = Victim::start().await;
    let member = Attacker::member(&victim, 66).await;
    let wrong = [
        (step(0, 4, 0), FailureCode::Epoch, "an epoch that has not come"),
        (step(1, 3, 0), FailureCode::Gap, "a number left out"),
        (step(0, 3, 9), FailureCode::Protocol, "a position left out"),
    ];
    for (frame, code, what) in wrong {
        let mut stream = member.stream().await;
        stream.send(&open(1, 3)).await;
        assert_eq!(stream.frame().await, Frame::Ready);
        stream.send(&frame).await;
        assert_eq!(stream.failed().await, code, "{what}");
    }
    victim.is_unharmed().await;
}

#[tokio::test]
async fn a_repeated_or_outdated_step_runs_once() {
    let mut victim = Victim::start().await;
    let member = Attacker::member(&victim, 66).await;
    let mut stream = member.stream().await;
    stream.send(&open(1, 3)).await;
    assert_eq!(stream.frame().await, Frame::Ready);
    // The twins come late, also behind newer steps; one of an epoch that is over comes too.
    for frame in [step(0, 3, 0), step(0, 3, 0), step(1, 3, 1), step(0, 3, 0), step(7, 2, 0), step(2, 3, 2)] {
        stream.send(&frame).await;
    }
    let mut answered = vec![];
    while answered.len() < 3 {
        match stream.frame().await {
            Frame::Answer(answer) => answered.push((answer.sequence, answer.start)),
            Frame::Credit { .. } => {}
            other => panic!("a {} frame", other.kind()),
        }
    }
    assert_eq!(answered, [(0, 0), (1, 1), (2, 2)]);
    let dropped = victim.serving.status.wait_for(|status| status.stale_frames == 3);
    tokio::time::timeout(PATIENCE, dropped).await.expect("three were dropped").unwrap();
    drop((stream, member));
    victim.is_unharmed().await;
}

#[tokio::test]
async fn a_frame_longer_than_the_sessions_model_allows() {
    let mut victim = Victim::start().await;
    let member = Attacker::member(&victim, 66).await;
    let mut stream = member.stream().await;
    stream.send(&open(1, 0)).await;
    assert_eq!(stream.frame().await, Frame::Ready);
    let longest = step_frame_bytes_max(toy::WIDTH).max(potluck_wire::CONTROL_BYTES_MAX);
    stream.send.write_all(&(longest as u32).to_le_bytes()).await.unwrap();
    assert_eq!(stream.failed().await, FailureCode::Protocol, "refused by its length alone");
    victim.is_unharmed().await;
}

#[tokio::test]
async fn a_flood_of_steps_without_credit() {
    let mut victim = Victim::start().await;
    let member = Attacker::member(&victim, 66).await;
    let mut stream = member.stream().await;
    stream.send(&open(1, 0)).await;
    assert_eq!(stream.frame().await, Frame::Ready);
    let mut bytes = Vec::new();
    // One write: the victim has them all before it can have granted anything.
    (0..60).for_each(|n| step(n, 0, n).encode(&mut bytes));
    stream.send.write_all(&bytes).await.unwrap();
    assert_eq!(stream.failed().await, FailureCode::OverBudget);
    victim.is_unharmed().await;
}

#[tokio::test]
async fn a_client_that_never_reads_its_answers() {
    let mut victim = Victim::start().await;
    let member = Attacker::member(&victim, 66).await;
    member.connection.set_receive_window(VarInt::from_u32(1));
    let mut stream = member.stream().await;
    stream.send(&open(1, 0)).await;
    assert_eq!(stream.frame().await, Frame::Ready);
    let ended = async {
        // The whole row, again and again: the victim's answers have nowhere to go.
        let payload = Codec::encode_tokens(&[1]);
        for sequence in 0.. {
            let frame = StepFrame {
                sequence,
                epoch: 0,
                start: 0,
                count: 1,
                rows: Rows::Last,
                top: 0,
                codec: Codec::Tokens,
                payload: payload.clone(),
                pad: false,
                tree: Tree::chain(),
                fence: false,
                skipped: false,
            };
            let mut bytes = Vec::new();
            Frame::Step(frame).encode(&mut bytes);
            if stream.send.write_all(&bytes).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the session ends, whatever the reason");
    drop((stream, member));
    victim.is_unharmed().await;
}

#[tokio::test]
async fn more_sessions_than_a_client_may_have() {
    let mut victim = Victim::start().await;
    let member = Attacker::member(&victim, 66).await;
    let mut kept = vec![];
    for session in 0..2 {
        let mut stream = member.stream().await;
        stream.send(&open(session, 0)).await;
        assert_eq!(stream.frame().await, Frame::Ready);
        kept.push(stream);
    }
    let mut stream = member.stream().await;
    stream.send(&open(2, 0)).await;
    assert_eq!(stream.failed().await, FailureCode::Busy);
    // Another's session cannot be touched: the key is the connection's.
    let other = Attacker::member(&victim, 67).await;
    let mut stream = other.stream().await;
    stream.send(&open(0, 9)).await;
    assert_eq!(stream.frame().await, Frame::Ready, "a session of the same name, and its own");
    assert_eq!(victim.serving.status.borrow().sessions, 3);
    drop((kept, stream, member, other));
    victim.is_unharmed().await;
}

#[tokio::test]
async fn a_hop_for_a_session_that_never_comes() {
    let mut victim = Victim::start().await;
    let member = Attacker::member(&victim, 66).await;
    let session = SessionKey { client: key(70).peer_id(), id: SessionId::from_bytes([1; 16]) };
    let mut stream = member.stream().await;
    stream.send(&Frame::HopOpen(HopOpen { session, epoch: 0 })).await;
    assert_eq!(stream.failed().await, FailureCode::Deadline);
    victim.is_unharmed().await;
}

#[tokio::test]
async fn offers_of_others_and_offers_that_do_not_hold() {
    let mut victim = Victim::start().await;
    let member = Attacker::member(&victim, 66).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let shape = potluck_core::Stage::shape(&toy::ToyStage::new(whole(), 1, CONTEXT)).clone();
    let grant = |n: u8| grant_of(&root(), key(n).peer_id(), FAR);
    let granted = |n: u8, signer: u8, expires, grant| {
        let speed = StageSpeed { decode_us: 1, prefill_position_us: 1 };
        let (peer, addresses, shape) = (key(n).peer_id(), vec![], shape.clone());
        Offer { peer, sequence: 1, expires, addresses, relay: None, shape, speed, free_caches: 1, free_bytes: 0 }
            .sign(&key(signer), grant)
    };
    let offer = |n, signer, expires| granted(n, signer, expires, grant(n));
    let strangers = grant_of(&Root::from_bytes(&[8; 32]), key(66).peer_id(), FAR);
    let cases = [
        (offer(67, 67, now + 60), 0, "another member's, announced by this one"),
        (offer(66, 67, now + 60), 0, "signed by another"),
        (offer(66, 66, now - 60), 0, "expired"),
        (offer(66, 66, now + 6_000), 0, "for longer than offers may hold"),
        (granted(66, 66, now + 60, vec![]), 0, "without a grant, of which who hears of it could not know"),
        (granted(66, 66, now + 60, strangers), 0, "with another swarm's grant"),
        (offer(66, 66, now + 60), 1, "its own"),
    ];
    for (offer, known, what) in cases {
        let mut stream = member.stream().await;
        stream.send(&Frame::Announce(offer)).await;
        assert_eq!(stream.frame().await, Frame::Offers(vec![]), "{what}");
        assert_eq!(stream.next().await, None);
        let mut stream = member.stream().await;
        stream.send(&Frame::ListOffers).await;
        let Frame::Offers(page) = stream.frame().await else { panic!("no page") };
        assert_eq!(page.len(), known, "{what}");
    }
    // Offers are no session's business.
    let mut stream = member.stream().await;
    stream.send(&open(1, 0)).await;
    assert_eq!(stream.frame().await, Frame::Ready);
    stream.send(&Frame::ListOffers).await;
    assert_eq!(stream.failed().await, FailureCode::Protocol);
    victim.is_unharmed().await;
}

#[tokio::test]
async fn more_silent_strangers_than_there_are_places() {
    let mut victim = Victim::start().await;
    let mut silent = vec![];
    // All of one address: it gets its share, and the rest is turned away.
    for n in 100..140 {
        let address = victim.node.address();
        silent.push(tokio::spawn(async move { Attacker::try_connect(&address, n).await }));
    }
    let mut turned_away = 0;
    let mut waiting = vec![];
    for attempt in silent {
        match attempt.await.unwrap() {
            Some(connected) => waiting.push(connected),
            None => turned_away += 1,
        }
    }
    assert!(turned_away > 0, "forty at once are too many");
    for Attacker { endpoint: _endpoint, connection } in waiting {
        let closed = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("the silent are put out");
        assert!(matches!(closed, ConnectionError::ApplicationClosed(_)), "{closed}");
    }
    victim.is_unharmed().await;
}

/// The other way round: a peer that is no good, and a client that dials it.
#[tokio::test]
async fn an_acceptor_that_never_welcomes() {
    let silent = endpoint(20, vec![ALPN.to_vec()]).await;
    let at = silent.bound_sockets().into_iter().find(|at| at.ip().is_loopback()).unwrap();
    tokio::spawn(async move {
        let connection = silent.accept().await.unwrap().await.unwrap();
        connection.closed().await;
    });
    let victim = Victim::start().await;
    let address = potluck_wire::PeerAddress { peer: key(20).peer_id(), addresses: vec![at.to_string()], relay: None };
    let error = tokio::time::timeout(PATIENCE, victim.node.connect(&address)).await.unwrap().unwrap_err();
    assert!(matches!(error, NetError::Unreachable { .. }), "{error}");
}

/// A peer of an earlier build, which knows `f16` and nothing smaller: it greets, and says what a session is opened with.
async fn earlier_build() -> (PeerAddress, tokio::sync::oneshot::Receiver<Codec>) {
    let peer = endpoint(20, vec![ALPN.to_vec()]).await;
    let at = peer.bound_sockets().into_iter().find(|at| at.ip().is_loopback()).unwrap();
    let address = PeerAddress { peer: key(20).peer_id(), addresses: vec![at.to_string()], relay: None };
    let (said, hears) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let connection = peer.accept().await.unwrap().await.unwrap();
        let (send, receive) = connection.accept_bi().await.unwrap();
        let mut greeting = Raw { send, receive, reader: FrameReader::new(1 << 16) };
        assert!(matches!(greeting.frame().await, Frame::Hello(_)));
        let codecs = [Codec::Tokens, Codec::F32, Codec::F16].into_iter().collect();
        let bounds = Bounds { step_positions: 512, hop_frames: 16, sessions: 8 };
        let grant = grant_of(&root(), key(20).peer_id(), FAR);
        greeting.send(&Frame::Welcome(Welcome { version: 1, features: 0, codecs, bounds, grant })).await;
        let _ = greeting.send.finish();
        if let Ok((send, receive)) = connection.accept_bi().await {
            let mut session = Raw { send, receive, reader: FrameReader::new(1 << 16) };
            if let Frame::Open(open) = session.frame().await {
                let _ = said.send(open.codec_out);
            }
        }
        connection.closed().await;
    });
    (address, hears)
}

#[tokio::test]
async fn a_codec_that_a_peer_does_not_know_is_refused_or_replaced_as_the_client_says() {
    let client = swarm::node(30, Default::default()).await;
    let wanted = |client: &Node, address, codec_otherwise| SessionConfig {
        codec: Codec::Mixed6,
        codec_otherwise,
        ..session_over(client, address)
    };
    let (address, hears) = earlier_build().await;
    let session = client.open(wanted(&client, address, Some(Codec::F16)), Vec::new()).await.unwrap();
    assert_eq!(session.codec(), Codec::F16);
    assert_eq!(hears.await, Ok(Codec::F16), "and the peer is told so");
    drop(session);
    for (n, otherwise) in [(31, None), (32, Some(Codec::Dyn8))] {
        // Another endpoint with the same key would be taken for the first.
        let client = swarm::node(n, Default::default()).await;
        let (address, _) = earlier_build().await;
        let refused = client.open(wanted(&client, address, otherwise), Vec::new()).await.unwrap_err();
        assert!(refused.to_string().contains("does not know the codec"), "{refused}");
    }
    let victim = Victim::start().await;
    let session = client.open(wanted(&client, victim.node.address(), Some(Codec::F16)), Vec::new()).await.unwrap();
    assert_eq!(session.codec(), Codec::Mixed6, "a peer that knows it");
}
