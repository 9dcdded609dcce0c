//! Applications of a peer: messages that are taken once, streams, and who may.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

mod pair;

use std::time::Duration;

use bytes::Bytes;
use pair::{Exposed, PATIENCE, caveats, far, member, node_of, root, soon};
use potluck_grant::{Caveats, Role};
use potluck_net::{Bind, Node};
use potluck_tunnel::{Apps, Exposing, Far, FindPeer, Receipt, TunnelError, WAITING_OF_MEMBER_MAX};
use potluck_wire::{Call, MESSAGE_BYTES_MAX, NotReached, TunnelFrame, Way};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn serving(n: u8, apps: &Apps, bind: Bind) -> Exposed {
    Exposed::with(n, Exposing::new([]).serving(apps.clone()), bind).await
}

async fn send(far: &Far, topic: &str, body: &'static [u8], id: u8) -> Result<Receipt, TunnelError> {
    far.send_message(topic, &Bytes::from_static(body), [id; 16], PATIENCE).await
}

fn why(error: TunnelError) -> NotReached {
    match error {
        TunnelError::NotReached { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_comes_again_under_its_id_is_taken_once() {
    let (apps, node) = (Apps::default(), member(2).await);
    let there = serving(1, &apps, Bind::Loopback).await;
    let mut messages = apps.listen("news").unwrap();
    assert!(matches!(apps.listen("news"), Err(TunnelError::Listening(_))));
    assert!(matches!(apps.listen("two words"), Err(TunnelError::Topic)));
    let far = there.seen_by(&node);
    let (receipt, message) = tokio::join!(soon(send(&far, "news", b"one", 7)), soon(messages.next()));
    let message = message.unwrap();
    assert_eq!((message.from(), &message.body()[..]), (node.id(), &b"one"[..]));
    assert!(message.reply("noted").unwrap());
    assert_eq!(soon(receipt.unwrap().reply()).await.unwrap().as_deref(), Some(&b"noted"[..]));
    // Its receipt was lost, as far as its sender knows.
    let again = soon(send(&far, "news", b"one", 7)).await.unwrap();
    assert_eq!(soon(again.reply()).await.unwrap(), None);
    // Another member's is another message, and so is the next.
    let other = member(3).await;
    let other = there.seen_by(&other);
    for (from, id) in [(&other, 7), (&far, 8)] {
        let (receipt, message) = tokio::join!(soon(send(from, "news", b"two", id)), soon(messages.next()));
        assert_eq!(message.unwrap().body()[..], b"two"[..]);
        drop(receipt.unwrap());
    }
}

#[tokio::test]
async fn a_connection_that_nothing_uses_ends_and_is_made_again() {
    const IDLE_MAX: Duration = Duration::from_millis(400);
    let (apps, node) = (Apps::default(), member(2).await);
    let there = serving(1, &apps, Bind::Loopback).await;
    let (mut messages, mut arriving) = (apps.listen("news").unwrap(), apps.accept("talk").unwrap());
    let far = Far::resting(node.clone(), there.node.address(), FindPeer::nowhere_else(), IDLE_MAX);
    let (stream, arrived) = tokio::join!(soon(far.open_stream("talk")), soon(arriving.next()));
    let (mut mine, mut theirs) = (stream.unwrap(), arrived.unwrap());
    // The same connection, seen by another handle.
    let seen = node.tunnel(&there.node.address()).await.unwrap();
    let mut ticks = tokio::time::interval(IDLE_MAX);
    for _ in 0..4 {
        ticks.tick().await;
    }
    assert!(!seen.is_closed(), "a stream is open, though it says nothing");
    mine.write_all(b"still here").await.unwrap();
    let mut said = [0; 10];
    soon(theirs.read_exact(&mut said)).await.unwrap();
    drop((mine, theirs));
    soon(async {
        while !seen.is_closed() {
            ticks.tick().await;
        }
    })
    .await;
    // And the next message makes another.
    let (receipt, message) = tokio::join!(soon(send(&far, "news", b"one", 7)), soon(messages.next()));
    assert_eq!(message.unwrap().body()[..], b"one"[..]);
    drop(receipt.unwrap());
}

#[tokio::test]
async fn a_message_finds_a_peer_that_starts_again() {
    let (apps, node) = (Apps::default(), member(2).await);
    let there = serving(1, &apps, Bind::Loopback).await;
    let mut messages = apps.listen("news").unwrap();
    let far = there.seen_by(&node);
    let (receipt, _) = tokio::join!(soon(send(&far, "news", b"one", 1)), soon(messages.next()));
    receipt.unwrap();
    // It waits there, and its connection is lost.
    let sending = {
        let far = far.clone();
        tokio::spawn(async move { send(&far, "news", b"two", 2).await.map(drop) })
    };
    let at = there.stop().await;
    let there = serving(1, &apps, Bind::Address(at)).await;
    assert_eq!(soon(messages.next()).await.unwrap().body()[..], b"two"[..]);
    soon(sending).await.unwrap().unwrap();
    drop(there);
}

#[tokio::test]
async fn nobody_takes_more_room_than_its_own_and_whoever_gives_up_has_sent_nothing() {
    let (apps, node) = (Apps::default(), member(2).await);
    let there = serving(1, &apps, Bind::Loopback).await;
    let mut messages = apps.listen("slow").unwrap();
    let far = there.seen_by(&node);
    let mut sending = tokio::task::JoinSet::new();
    for id in 0..=WAITING_OF_MEMBER_MAX as u8 {
        let far = far.clone();
        sending.spawn(async move { send(&far, "slow", b"x", id).await.map(drop) });
    }
    assert_eq!(why(soon(sending.join_next()).await.unwrap().unwrap().unwrap_err()), NotReached::Busy);
    // Another member has room of its own.
    let other = member(3).await;
    let other = there.seen_by(&other);
    let sent = tokio::spawn(async move { send(&other, "slow", b"other's", 1).await.map(drop) });
    sending.abort_all();
    while sending.join_next().await.is_some() {}
    loop {
        // What was given up while it was on its way may have been taken still.
        let message = soon(messages.next()).await.unwrap();
        if message.body()[..] == b"other's"[..] {
            break;
        }
    }
    soon(sent).await.unwrap().unwrap();
    // What waits when its listener goes is told so.
    let sent = tokio::spawn(async move { send(&far, "slow", b"late", 200).await.map(drop) });
    while !messages.waits() {
        tokio::task::yield_now().await;
    }
    drop(messages);
    assert_eq!(why(soon(sent).await.unwrap().unwrap_err()), NotReached::NotExposed);
}

async fn limited(limits: Caveats) -> Node {
    node_of(&root(), 4, &limits, Bind::Loopback).await
}

#[tokio::test]
async fn grants_decide_who_and_how_many_bytes() {
    let apps = Apps::default();
    let there = serving(1, &apps, Bind::Loopback).await;
    let (mut messages, mut streams) = (apps.listen("news").unwrap(), apps.accept("news").unwrap());
    let guest = limited(caveats(Role::Guest)).await;
    let guest = far(&guest, there.node.address());
    assert_eq!(why(soon(send(&guest, "news", b"x", 1)).await.unwrap_err()), NotReached::NotAllowed);
    assert_eq!(why(soon(guest.open_stream("news")).await.unwrap_err()), NotReached::NotAllowed);

    // Of ten bytes a day, six are a message.
    let named = Caveats { ports: ["tcp:0".parse().unwrap()].into(), ..caveats(Role::Guest) };
    let node = limited(Caveats { bytes_per_day: Some(10), ..named }).await;
    let guest = far(&node, there.node.address());
    let (receipt, message) = tokio::join!(soon(send(&guest, "news", b"sixsix", 2)), soon(messages.next()));
    assert_eq!(message.unwrap().body()[..], b"sixsix"[..]);
    receipt.unwrap();
    assert_eq!(why(soon(send(&guest, "news", b"sixsix", 3)).await.unwrap_err()), NotReached::Spent);
    let (stream, accepted) = tokio::join!(soon(guest.open_stream("news")), soon(streams.next()));
    let (mut stream, mut accepted) = (stream.unwrap(), accepted.unwrap());
    soon(stream.write_all(b"sixsix")).await.unwrap();
    let spent = soon(accepted.read(&mut [0; 6])).await.unwrap_err();
    assert_eq!(spent.kind(), std::io::ErrorKind::QuotaExceeded);
    assert!(soon(stream.read(&mut [0; 6])).await.is_err(), "it is reset");
}

#[tokio::test]
async fn what_is_no_call_ends_its_stream_and_nothing_else() {
    let (apps, node) = (Apps::default(), member(2).await);
    let there = serving(1, &apps, Bind::Loopback).await;
    let mut messages = apps.listen("news").unwrap();
    let tunnel = soon(node.tunnel(&there.node.address())).await.unwrap();
    let message = |bytes: u32| {
        let mut frame = Vec::new();
        let way = Way::Message { id: [bytes as u8; 16], bytes };
        TunnelFrame::Call(Call { topic: "news".into(), way }).encode(&mut frame);
        frame
    };
    let mut reply = Vec::new();
    TunnelFrame::Reply(7).encode(&mut reply);
    // Larger than any; cut short; with nothing behind it; a frame that is the other side's.
    let cut = [&message(100)[..], b"ten bytes."].concat();
    for hostile in [message(MESSAGE_BYTES_MAX as u32 + 1), cut, vec![0xff; 300], reply] {
        let (mut send, mut recv) = soon(tunnel.open()).await.unwrap();
        soon(send.write_all(&hostile)).await.unwrap();
        send.finish().unwrap();
        let answer = soon(recv.read_to_end(64)).await;
        assert!(answer.as_ref().is_ok_and(Vec::is_empty) || answer.is_err(), "{answer:?}");
    }
    assert!(!tunnel.is_closed());
    let far = there.seen_by(&node);
    let (receipt, message) = tokio::join!(soon(send(&far, "news", b"well", 1)), soon(messages.next()));
    assert_eq!(message.unwrap().body()[..], b"well"[..]);
    receipt.unwrap();
}
