//! A connection of TCP through a stream: bytes as they come, half a close as half a close, a reset as a reset.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::{Buf, Bytes};
use potluck_net::{RecvStream, SendStream, VarInt};
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::{sleep, timeout},
};

/// Bytes that are read of a socket at a time. What was read is written before more is.
const READ_BYTES: usize = 64 << 10;

/// Chunks that are written to a socket at a time: packets' worth each, some 90 KB in all.
const CHUNKS: usize = 64;

/// Longest that a connection of which one half is closed may carry nothing. Then it is reset.
const HALF_OPEN_MAX: Duration = Duration::from_secs(600);

/// Longest wait, once both halves are closed, for the other side to have received what was sent.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Time without a byte after which a socket asks whether its other end is there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// With which code a stream is reset: its socket was.
const RESET: u32 = 1;

thread_local! {
    /// Where sockets are read to: connections that carry nothing hold no buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// What is taken for bytes that pass: an error where they may not.
pub(crate) trait Toll {
    /// So many bytes are about to pass.
    fn pay(&self, bytes: usize) -> bool;
}

/// Nothing is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Free;

impl Toll for Free {
    fn pay(&self, _bytes: usize) -> bool {
        true
    }
}

/// One side of a connection has ended otherwise than well.
struct Broken;

/// Small writes go out at once, an end that is gone is noticed, and whichever way the socket goes, its other end takes what was cut short
/// for that: only [`copy`], once all is there, closes it well.
pub(crate) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_zero_linger()?;
    let keep_alive = socket2::TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE);
    socket2::SockRef::from(socket).set_tcp_keepalive(&keep_alive)
}

/// Ends a connection that was not [prepared](prepare) as one that broke: its other end is to know.
pub(crate) fn reset(socket: TcpStream) {
    let _ = socket.set_zero_linger();
}

/// Carries bytes both ways until both halves are closed, or something breaks. Bytes carried.
pub(crate) async fn copy(mut socket: TcpStream, mut send: SendStream, mut recv: RecvStream, toll: impl Toll) -> u64 {
    let moved = AtomicU64::new(0);
    let (read, write) = socket.split();
    let done = carry(up(read, &mut send, &toll, &moved), down(&mut recv, write, &toll, &moved), &moved).await;
    match done {
        Ok(()) => {
            let _ = socket2::SockRef::from(&socket).set_linger(None);
            // The connection below may be closed as soon as we are done: not before the last byte is there.
            let _ = timeout(DRAIN_MAX, send.stopped()).await;
        }
        Err(Broken) => {
            let code = VarInt::from_u32(RESET);
            let _ = send.reset(code);
            let _ = recv.stop(code);
        }
    }
    moved.into_inner()
}

async fn carry(
    up: impl Future<Output = Result<(), Broken>>,
    down: impl Future<Output = Result<(), Broken>>,
    moved: &AtomicU64,
) -> Result<(), Broken> {
    let (mut up, mut down) = (pin!(up), pin!(down));
    let (mut up_done, mut down_done, mut before) = (false, false, u64::MAX);
    while !(up_done && down_done) {
        tokio::select! {
            ended = &mut up, if !up_done => {
                ended?;
                up_done = true;
            }
            ended = &mut down, if !down_done => {
                ended?;
                down_done = true;
            }
            () = sleep(HALF_OPEN_MAX), if up_done || down_done => {
                let now = moved.load(Ordering::Relaxed);
                if now == before {
                    return Err(Broken);
                }
                before = now;
            }
        }
    }
    Ok(())
}

async fn up(read: ReadHalf<'_>, send: &mut SendStream, toll: &impl Toll, moved: &AtomicU64) -> Result<(), Broken> {
    loop {
        let bytes = read_some(&read).await.map_err(|_| Broken)?;
        if bytes.is_empty() {
            return send.finish().map_err(|_| Broken);
        }
        if !toll.pay(bytes.len()) {
            return Err(Broken);
        }
        let len = bytes.len() as u64;
        send.write_chunk(bytes).await.map_err(|_| Broken)?;
        moved.fetch_add(len, Ordering::Relaxed);
    }
}

/// What has come, at most [`READ_BYTES`]; nothing at the end.
async fn read_some(read: &ReadHalf<'_>) -> io::Result<Bytes> {
    loop {
        read.readable().await?;
        let came = SCRATCH
            .with_borrow_mut(|scratch| read.try_read(scratch).map(|len| Bytes::copy_from_slice(&scratch[..len])));
        match came {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            came => return came,
        }
    }
}

async fn down(
    recv: &mut RecvStream,
    mut write: WriteHalf<'_>,
    toll: &impl Toll,
    moved: &AtomicU64,
) -> Result<(), Broken> {
    let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
    loop {
        let Some(count) = recv.read_many_chunks(&mut chunks).await.map_err(|_| Broken)? else {
            return write.shutdown().await.map_err(|_| Broken);
        };
        let came = &mut chunks[..count];
        let len: usize = came.iter().map(Bytes::len).sum();
        if !toll.pay(len) {
            return Err(Broken);
        }
        write_chunks(&mut write, came).await.map_err(|_| Broken)?;
        // Even an empty piece holds the packets that it came in.
        came.fill(Bytes::new());
        moved.fetch_add(len as u64, Ordering::Relaxed);
    }
}

async fn write_chunks(write: &mut WriteHalf<'_>, mut chunks: &mut [Bytes]) -> io::Result<()> {
    while let Some(first) = chunks.first() {
        if first.is_empty() {
            chunks = &mut chunks[1..];
            continue;
        }
        let mut slices = [IoSlice::new(&[]); CHUNKS];
        for (slice, chunk) in slices.iter_mut().zip(chunks.iter()) {
            *slice = IoSlice::new(chunk);
        }
        let mut written = write.write_vectored(&slices[..chunks.len()]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        for chunk in chunks.iter_mut() {
            let part = written.min(chunk.len());
            chunk.advance(part);
            written -= part;
        }
    }
    Ok(())
}
