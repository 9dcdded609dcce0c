//! A stream's two tasks: one cuts bytes into frames, one writes what is to be sent.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use iroh::endpoint::{ConnectionError, ReadError, RecvStream, SendStream, VarInt};
use potluck_wire::{Ask, CONTROL_BYTES_MAX, Failure, FailureCode, Frame, FrameReader};
use tokio::{
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
};

use tracing::Span;

use crate::{
    echo::{Echoes, Echoing, Incoming},
    shelf::Turn,
    upload::Upload,
};

/// Writes that may wait for one stream. Credit keeps steps far below it; beyond it the stream ends with `OverBudget`.
const WRITES_MAX: usize = 256;

/// Bytes that may wait for one stream: the steps that credit allows, of a wide model, in half precision. Answers need no
/// credit: beyond it, a client that does not read them has its session ended with `OverBudget`.
const WAITING_BYTES_MAX: usize = 128 << 20;

/// Longest that the last bytes of a stream that we have ended may wait to be taken. Beyond it the stream is reset.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// The same for a part of a model, which may be a megabyte on a slow line, and where it is the owner who has made it slow.
const PART_DEADLINE: Duration = Duration::from_secs(60);

/// Buffers of a stream that are kept to be used again: as many steps as are on their way to the other side now and then.
const BUFFERS_MAX: usize = 4;

/// Bytes of the largest one: a prompt's steps are long and few, and allocate.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// A stream's halves, and the echoes of its connection, where both sides know them.
#[derive(Debug)]
pub(crate) struct Halves {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    pub(crate) echoes: Option<Echoes>,
    /// Whether both sides of it know the checks of steps that are sent again.
    pub(crate) checks: bool,
    /// How fast it may be written to; none: as fast as it takes.
    pub(crate) upload: Option<Upload>,
}

/// What a stream's reader found.
#[derive(Debug)]
pub(crate) enum Inbound {
    Frame(Frame),
    /// The stream's first frame is an ask: what follows is for whoever answers it, at its own pace.
    Asked(Box<Asking>),
    /// Nothing more comes.
    Closed(Failure),
    /// Nothing more comes: the connection is lost, and the other side has said nothing of it. It may not know.
    Broken(Failure),
}

/// An ask, and where its body comes from.
#[derive(Debug)]
pub(crate) struct Asking {
    pub(crate) ask: Ask,
    pub(crate) recv: RecvStream,
    /// With what has come already of the frames after it.
    pub(crate) reader: FrameReader,
}

/// Our side of a stream. Dropped, it stops reading; what was given to it is still written.
#[derive(Debug)]
pub(crate) struct Stream {
    writes: mpsc::Sender<Bytes>,
    waiting_bytes: Arc<AtomicUsize>,
    limit: Arc<AtomicUsize>,
    read_bytes: Arc<AtomicU64>,
    echoed_bytes: Arc<AtomicU64>,
    written_bytes: u64,
    pending: Vec<u8>,
    buffers: Buffers,
    checks: bool,
    _reader: Reading,
    open: oneshot::Sender<Ending>,
    /// Of the session that it carries: it ends with the stream.
    span: Option<Span>,
}

/// How a stream's owner lets go of it, where it does not just drop it.
#[derive(Debug)]
enum Ending {
    /// What is left is a part of a model. The turn is over once it has been taken.
    Part(Turn),
    /// Somebody else writes from now on.
    Given(oneshot::Sender<SendStream>),
}

/// What the writer was given, the oldest first. A buffer is used again once the other side has what is in it, and it was echoed, if it is to be:
/// what it held is overwritten then, or when the stream ends.
#[derive(Debug, Default)]
struct Buffers(VecDeque<Bytes>);

impl Buffers {
    /// An empty one.
    fn take(&mut self) -> Vec<u8> {
        if !self.0.front().is_some_and(Bytes::is_unique) {
            return Vec::new();
        }
        let mut buffer: Vec<u8> = self.0.pop_front().map_or_else(Vec::new, Vec::from);
        buffer.fill(0);
        buffer.clear();
        buffer
    }

    /// To be given to the writer: what is in `buffer`, of which another hold is kept.
    fn lend(&mut self, buffer: Vec<u8>) -> Bytes {
        let keep = buffer.capacity() <= BUFFER_BYTES_MAX;
        let bytes = Bytes::from(buffer);
        if keep {
            if self.0.len() == BUFFERS_MAX {
                self.0.pop_front();
            }
            self.0.push_back(bytes.clone());
        }
        bytes
    }
}

/// A frame as the other side knows it.
fn as_agreed(mut frame: Frame, checks: bool) -> Frame {
    if let Frame::Replay { checked, .. } = &mut frame {
        *checked &= checks;
    }
    frame
}

/// A reader's task, which ends when this is dropped.
#[derive(Debug)]
struct Reading(AbortHandle);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Stream {
    /// Starts both tasks. What is read goes to `inbound` through `label`.
    pub(crate) fn start<T: Send + 'static>(
        tasks: &mut JoinSet<()>,
        Halves { send, recv, echoes, checks, upload }: Halves,
        inbound: mpsc::Sender<T>,
        label: impl Fn(Inbound) -> T + Send + 'static,
    ) -> Self {
        let (writes, queue) = mpsc::channel(WRITES_MAX);
        let limit = Arc::new(AtomicUsize::new(CONTROL_BYTES_MAX));
        let (read_bytes, echoed_bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let incoming = (Incoming::new(recv), echoes.clone());
        let counts = (read_bytes.clone(), echoed_bytes.clone());
        let reader = Reading(tasks.spawn(read(incoming, limit.clone(), counts, inbound, label)));
        let (open, closed) = oneshot::channel();
        // Who sends little sends nothing twice.
        let echoing = Echoing::new(echoes.filter(|_| upload.is_none()), send.id());
        let drain = if upload.is_some() { PART_DEADLINE } else { DRAIN_DEADLINE };
        tokio::spawn(write((send, echoing, upload), queue, waiting_bytes.clone(), (closed, drain)));
        Self {
            writes,
            waiting_bytes,
            limit,
            read_bytes,
            echoed_bytes,
            written_bytes: 0,
            pending: Vec::new(),
            buffers: Buffers::default(),
            checks,
            _reader: reader,
            open,
            span: None,
        }
    }

    /// A session is carried on it: the session's span ends with it.
    pub(crate) fn carries(&mut self, span: Span) {
        self.span = Some(span);
    }

    /// Frames that arrive may be so long from now on.
    pub(crate) fn set_limit(&self, frame_bytes_max: usize) {
        self.limit.store(frame_bytes_max, Ordering::Relaxed);
    }

    /// Adds a frame to what is written by the next `flush`.
    pub(crate) fn push(&mut self, frame: Frame) {
        if self.pending.capacity() == 0 {
            self.pending = self.buffers.take();
        }
        as_agreed(frame, self.checks).encode_last(&mut self.pending);
    }

    /// Hands everything that was pushed to the writer, as one write.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let bytes = self.buffers.lend(std::mem::take(&mut self.pending));
        let waiting = self.waiting_bytes.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if waiting > WAITING_BYTES_MAX {
            return Err(Failure::new(
                FailureCode::OverBudget,
                format!("{waiting} bytes wait for a side that does not read"),
            ));
        }
        self.written_bytes += bytes.len() as u64;
        self.writes.try_send(bytes).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Failure::new(FailureCode::OverBudget, "the other side does not read"),
            mpsc::error::TrySendError::Closed(_) => Failure::new(FailureCode::PeerLost, "the stream is gone"),
        })
    }

    /// Bytes handed to the writer so far, echoes not counted.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Bytes read so far.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// Bytes among them that echoes brought before the stream itself did.
    pub(crate) fn echoed_bytes(&self) -> u64 {
        self.echoed_bytes.load(Ordering::Relaxed)
    }

    /// Ends the stream: says why, unless it is `Done`, finishes it and stops reading.
    pub(crate) fn end(mut self, failure: Failure) {
        if failure.code != FailureCode::Done {
            self.push(Frame::Failed(failure));
        }
        let _ = self.flush();
    }

    /// Ends the stream with a part of a model. The turn is over once it has been taken.
    pub(crate) fn end_with(mut self, part: Frame, turn: Turn) {
        self.push(part);
        if self.flush().is_ok() {
            let Self { open, .. } = self;
            // A writer that is gone needs no time.
            let _ = open.send(Ending::Part(turn));
        }
    }

    /// Gives the writing half to somebody else. Nothing may have been pushed.
    pub(crate) async fn give(self) -> Option<SendStream> {
        // What writes ends when its queue does: that stays open until it has let go.
        let Self { open, writes: _queue, .. } = self;
        let (to, given) = oneshot::channel();
        open.send(Ending::Given(to)).ok()?;
        given.await.ok()
    }
}

/// Writes what is queued until the stream's owner is gone; then what is left, within a deadline.
async fn write(
    (mut send, mut echoing, upload): (SendStream, Echoing, Option<Upload>),
    mut queue: mpsc::Receiver<Bytes>,
    waiting_bytes: Arc<AtomicUsize>,
    (closed, drain): (oneshot::Receiver<Ending>, Duration),
) {
    let drained = async {
        loop {
            let bytes = tokio::select! {
                biased;
                bytes = queue.recv() => bytes,
                () = echoing.send() => continue,
            };
            let Some(bytes) = bytes else { break };
            let len = bytes.len();
            let mut left = bytes.clone();
            while !left.is_empty() {
                let piece = match &upload {
                    Some(upload) => upload.next(&mut left).await,
                    None => std::mem::take(&mut left),
                };
                if send.write_chunk(piece).await.is_err() {
                    return;
                }
            }
            echoing.wrote(bytes);
            waiting_bytes.fetch_sub(len, Ordering::Relaxed);
        }
        if send.finish().is_ok() {
            // Its last words are echoed like any.
            tokio::select! {
                _ = send.stopped() => {}
                () = echoing.send() => {}
            }
        }
    };
    let overdue = async {
        // The owner drops its half, hands on its turn, or the stream itself.
        let (patience, _turn) = match closed.await {
            Ok(Ending::Given(to)) => return Some(to),
            Ok(Ending::Part(turn)) => (PART_DEADLINE, Some(turn)),
            Err(_) => (drain, None),
        };
        tokio::time::sleep(patience).await;
        None
    };
    let late = tokio::select! {
        () = drained => return,
        late = overdue => late,
    };
    match late {
        // Whoever is gone gets a stream that is dropped, and so finished.
        Some(to) => drop(to.send(send)),
        None => drop(send.reset(VarInt::from_u32(FailureCode::OverBudget.number()))),
    }
}

async fn read<T: Send + 'static>(
    (mut incoming, echoes): (Incoming, Option<Echoes>),
    limit: Arc<AtomicUsize>,
    (read_bytes, echoed_bytes): (Arc<AtomicU64>, Arc<AtomicU64>),
    inbound: mpsc::Sender<T>,
    label: impl Fn(Inbound) -> T + Send + 'static,
) {
    let mut reader = FrameReader::new(CONTROL_BYTES_MAX);
    let mut first = true;
    let ended = loop {
        let chunk = match incoming.read().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break Inbound::Closed(reader.finish().err().map_or(done(), protocol)),
            Err(error) => break lost(&error),
        };
        read_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        echoed_bytes.store(incoming.echoed(), Ordering::Relaxed);
        let mut bytes: &[u8] = &chunk;
        reader.set_limit(limit.load(Ordering::Relaxed));
        let bad = loop {
            match reader.read(&mut bytes) {
                Ok(None) => break None,
                Ok(Some(Frame::Ask(ask))) if first => {
                    reader.push(bytes);
                    let asking = Box::new(Asking { ask, recv: incoming.into_stream(), reader });
                    let _ = inbound.send(label(Inbound::Asked(asking))).await;
                    return;
                }
                Ok(Some(frame)) => {
                    // What follows an ask is read elsewhere: echoes of it would have been read twice.
                    if std::mem::take(&mut first)
                        && let Some(echoes) = &echoes
                    {
                        incoming.hear(echoes);
                    }
                    if inbound.send(label(Inbound::Frame(frame))).await.is_err() {
                        return;
                    }
                    // The frame may have raised the limit by the time that the next one is looked at.
                    reader.set_limit(limit.load(Ordering::Relaxed));
                }
                Err(error) => break Some(protocol(error)),
            }
        };
        if let Some(failure) = bad {
            break Inbound::Closed(failure);
        }
    };
    let _ = inbound.send(label(ended)).await;
}

fn done() -> Failure {
    Failure::new(FailureCode::Done, "")
}

fn protocol(error: potluck_wire::WireError) -> Failure {
    Failure::new(FailureCode::Protocol, error)
}

/// How a stream ended that did not end by itself: with the other side's reason, where it gave one.
fn lost(error: &ReadError) -> Inbound {
    let given = match error {
        ReadError::Reset(code) => Some(*code),
        ReadError::ConnectionLost(ConnectionError::ApplicationClosed(close)) => Some(close.error_code),
        // Closed by this program.
        ReadError::ConnectionLost(ConnectionError::LocallyClosed) => None,
        ReadError::ConnectionLost(_) => return Inbound::Broken(Failure::new(FailureCode::PeerLost, error)),
        _ => None,
    };
    let code = given.and_then(|code| FailureCode::from_number(code.into_inner()));
    let code = code.filter(|code| *code != FailureCode::Done).unwrap_or(FailureCode::PeerLost);
    Inbound::Closed(Failure::new(code, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connection_that_nobody_closed_broke_off() {
        let closed = |code: FailureCode| {
            let error_code = VarInt::from_u32(code.number());
            ConnectionError::ApplicationClosed(iroh::endpoint::ApplicationClose { error_code, reason: Bytes::new() })
        };
        let code = |error: ReadError| match lost(&error) {
            Inbound::Closed(failure) => (failure.code, false),
            Inbound::Broken(failure) => (failure.code, true),
            other => panic!("{other:?}"),
        };
        let ended = |error| code(ReadError::ConnectionLost(error));
        assert_eq!(ended(ConnectionError::TimedOut), (FailureCode::PeerLost, true));
        assert_eq!(ended(ConnectionError::Reset), (FailureCode::PeerLost, true));
        assert_eq!(ended(ConnectionError::LocallyClosed), (FailureCode::PeerLost, false));
        // A program that ends says so, if nothing else.
        assert_eq!(ended(closed(FailureCode::Done)), (FailureCode::PeerLost, false));
        assert_eq!(ended(closed(FailureCode::NotAdmitted)), (FailureCode::NotAdmitted, false));
        let reset = ReadError::Reset(VarInt::from_u32(FailureCode::OverBudget.number()));
        assert_eq!(code(reset), (FailureCode::OverBudget, false));
    }

    #[test]
    fn who_knows_no_checks_is_sent_none() {
        let step = || potluck_wire::StepFrame::skipped(7, 2, 30, 1);
        let replay = |checked| Frame::Replay { due: 7, step: step(), checked };
        assert_eq!(as_agreed(replay(true), true), replay(true));
        assert_eq!(as_agreed(replay(true), false), replay(false));
        assert_eq!(as_agreed(Frame::Step(step()), false), Frame::Step(step()));
    }

    #[test]
    fn a_buffer_is_used_again_once_the_other_side_has_what_is_in_it() {
        let mut buffers = Buffers::default();
        let first = buffers.lend(vec![7; 1_000]);
        let place = first.as_ptr();
        assert_eq!(buffers.take().capacity(), 0, "it is on its way");
        let second = buffers.lend(vec![8; 1_000]);
        drop(first);
        let again = buffers.take();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        assert!(again.capacity() >= 1_000);
        assert_eq!(buffers.take().capacity(), 0, "the second one is on its way");
        drop(second);
        assert!(buffers.take().capacity() >= 1_000);
    }

    #[test]
    fn few_buffers_are_kept_and_no_long_ones() {
        let mut buffers = Buffers::default();
        drop(buffers.lend(vec![7; BUFFER_BYTES_MAX + 1]));
        assert_eq!(buffers.take().capacity(), 0);
        let lent: Vec<_> = (0..BUFFERS_MAX + 2).map(|_| buffers.lend(vec![7; 100])).collect();
        assert_eq!(buffers.0.len(), BUFFERS_MAX);
        drop(lent);
        let taken = std::iter::repeat_with(|| buffers.take()).take_while(|buffer| buffer.capacity() > 0).count();
        assert_eq!(taken, BUFFERS_MAX);
    }
}
