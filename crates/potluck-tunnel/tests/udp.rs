//! Packets of UDP through a tunnel: of every size, to whom they belong.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod pair;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use pair::{Exposed, member, soon};
use potluck_net::Bind;
use potluck_tunnel::{Exposing, Far, UdpTimes, forward_udp, socks};
use potluck_wire::{Dial, Host, Service};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

/// Between two tries of a packet: on loopback few are lost, and none for good.
const AGAIN: Duration = Duration::from_secs(1);

/// A service that sends packets back; its port, and where packets came from.
async fn echo() -> (u16, mpsc::UnboundedReceiver<SocketAddr>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let (came, from) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut packet = vec![0; 65_536];
        loop {
            let (len, from) = socket.recv_from(&mut packet).await.unwrap();
            // The test may have seen enough.
            let _ = came.send(from);
            let _ = socket.send_to(&packet[..len], from).await;
        }
    });
    (port, from)
}

async fn forward(far: &Far, port: u16, times: UdpTimes) -> (SocketAddr, JoinSet<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    let (far, dial) = (far.clone(), Dial { service: Service::Udp(port), host: Host::Own });
    let mut task = JoinSet::new();
    task.spawn(async move { forward_udp(socket, far, dial, times).await.unwrap() });
    (at, task)
}

/// Sends a packet until it comes back.
async fn round_trip(socket: &UdpSocket, packet: &[u8]) {
    let mut back = vec![0; 65_536];
    soon(async {
        loop {
            socket.send(packet).await.unwrap();
            while let Ok(len) = timeout(AGAIN, socket.recv(&mut back)).await {
                if back[..len.unwrap()] == *packet {
                    return;
                }
            }
        }
    })
    .await;
}

async fn client(at: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(at).await.unwrap();
    socket
}

#[tokio::test]
async fn packets_of_every_size_come_back_to_whoever_sent_them() {
    let (port, _) = echo().await;
    let peer = Exposed::new(20, &[&format!("udp:{port}")]).await;
    let (at, _forwarding) = forward(&peer.seen_by(&member(1).await), port, UdpTimes::default()).await;
    let (one, other) = (client(at).await, client(at).await);
    // What fits a datagram goes as one, what does not goes by the flow's stream.
    for size in [0, 1, 1_200, 1_400, 9_000, 60_000] {
        for (socket, mark) in [(&one, 1), (&other, 2)] {
            let packet: Vec<u8> = (0..size).map(|n| (n % 251) as u8 ^ mark).collect();
            round_trip(socket, &packet).await;
        }
    }
}

#[tokio::test]
async fn a_flow_ends_when_nothing_passes_and_the_next_packet_begins_another() {
    let (port, mut from) = echo().await;
    let short = UdpTimes { dns: Duration::from_millis(50), other: Duration::from_millis(300) };
    let exposing = Exposing::new([format!("udp:{port}").parse().unwrap()]).ending(short);
    let peer = Exposed::with(20, exposing, Bind::Loopback).await;
    let (at, _forwarding) = forward(&peer.seen_by(&member(1).await), port, short).await;
    let socket = client(at).await;
    round_trip(&socket, b"first").await;
    let first = soon(from.recv()).await.unwrap();
    // The far side's socket is another one as soon as the flow is another one.
    soon(async {
        loop {
            let nothing = timeout(short.other * 2, socket.recv(&mut [0; 16])).await;
            assert!(nothing.is_err(), "nobody was asked");
            round_trip(&socket, b"again").await;
            if from.recv().await.unwrap() != first {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_thousand_and_more_flows_are_carried_and_the_oldest_makes_room() {
    let (port, _) = echo().await;
    let peer = Exposed::new(20, &[&format!("udp:{port}")]).await;
    let (at, _forwarding) = forward(&peer.seen_by(&member(1).await), port, UdpTimes::default()).await;
    let mut sockets = Vec::new();
    for n in 0..1_100_u32 {
        let socket = client(at).await;
        round_trip(&socket, &n.to_le_bytes()).await;
        sockets.push(socket);
    }
    for n in [0, 1_099] {
        round_trip(&sockets[n], b"still").await;
    }
}

#[tokio::test]
async fn what_is_not_exposed_answers_nothing_and_harms_no_neighbour() {
    let (port, _) = echo().await;
    let (closed, mut from) = echo().await;
    let peer = Exposed::new(20, &[&format!("udp:{port}"), &format!("tcp:{closed}")]).await;
    let far = peer.seen_by(&member(1).await);
    let (at, _closed) = forward(&far, closed, UdpTimes::default()).await;
    let socket = client(at).await;
    socket.send(b"?").await.unwrap();
    let (at, _open) = forward(&far, port, UdpTimes::default()).await;
    round_trip(&client(at).await, b"ok").await;
    assert!(timeout(AGAIN, socket.recv(&mut [0; 8])).await.is_err());
    assert!(from.try_recv().is_err(), "nothing came there");
}

/// A SOCKS program that has asked for packets: the connection that keeps them, and where they go.
async fn associated(far: &Far) -> (TcpStream, SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(socks::serve(listener, far.clone(), UdpTimes::default()));
    let mut control = TcpStream::connect(at).await.unwrap();
    control.write_all(&[5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
    let mut answer = [0; 12];
    soon(control.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer[..6], [5, 0, 5, 0, 0, 1]);
    let octets: [u8; 4] = answer[6..10].try_into().unwrap();
    (control, SocketAddr::from((octets, u16::from_be_bytes([answer[10], answer[11]]))), task)
}

#[tokio::test]
async fn socks_carries_packets_as_long_as_its_connection_stands() {
    let (port, _) = echo().await;
    let peer = Exposed::new(20, &[&format!("udp:{port}")]).await;
    let (control, at, _door) = associated(&peer.seen_by(&member(1).await)).await;
    let socket = Arc::new(client(at).await);
    let name = b"localhost";
    let mut packet = vec![0, 0, 0, 3, name.len() as u8];
    packet.extend(name);
    packet.extend(port.to_be_bytes());
    packet.extend(b"hello");
    // A part of a packet, and nonsense, end nothing.
    let mut part = packet.clone();
    part[2] = 1;
    for bad in [&part[..], b"", b"nonsense", &packet[..7]] {
        socket.send(bad).await.unwrap();
    }
    // An answer says where it is from, as it was asked for.
    round_trip(&socket, &packet).await;
    drop(control);
    soon(async {
        // The door's socket is gone: the system says so.
        while socket.send(&packet).await.is_ok() {
            if matches!(timeout(AGAIN, socket.recv(&mut [0; 64])).await, Ok(Err(_))) {
                return;
            }
        }
    })
    .await;
}
