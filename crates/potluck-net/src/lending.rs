//! What a peer lends by an upstream: how a member's request comes in, and its answer goes out as it comes.
//!
//! What answers is another's business, like what is behind a [`Door`](crate::Door). Whoever asked keeps its side of the stream open
//! for as long as it wants the answer: when that side ends, the request is dropped at once.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use iroh::endpoint::{RecvStream, SendStream, VarInt};
use potluck_core::{Endpoint, PeerId};
use potluck_wire::{Ask, Failure, FailureCode, Frame, FrameReader, Head, PART_FRAME_BYTES_MAX, Upstream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::timeout,
};

use crate::{
    places::{Place, Places},
    stream::{Asking, Stream},
};

/// KiB of requests' bodies that are held until their answers begin. What does not fit is refused with `Busy`.
const BODIES_KIB_MAX: usize = 256 << 10;

/// Pieces of an answer that wait for whoever asked. Beyond it the upstream waits.
const PIECES_MAX: usize = 4;

/// Bytes of a piece: whoever reads slowly holds few of them.
const PIECE_BYTES: usize = 64 << 10;

/// Longest that whoever asked may leave a piece, or the end of an answer, unread. Beyond it the stream is reset.
const UNREAD_PATIENCE: Duration = Duration::from_secs(120);

/// The same for the reason of a failure.
const FAILED_PATIENCE: Duration = Duration::from_secs(5);

const _: () = assert!(PIECE_BYTES < potluck_wire::PART_BYTES_MAX, "a piece is a part");

/// What a peer lends by its upstream.
#[derive(Debug, Clone)]
pub struct Lending {
    /// The models, and what is wrong, as it is now; how much of it is in use is filled in here.
    pub offered: watch::Receiver<Upstream>,
    /// Where requests go.
    pub asks: mpsc::Sender<Asked>,
    /// Requests that may be under way, [`share`](Upstream::share) of them one member's. A further one is refused with `Busy`.
    pub places: u16,
}

/// A member's request to the upstream.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub endpoint: Endpoint,
    /// JSON, as far as its sender kept to the rules: it may be anything.
    pub body: Bytes,
    /// Where the answer goes: a head, its body in pieces, an end; or why there is none. It is closed once nobody waits for it.
    pub reply: mpsc::Sender<Result<Reply, Failure>>,
}

/// A part of an upstream's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// How it begins.
    Head(Head),
    /// A piece of its body.
    Body(Bytes),
    /// That was all.
    End,
}

/// Who has requests under way, and how much room they take.
#[derive(Debug)]
pub(crate) struct Asks {
    places: Places<PeerId>,
    bodies: Arc<Semaphore>,
}

/// Room for one request, given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    _place: Place<PeerId>,
    body: OwnedSemaphorePermit,
}

impl Default for Asks {
    fn default() -> Self {
        Self { places: Places::default(), bodies: Arc::new(Semaphore::new(BODIES_KIB_MAX)) }
    }
}

impl Asks {
    /// What is lent, and how much of it is in use.
    pub(crate) fn describe(&self, lending: &Lending) -> Upstream {
        let running = u16::try_from(self.places.taken_in_all()).unwrap_or(u16::MAX);
        Upstream { running, places: lending.places, ..lending.offered.borrow().clone() }
    }

    /// Room for that request of that member.
    pub(crate) fn room(&self, by: PeerId, ask: Ask, places: u16) -> Result<Room, Failure> {
        let busy = |what: String| Failure::new(FailureCode::Busy, what);
        let (all, own) = self.places.taken(&by);
        if all >= usize::from(places) || own >= usize::from(Upstream::share(places)) {
            return Err(busy(format!("{all} requests are under way, {own} of them yours")));
        }
        let body = self.bodies.clone().try_acquire_many_owned(ask.bytes.div_ceil(1 << 10));
        let body = body.map_err(|_| busy(format!("no room for a request of {} bytes", ask.bytes)))?;
        Ok(Room { _place: self.places.take(by), body })
    }
}

/// Answers an ask, on its own stream: to its end, to whoever asked is gone, or to a failure, which is told.
pub(crate) async fn answer(lending: Lending, room: Room, asking: Asking, stream: Stream, stall: Duration) {
    let Some(mut send) = stream.give().await else { return };
    match pass(lending, room, asking, &mut send, stall).await {
        Ok(()) => {
            let _ = send.finish();
            if timeout(UNREAD_PATIENCE, send.stopped()).await.is_err() {
                let _ = send.reset(VarInt::from_u32(FailureCode::OverBudget.number()));
            }
        }
        Err(Failure { code: code @ FailureCode::Cancelled, .. }) => {
            let _ = send.reset(VarInt::from_u32(code.number()));
        }
        Err(failure) => {
            tracing::info!(code = %failure.code, "a request to the upstream failed");
            let told = async {
                write(&mut send, &Frame::Failed(failure)).await?;
                let _ = send.finish();
                let _ = send.stopped().await;
                Ok::<_, Failure>(())
            };
            let _ = timeout(FAILED_PATIENCE, told).await;
        }
    }
}

async fn pass(
    lending: Lending,
    room: Room,
    asking: Asking,
    send: &mut SendStream,
    stall: Duration,
) -> Result<(), Failure> {
    let Asking { ask, mut recv, reader } = asking;
    let Room { _place, body: held } = room;
    let (body, padded) = read_body(ask, &mut recv, reader, stall).await?;
    let (reply, mut replies) = mpsc::channel(PIECES_MAX);
    let asked = Asked { endpoint: ask.endpoint, body, reply };
    let leaving = |_| Failure::new(FailureCode::Leaving, "the peer is shutting down");
    lending.asks.send(asked).await.map_err(leaving)?;
    let mut held = Some(held);
    loop {
        let next = tokio::select! {
            biased;
            () = gone(&mut recv) => return Err(Failure::new(FailureCode::Cancelled, "whoever asked is gone")),
            next = replies.recv() => next,
        };
        match next {
            Some(Ok(Reply::Head(head))) => {
                // The upstream has read the request.
                held = None;
                write(send, &Frame::Head(head)).await?;
            }
            Some(Ok(Reply::Body(bytes))) => {
                for piece in bytes.chunks(PIECE_BYTES) {
                    write(send, &part(piece, padded)).await?;
                }
            }
            Some(Ok(Reply::End)) if held.is_none() => return Ok(()),
            Some(Ok(Reply::End)) | None => {
                return Err(Failure::new(FailureCode::EngineLost, "the upstream's answer broke off"));
            }
            Some(Err(failure)) => return Err(failure),
        }
    }
}

/// A piece, as the request's came.
pub(crate) fn part(piece: &[u8], padded: bool) -> Frame {
    if padded { Frame::PaddedPart(piece.to_vec()) } else { Frame::Part(piece.to_vec()) }
}

/// The request's body: as long as was announced, and held only as far as it has come; and whether it came padded.
async fn read_body(
    ask: Ask,
    recv: &mut RecvStream,
    mut reader: FrameReader,
    stall: Duration,
) -> Result<(Bytes, bool), Failure> {
    let protocol = |what: &dyn std::fmt::Display| Failure::new(FailureCode::Protocol, what);
    let bytes = ask.bytes as usize;
    let (mut body, mut padded) = (Vec::new(), false);
    reader.set_limit(PART_FRAME_BYTES_MAX);
    while body.len() < bytes {
        let frame = reader.next().map_err(|error| protocol(&error))?;
        padded |= matches!(frame, Some(Frame::PaddedPart(_)));
        match frame {
            Some(Frame::Part(part) | Frame::PaddedPart(part))
                if body.len() + part.len() <= bytes && !part.is_empty() =>
            {
                body.extend_from_slice(&part);
                continue;
            }
            Some(other) => return Err(protocol(&format!("a {} frame in a request of {bytes} bytes", other.kind()))),
            None => {}
        }
        let late = |_| Failure::new(FailureCode::Deadline, "the rest of the request did not come in time");
        match timeout(stall, recv.read_chunk(PART_FRAME_BYTES_MAX)).await.map_err(late)? {
            Ok(Some(chunk)) => reader.push(&chunk),
            Ok(None) | Err(_) => return Err(Failure::new(FailureCode::Cancelled, "the request broke off")),
        }
    }
    Ok((body.into(), padded))
}

/// Returns when whoever asked wants the answer no longer: it has ended its side, or is lost. More bytes are nothing that it may send.
async fn gone(recv: &mut RecvStream) {
    let _ = recv.read_chunk(1).await;
}

async fn write(send: &mut SendStream, frame: &Frame) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    match timeout(UNREAD_PATIENCE, send.write_all(&bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Failure::new(FailureCode::Cancelled, "whoever asked is gone")),
        Err(_) => Err(Failure::new(FailureCode::OverBudget, "the answer was not read in time")),
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::SecretKey;
    use potluck_wire::ASK_BYTES_MAX;

    use super::*;

    fn member(n: u8) -> PeerId {
        SecretKey::from_bytes(&[n; 32]).peer_id()
    }

    fn ask(bytes: u32) -> Ask {
        Ask { endpoint: Endpoint::Completions, bytes }
    }

    #[test]
    fn no_member_takes_all_places_and_all_of_them_no_more_than_there_are() {
        let asks = Asks::default();
        let fill = |n| std::iter::from_fn(|| asks.room(member(n), ask(1), 64).ok()).collect::<Vec<_>>();
        let (first, second) = (fill(1), fill(2));
        assert_eq!((first.len(), second.len()), (48, 16));
        assert_eq!(asks.room(member(3), ask(1), 64).unwrap_err().code, FailureCode::Busy);
        drop(first);
        assert!(asks.room(member(3), ask(1), 64).is_ok());
        drop(second);
        let only = asks.room(member(3), ask(1), 1);
        assert!(only.is_ok() && asks.room(member(3), ask(1), 1).is_err(), "the only place is somebody's");
    }

    #[test]
    fn large_requests_are_refused_before_they_fill_the_memory() {
        let asks = Asks::default();
        let mut held = Vec::new();
        let refused = loop {
            match asks.room(member(held.len() as u8 % 4), ask(ASK_BYTES_MAX), 256) {
                Ok(room) => held.push(room),
                Err(failure) => break failure,
            }
        };
        assert_eq!((held.len(), refused.code), (BODIES_KIB_MAX / (ASK_BYTES_MAX as usize >> 10), FailureCode::Busy));
        assert!(asks.room(member(9), ask(1_000), 256).is_ok(), "a small one fits");
    }
}
