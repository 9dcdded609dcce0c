//! A service to measure by, and the measuring: the same service at two addresses, in turns.
//!
//! ```text
//! tunnel_bench service 127.0.0.1:7001
//! tunnel_bench measure RAW VIA [MIB] [ROUNDS]     one JSON object on stdout
//! ```
//! `bench/tunnel.sh` runs it beside a real tunnel.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that fails says where")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Bytes of a message whose way there and back is timed.
const MESSAGE_BYTES: usize = 1 << 10;

/// Messages of one round.
const MESSAGES: usize = 500;

/// Connections of one round.
const CONNECTIONS: usize = 50;

const BLOCK_BYTES: usize = 256 << 10;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["service", at] => service(at.parse().unwrap()).await,
        ["measure", raw, via, rest @ ..] => {
            let number = |n: usize, usual| rest.get(n).map_or(usual, |text| text.parse().unwrap());
            let (mib, rounds) = (number(0, 256), number(1, 5));
            println!("{}", measure([raw.parse().unwrap(), via.parse().unwrap()], mib << 20, rounds).await);
        }
        _ => panic!("tunnel_bench service IP:PORT | tunnel_bench measure RAW VIA [MIB] [ROUNDS]"),
    }
}

/// What a connection's first byte asks for: `e` echoes, `s` counts what comes, `g` gives as many bytes as the next eight say.
async fn service(at: SocketAddr) {
    let listener = TcpListener::bind(at).await.unwrap();
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        tokio::spawn(async move {
            // Whoever hangs up has measured enough.
            let _ = serve(&mut socket).await;
        });
    }
}

async fn serve(socket: &mut TcpStream) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    match socket.read_u8().await? {
        b'e' => loop {
            let len = socket.read(&mut block).await?;
            if len == 0 {
                return Ok(());
            }
            socket.write_all(&block[..len]).await?;
        },
        b's' => {
            let mut total = 0_u64;
            loop {
                let len = socket.read(&mut block).await?;
                if len == 0 {
                    return socket.write_u64(total).await;
                }
                total += len as u64;
            }
        }
        _ => {
            let mut left = socket.read_u64().await?;
            while left > 0 {
                let part = left.min(block.len() as u64);
                socket.write_all(&block[..part as usize]).await?;
                left -= part;
            }
            Ok(())
        }
    }
}

async fn connect(at: SocketAddr, asked: u8) -> TcpStream {
    let mut socket = TcpStream::connect(at).await.unwrap();
    socket.set_nodelay(true).unwrap();
    socket.write_u8(asked).await.unwrap();
    socket
}

/// The median and the 99th of a hundred, in microseconds.
async fn echoes(at: SocketAddr) -> (f64, f64) {
    let mut socket = connect(at, b'e').await;
    let mut message = vec![7; MESSAGE_BYTES];
    let mut times = Vec::new();
    for _ in 0..MESSAGES {
        let begun = Instant::now();
        socket.write_all(&message).await.unwrap();
        socket.read_exact(&mut message).await.unwrap();
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    (us(times[times.len() / 2]), us(times[times.len() * 99 / 100]))
}

/// Microseconds from nothing to the first byte back, the median.
async fn connections(at: SocketAddr) -> f64 {
    let mut times = Vec::new();
    for _ in 0..CONNECTIONS {
        let begun = Instant::now();
        let mut socket = connect(at, b'e').await;
        socket.write_u8(1).await.unwrap();
        socket.read_u8().await.unwrap();
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    median(times)
}

/// Megabytes a second, there and back.
async fn bulk(at: SocketAddr, bytes: u64) -> (f64, f64) {
    let mut block = vec![7; BLOCK_BYTES];
    let mut socket = connect(at, b's').await;
    let begun = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let part = left.min(block.len() as u64);
        socket.write_all(&block[..part as usize]).await.unwrap();
        left -= part;
    }
    socket.shutdown().await.unwrap();
    assert_eq!(socket.read_u64().await.unwrap(), bytes);
    let there = bytes as f64 / 1e6 / begun.elapsed().as_secs_f64();
    let mut socket = connect(at, b'g').await;
    let begun = Instant::now();
    socket.write_u64(bytes).await.unwrap();
    let mut left = bytes;
    while left > 0 {
        let len = socket.read(&mut block).await.unwrap();
        assert!(len > 0, "cut short");
        left -= len as u64;
    }
    (there, bytes as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn measure(at: [SocketAddr; 2], bytes: u64, rounds: u64) -> Value {
    let mut seen: [[Vec<f64>; 5]; 2] = Default::default();
    for _ in 0..rounds {
        for (side, at) in at.into_iter().enumerate() {
            let (p50, p99) = echoes(at).await;
            let first = connections(at).await;
            let (there, back) = bulk(at, bytes).await;
            for (kept, value) in seen[side].iter_mut().zip([p50, p99, first, there, back]) {
                kept.push(value);
            }
        }
    }
    let names = ["echo_p50_us", "echo_p99_us", "connect_us", "there_mb_s", "back_mb_s"];
    let mut object = json!({ "rounds": rounds, "mib": bytes >> 20 });
    for (n, name) in names.iter().enumerate() {
        let [raw, via] = [0, 1].map(|side: usize| median(seen[side][n].clone()));
        let ratios = seen[0][n].iter().zip(&seen[1][n]).map(|(raw, via)| via / raw).collect();
        object[name] = json!({ "raw": round(raw), "tunnel": round(via), "ratio": round(median(ratios)) });
    }
    object
}

fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}
