//! Connections of TCP through a tunnel are as they are without it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod pair;

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pair::{Exposed, PATIENCE, echo, far, forward, key, member, service, soon};
use potluck_net::Bind;
use potluck_tunnel::Exposing;
use potluck_wire::PeerAddress;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

/// Bytes that are sent each way; a gibibyte with `POTLUCK_LONG`.
fn many() -> u64 {
    if std::env::var_os("POTLUCK_LONG").is_some() { 1 << 30 } else { 64 << 20 }
}

/// Longest that a writer may be held up before it counts as held up for good.
const HELD_UP: Duration = Duration::from_secs(2);

/// Writes so many bytes of a pattern, and their hash.
async fn send(write: &mut (impl AsyncWriteExt + Unpin), seed: u64, mut left: u64) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0_u8; 256 << 10];
    let mut state = seed;
    while left > 0 {
        for byte in block.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            byte.copy_from_slice(&state.to_le_bytes());
        }
        let part = left.min(block.len() as u64) as usize;
        hasher.update(&block[..part]);
        write.write_all(&block[..part]).await.unwrap();
        left -= part as u64;
    }
    hasher.finalize()
}

/// Reads to the end: how many bytes, and their hash.
async fn receive(read: &mut (impl AsyncReadExt + Unpin)) -> (u64, blake3::Hash) {
    let (mut hasher, mut total, mut block) = (blake3::Hasher::new(), 0, vec![0; 256 << 10]);
    loop {
        let len = read.read(&mut block).await.unwrap();
        if len == 0 {
            return (total, hasher.finalize());
        }
        hasher.update(&block[..len]);
        total += len as u64;
    }
}

#[tokio::test]
async fn all_bytes_arrive_both_ways_and_half_a_close_is_half_a_close() {
    let (hashes, mut hashed) = mpsc::channel(2);
    // It answers once all has come; or all has gone, and it reads on.
    let answering = hashes.clone();
    let first_reads = service(move |mut socket| {
        let hashes = answering.clone();
        async move {
            let got = receive(&mut socket).await;
            let sent = send(&mut socket, 2, many()).await;
            socket.shutdown().await.unwrap();
            hashes.send((got, sent)).await.unwrap();
        }
    })
    .await;
    let first_sends = service(move |mut socket| {
        let hashes = hashes.clone();
        async move {
            let sent = send(&mut socket, 2, many()).await;
            socket.shutdown().await.unwrap();
            let got = receive(&mut socket).await;
            hashes.send((got, sent)).await.unwrap();
        }
    })
    .await;
    let peer = Exposed::new(20, &[&first_reads.to_string(), &first_sends.to_string()]).await;
    let far = peer.seen_by(&member(1).await);
    for port in [first_reads, first_sends] {
        let (at, _forwarding) = forward(&far, port).await;
        let mut socket = TcpStream::connect(at).await.unwrap();
        let (sent, got) = soon(async {
            if port == first_reads {
                let sent = send(&mut socket, 1, many()).await;
                socket.shutdown().await.unwrap();
                (sent, receive(&mut socket).await)
            } else {
                let got = receive(&mut socket).await;
                let sent = send(&mut socket, 1, many()).await;
                socket.shutdown().await.unwrap();
                (sent, got)
            }
        })
        .await;
        let (there_got, there_sent) = soon(hashed.recv()).await.unwrap();
        assert_eq!(there_got, (many(), sent));
        assert_eq!(got, (many(), there_sent));
    }
}

#[tokio::test]
async fn a_service_may_speak_first() {
    let port = service(|mut socket| async move {
        socket.write_all(b"220 ready\r\n").await.unwrap();
        // Until the other side is gone.
        let _ = socket.read(&mut [0]).await;
    })
    .await;
    let peer = Exposed::new(20, &[&port.to_string()]).await;
    let (at, _forwarding) = forward(&peer.seen_by(&member(1).await), port).await;
    let mut socket = TcpStream::connect(at).await.unwrap();
    let mut line = [0; 11];
    soon(socket.read_exact(&mut line)).await.unwrap();
    assert_eq!(&line, b"220 ready\r\n");
}

#[tokio::test]
async fn a_reset_arrives_as_one_on_either_side() {
    let (ends, mut ended) = mpsc::channel(1);
    let port = service(move |mut socket| {
        let ends = ends.clone();
        async move {
            let mut word = [0; 1];
            socket.read_exact(&mut word).await.unwrap();
            if word == *b"r" {
                socket.set_zero_linger().unwrap();
            } else {
                socket.write_all(b"w").await.unwrap();
                let end = socket.read(&mut word).await.map_err(|error| error.kind());
                ends.send(end).await.unwrap();
            }
        }
    })
    .await;
    let peer = Exposed::new(20, &[&port.to_string()]).await;
    let (at, _forwarding) = forward(&peer.seen_by(&member(1).await), port).await;
    let mut socket = TcpStream::connect(at).await.unwrap();
    socket.write_all(b"r").await.unwrap();
    let end = soon(socket.read(&mut [0])).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset, "the service reset");
    let mut socket = TcpStream::connect(at).await.unwrap();
    socket.write_all(b"w").await.unwrap();
    soon(socket.read_exact(&mut [0])).await.unwrap();
    socket.set_zero_linger().unwrap();
    drop(socket);
    assert_eq!(soon(ended.recv()).await.unwrap(), Err(ErrorKind::ConnectionReset), "the client reset");
}

#[tokio::test]
async fn nothing_listens_there_and_the_connection_is_reset() {
    let port = {
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        nobody.local_addr().unwrap().port()
    };
    let peer = Exposed::new(20, &[&port.to_string()]).await;
    let (at, _forwarding) = forward(&peer.seen_by(&member(1).await), port).await;
    let mut socket = TcpStream::connect(at).await.unwrap();
    assert_eq!(soon(socket.read(&mut [0])).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn who_reads_slowly_is_waited_for_and_holds_up_nobody_else() {
    let (written, counted) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (held_up, mut was_held_up) = mpsc::channel(1);
    let counting = written.clone();
    let port = service(move |mut socket| {
        let (written, held_up) = (counting.clone(), held_up.clone());
        async move {
            let block = vec![7; 64 << 10];
            let mut told = false;
            while written.load(Ordering::Relaxed) < 256 << 20 {
                let len = match timeout(HELD_UP, socket.write(&block)).await {
                    Ok(len) => len.unwrap(),
                    Err(_) if told => socket.write(&block).await.unwrap(),
                    Err(_) => {
                        told = true;
                        held_up.send(()).await.unwrap();
                        continue;
                    }
                };
                written.fetch_add(len as u64, Ordering::Relaxed);
            }
        }
    })
    .await;
    let echo = echo().await;
    let peer = Exposed::new(20, &[&port.to_string(), &echo.to_string()]).await;
    let far = peer.seen_by(&member(1).await);
    let (at, _forwarding) = forward(&far, port).await;
    let mut slow = TcpStream::connect(at).await.unwrap();
    soon(was_held_up.recv()).await.unwrap();
    // What is under way: four sockets' buffers in the kernel, a stream's window, and a buffer on each side.
    let under_way = written.load(Ordering::Relaxed);
    assert!(under_way < 32 << 20, "{under_way} bytes are held for a reader that does not read");
    let (at, _echoing) = forward(&far, echo).await;
    let mut quick = TcpStream::connect(at).await.unwrap();
    quick.write_all(b"hello").await.unwrap();
    soon(quick.read_exact(&mut [0; 5])).await.unwrap();
    let (total, _) = soon(receive(&mut slow)).await;
    counted.store(total, Ordering::Relaxed);
    assert_eq!(counted.load(Ordering::Relaxed), written.load(Ordering::Relaxed), "and then all of it came");
}

/// As many files as the system lets us have open.
fn handles() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    limit.maximum.unwrap_or(u64::MAX)
}

#[tokio::test]
async fn a_thousand_idle_connections_and_ten_busy_ones() {
    let idle = 1_000;
    assert!(handles() > 5 * idle, "this needs more open files: ulimit -n");
    let port = echo().await;
    let peer = Exposed::new(20, &[&port.to_string()]).await;
    let (at, _forwarding) = forward(&peer.seen_by(&member(1).await), port).await;
    let mut quiet = Vec::new();
    for n in 0..idle {
        let mut socket = TcpStream::connect(at).await.unwrap();
        socket.write_all(&[n as u8]).await.unwrap();
        let mut byte = [0];
        soon(socket.read_exact(&mut byte)).await.unwrap();
        assert_eq!(byte, [n as u8]);
        quiet.push(socket);
    }
    let mut busy = tokio::task::JoinSet::new();
    for seed in 0..10 {
        let socket = TcpStream::connect(at).await.unwrap();
        busy.spawn(async move {
            let (mut read, mut write) = socket.into_split();
            let sending = tokio::spawn(async move { send(&mut write, seed, 4 << 20).await });
            let got = receive(&mut read).await;
            assert_eq!(got, (4 << 20, sending.await.unwrap()));
        });
    }
    assert_eq!(soon(busy.join_all()).await.len(), 10);
    for (n, socket) in quiet.iter_mut().enumerate() {
        socket.write_all(&[!(n as u8)]).await.unwrap();
        let mut byte = [0];
        soon(socket.read_exact(&mut byte)).await.unwrap();
        assert_eq!(byte, [!(n as u8)]);
    }
}

#[tokio::test]
async fn a_listener_outlives_the_peer_behind_it() {
    let port = echo().await;
    let exposing = || Exposing::new([port.to_string().parse().unwrap()]);
    // At an address of its own, where no other test takes the port meanwhile.
    let peer = Exposed::with(20, exposing(), Bind::Address(SocketAddr::from(([127, 77, 0, 1], 0)))).await;
    let node = member(1).await;
    let (at, _forwarding) = forward(&peer.seen_by(&node), port).await;
    let ask = |at| async move {
        let mut socket = TcpStream::connect(at).await?;
        socket.write_all(b"?").await?;
        socket.read_exact(&mut [0]).await
    };
    let mut open = TcpStream::connect(at).await.unwrap();
    open.write_all(b"!").await.unwrap();
    soon(open.read_exact(&mut [0])).await.unwrap();
    let address = peer.stop().await;
    assert_eq!(soon(open.read(&mut [0])).await.unwrap_err().kind(), ErrorKind::ConnectionReset, "it is told");
    // One that comes while the peer is away waits for it.
    let (asked, asking) = oneshot::channel();
    let waiting = tokio::spawn(async move {
        let mut socket = TcpStream::connect(at).await.unwrap();
        socket.write_all(b"?").await.unwrap();
        asked.send(()).unwrap();
        socket.read_exact(&mut [0]).await
    });
    soon(asking).await.unwrap();
    let peer = Exposed::with(20, exposing(), Bind::Address(address)).await;
    soon(waiting).await.unwrap().unwrap();
    soon(ask(at)).await.unwrap();
    drop(peer);
}

#[tokio::test]
async fn a_peer_that_stays_away_is_waited_for_ten_seconds_and_no_longer() {
    let node = member(1).await;
    let nobody = PeerAddress { peer: key(99).peer_id(), addresses: vec!["127.0.0.1:9".into()], relay: None };
    let (at, _forwarding) = forward(&far(&node, nobody), 1).await;
    let mut socket = TcpStream::connect(at).await.unwrap();
    let begun = Instant::now();
    assert_eq!(soon(socket.read(&mut [0])).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!((Duration::from_secs(9)..PATIENCE / 4).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}
