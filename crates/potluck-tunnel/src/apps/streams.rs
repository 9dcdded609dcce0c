//! Streams to an application: accepted by it, and then bytes both ways.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use potluck_core::PeerId;
use potluck_grant::Member;
use potluck_net::{RecvStream, SendStream, Tunnel};
use potluck_wire::{NotReached, TunnelFrame};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    Places, UNWANTED,
    queue::{WAITING_MAX, Waiting},
    refuse,
};
use crate::{
    copy::Toll,
    frame,
    serve::{Metered, Room},
};

/// Longest wait, once a stream's sending half is finished, for the other side to have received what was sent.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Where streams of a topic go.
#[derive(Debug, Clone)]
pub(super) struct Callers {
    queue: mpsc::Sender<Caller>,
    places: Places,
}

/// Longest that the word that a stream is accepted may wait to be sent.
const OPENED_MAX: Duration = Duration::from_secs(1);

/// Streams of one topic. While it is kept, members may open them.
#[derive(Debug)]
pub struct Arriving {
    queue: mpsc::Receiver<Caller>,
    /// One that was accepted, while its other side is told.
    accepted: Option<oneshot::Receiver<PeerStream>>,
}

/// A stream that waits: it is given to whoever this is sent. It has its room for as long as it is in the queue, also where whoever opened
/// it has gone.
#[derive(Debug)]
struct Caller {
    give: oneshot::Sender<oneshot::Sender<PeerStream>>,
    _room: Waiting,
}

/// Bytes to and from a member: what is written arrives in order, and no more is under way than the other side takes.
///
/// The end of what one side sends ([`finish`](Self::finish), or `shutdown`) leaves the other half as it was. A stream
/// that is dropped before its sending half has ended is reset: what was cut short never looks like all of it.
pub struct PeerStream {
    peer: PeerId,
    send: SendStream,
    recv: RecvStream,
    ended: bool,
    /// The connection that it came by, or went by, stays for as long as it.
    _tunnel: Tunnel,
    /// What a member's own grant limits, where it opened the stream.
    metered: Option<(Metered, Room)>,
    topic: String,
}

pub(super) fn callers() -> (Callers, Arriving) {
    let (queue, callers) = mpsc::channel(WAITING_MAX);
    (Callers { queue, places: Places::default() }, Arriving { queue: callers, accepted: None })
}

impl Arriving {
    /// The next one. None once the node is closed. It may be given up at any time.
    pub async fn next(&mut self) -> Option<PeerStream> {
        loop {
            if let Some(accepted) = &mut self.accepted {
                let stream = accepted.await;
                self.accepted = None;
                // Whoever opened it may be gone by now.
                if let Ok(stream) = stream {
                    return Some(stream);
                }
            }
            let caller = self.queue.recv().await?;
            let (give, accepted) = oneshot::channel();
            if caller.give.send(give).is_ok() {
                self.accepted = Some(accepted);
            }
        }
    }
}

impl Callers {
    pub(super) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Takes a stream in, until it is accepted, or whoever opened it is gone.
    pub(super) async fn take(
        self,
        tunnel: &Tunnel,
        topic: String,
        by: Member,
        (mut send, recv): (SendStream, RecvStream),
        metered: (Metered, Room),
    ) {
        let peer = by.peer();
        let Some(room) = self.places.take(peer, 0) else {
            return refuse(tunnel, (send, recv), NotReached::Busy).await;
        };
        let (caller, mut accepted) = oneshot::channel();
        if self.queue.try_send(Caller { give: caller, _room: room }).is_err() {
            return refuse(tunnel, (send, recv), NotReached::Busy).await;
        }
        let accepted = tokio::select! {
            accepted = &mut accepted => accepted,
            _ = send.stopped() => return,
        };
        let Ok(give) = accepted else { return refuse(tunnel, (send, recv), NotReached::NotExposed).await };
        // Whoever takes not even that at once holds up those behind it no longer.
        if matches!(timeout(OPENED_MAX, frame::write(peer, &mut send, &TunnelFrame::Opened)).await, Ok(Ok(()))) {
            let stream = PeerStream::new(topic, tunnel.clone(), send, recv).metered(metered);
            // Whoever accepted it may have gone: then it is reset.
            drop(give.send(stream));
        }
    }
}

impl PeerStream {
    pub(super) fn new(topic: String, tunnel: Tunnel, send: SendStream, recv: RecvStream) -> Self {
        let peer = tunnel.peer();
        Self { peer, send, recv, ended: false, _tunnel: tunnel, metered: None, topic }
    }

    /// The same, opened by a member.
    fn metered(self, metered: (Metered, Room)) -> Self {
        let mut stream = self;
        stream.metered = Some(metered);
        stream
    }

    /// The other side, as its connection's key has proven.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// The topic, or the service, that it leads to.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Ends what this side sends, and waits, 10 s at most, until the other side has received it.
    ///
    /// # Errors
    /// The other side wants no more of it, or is gone, or did not receive all of it in time.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.end()?;
        match timeout(DRAIN_MAX, self.send.stopped()).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(_))) => Err(io::ErrorKind::ConnectionReset.into()),
            Ok(Err(_)) => Err(io::ErrorKind::ConnectionAborted.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Ends both halves at once: the other side sees that it is cut short.
    pub fn reset(mut self) {
        let _ = self.recv.stop(UNWANTED);
        let _ = self.send.reset(UNWANTED);
        self.ended = true;
    }

    fn end(&mut self) -> io::Result<()> {
        if !self.ended {
            self.send.finish().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            self.ended = true;
        }
        Ok(())
    }

    /// An error once the day's bytes are used up.
    fn pay(&mut self, bytes: usize) -> io::Result<()> {
        if self.metered.as_ref().is_none_or(|(toll, _)| toll.pay(bytes)) {
            return Ok(());
        }
        let _ = self.recv.stop(UNWANTED);
        let _ = self.send.reset(UNWANTED);
        self.ended = true;
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, "the bytes that the grant allows in a day are used up"))
    }
}

impl Drop for PeerStream {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.send.reset(UNWANTED);
        }
    }
}

impl fmt::Debug for PeerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerStream({} with {})", self.topic, self.peer.short())
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buf))?;
        let came = buf.filled().len() - before;
        Poll::Ready(self.pay(came))
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let went = ready!(AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes))?;
        Poll::Ready(self.pay(went).map(|()| went))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end())
    }
}
