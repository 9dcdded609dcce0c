//! Attacks of peers that are dialled: they know their clients' grants, make the answers, and pass on what others say.

use iroh::endpoint::{Connection, RecvStream, SendStream};
use potluck_chain::Submission;
use potluck_core::{Logits, Offer, Rows, Stage as _, StageSpeed};
use potluck_grant::{Caveats, Gate, Role, Root};
use potluck_net::{Directory, NetDeadlines, SessionEvent};
use potluck_sim::toy::{self, ToyStage};
use potluck_wire::{ALPN, AnswerFrame, Bounds, CodecSet, Frame, FrameReader, PeerAddress, StepFrame, Welcome};
use tokio::sync::oneshot;

use crate::{
    attacker::{Attacker, Raw, Victim, endpoint, session_over, whole},
    swarm::{CONTEXT, FAR, grant_of, key, node, root},
    utc_now,
};

/// A peer that is no good: it shows this grant, and tells which one it was shown.
async fn bad_peer(n: u8, grant: Vec<u8>) -> (PeerAddress, oneshot::Receiver<(Vec<u8>, Connection)>) {
    let endpoint = endpoint(n, vec![ALPN.to_vec()]).await;
    let at = endpoint.bound_sockets().into_iter().find(|at| at.ip().is_loopback()).unwrap();
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        let mut stream = raw(connection.accept_bi().await.unwrap());
        let Frame::Hello(hello) = stream.frame().await else { panic!("no greeting") };
        let bounds = Bounds { step_positions: 512, hop_frames: 16, sessions: 8 };
        let welcome = Welcome { version: 1, features: 0, codecs: CodecSet::all(), bounds, grant };
        stream.send(&Frame::Welcome(welcome)).await;
        let _ = stream.send.finish();
        let _ = tell.send((hello.grant, connection.clone()));
        connection.closed().await;
        drop(endpoint);
    });
    (PeerAddress { peer: key(n).peer_id(), addresses: vec![at.to_string()], relay: None }, told)
}

fn raw((send, receive): (SendStream, RecvStream)) -> Raw {
    Raw { send, receive, reader: FrameReader::new(1 << 20) }
}

pub(crate) async fn poses_as_a_peer_that_is_dialled() -> bool {
    let grant = grant_of(&Root::from_bytes(&[8; 32]), key(20).peer_id(), FAR);
    let (address, _told) = bad_peer(20, grant).await;
    node(30, NetDeadlines::default()).await.connect(&address).await.is_ok()
}

pub(crate) async fn replays_its_clients_grant() -> bool {
    let victim = Victim::start().await;
    let (address, told) = bad_peer(20, grant_of(&root(), key(20).peer_id(), FAR)).await;
    let client = node(30, NetDeadlines::default()).await;
    client.connect(&address).await.expect("it is a member");
    let (grant, _connection) = told.await.unwrap();
    Attacker::with_grant(&victim, 20, grant).await.is_some()
}

pub(crate) async fn answers_with_tokens_that_are_none() -> bool {
    let (address, told) = bad_peer(20, grant_of(&root(), key(20).peer_id(), FAR)).await;
    let client = node(30, NetDeadlines::default()).await;
    tokio::spawn(async move {
        let (_, connection) = told.await.unwrap();
        let mut stream = raw(connection.accept_bi().await.unwrap());
        assert!(matches!(stream.frame().await, Frame::Open(_)));
        stream.send(&Frame::Ready).await;
        let Frame::Step(StepFrame { sequence, epoch, start, count, .. }) = stream.frame().await else { return };
        let largest = (0..4).map(|n| (toy::VOCABULARY + n, -(n as f32))).collect();
        let rows = vec![Logits::Top { largest, log_sum_exp: 1.0 }];
        stream
            .send(&Frame::Answer(AnswerFrame { sequence, epoch, start, count, rows, pad: false, skipped: false }))
            .await;
        connection.closed().await;
    });
    let mut session = client.open(session_over(&client, address), Vec::new()).await.unwrap();
    assert!(matches!(session.next().await, Ok(SessionEvent::Ready)));
    session.submit(Submission::chain(0, vec![1], Rows::Last, 4)).unwrap();
    matches!(session.next().await, Ok(SessionEvent::Answer(_)))
}

pub(crate) async fn changes_an_offer_that_it_passes_on() -> bool {
    // Of another member, whose grant everybody is shown; the address is where the attacker would have its clients go.
    let shape = ToyStage::new(whole(), 1, CONTEXT).shape().clone();
    let speed = StageSpeed { decode_us: 1, prefill_position_us: 1 };
    let (peer, expires, addresses) = (key(70).peer_id(), utc_now() + 60, vec!["192.0.2.66:7575".into()]);
    let offer =
        Offer { peer, sequence: 2, expires, addresses, relay: None, shape, speed, free_caches: 1, free_bytes: 0 };
    let lender = Caveats { role: Some(Role::Member), until: Some(FAR), ..Caveats::default() };
    let signed = offer.sign(&key(66), root().grant_as(peer, &lender).unwrap().into_bytes());
    Directory::default().announce(signed, &Gate::new(root().public()), utc_now()).is_ok_and(|kept| kept)
}
