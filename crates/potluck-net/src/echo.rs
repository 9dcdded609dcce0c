//! Echoes: while packets are being lost, what takes few of them is sent twice.
//!
//! A stream's lost packet is sent again a round trip later at the earliest, and a step waits for it at every peer of the route. So its
//! bytes follow once more a moment later, in datagrams, each with its place in the stream; whichever comes first is read. Both travel
//! on the same connection, under its congestion control, and are the same peer's word.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use iroh::endpoint::{Connection, ReadError, RecvStream, StreamId};
use potluck_wire::{ECHO_HEADER_BYTES_MAX, FEATURE_ECHOES, decode_echo, encode_echo};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, consume_budget},
    time::{Instant, sleep_until},
};

use crate::path::Packets;

/// Bytes of the longest write that is echoed: a row of 8,192 channels in half precision, or a few rows of fewer.
const ECHOED_BYTES_MAX: usize = 20 << 10;

/// How long after a write its echo follows: longer than most losses last that take several packets in a row.
const ECHO_AFTER: Duration = Duration::from_millis(5);

/// How much later it is of no use any more: the stream has been held up, and its echo would be sent before it.
const ECHO_OVERDUE: Duration = Duration::from_millis(25);

/// Writes that wait to be echoed, of one stream. Those beyond it are not.
const ECHOES_WAITING_MAX: usize = 16;

/// Packets of which two must have been lost for a path to count as one that loses some.
const LOSSES_REMEMBERED: u64 = 1_000;

/// How often it is looked for packets that were lost.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Echoes that wait to be read, of one stream, and those that came before their turn: a few writes of the longest, a packet each.
/// Those beyond it are dropped.
const HEARD_MAX: usize = 64;
const EARLY_MAX: usize = 64;

/// Bytes read from a stream at a time.
const READ_BYTES: usize = 256 << 10;

/// A connection's echoes. Clones are the same connection's.
#[derive(Debug, Clone)]
pub(crate) struct Echoes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    connection: Connection,
    /// Bytes that datagrams which wait to be sent may take, while none does.
    room: usize,
    losses: Mutex<Losses>,
    readers: Arc<Mutex<Readers>>,
}

/// Who reads which stream, and the task that reads datagrams for them while there are any.
#[derive(Debug, Default)]
struct Readers {
    streams: HashMap<u64, mpsc::Sender<(u64, Bytes)>>,
    task: Option<AbortHandle>,
}

/// A piece of a stream, and where in it it begins.
type Piece = (u64, Bytes);

impl Echoes {
    /// Those of a connection whose sides have agreed on these features; none where echoes are not among them.
    pub(crate) fn agreed(connection: &Connection, features: u64) -> Option<Self> {
        let shared = || Shared {
            connection: connection.clone(),
            room: connection.datagram_send_buffer_space(),
            losses: Mutex::default(),
            readers: Arc::default(),
        };
        (features & FEATURE_ECHOES != 0).then(|| Self(Arc::new(shared())))
    }

    /// The echoes of a stream from now on.
    fn hear(&self, stream: StreamId) -> Hearing {
        let (sender, pieces) = mpsc::channel(HEARD_MAX);
        let mut readers = lock(&self.0.readers);
        readers.streams.insert(stream.into(), sender);
        if readers.task.is_none() {
            let task = tokio::spawn(listen(self.0.connection.clone(), self.0.readers.clone()));
            readers.task = Some(task.abort_handle());
        }
        drop(readers);
        Hearing { stream: stream.into(), pieces, readers: self.0.readers.clone() }
    }

    /// Whether packets that this side sent have been lost of late.
    fn are_due(&self) -> bool {
        let mut losses = lock(&self.0.losses);
        let now = Instant::now();
        if losses.looked.is_none_or(|at| now - at >= LOOK_EVERY) {
            losses.looked = Some(now);
            if let Some(packets) = Packets::of(&self.0.connection) {
                losses.note(packets);
            }
        }
        losses.are_recent()
    }

    /// Sends what stands in a stream at that place once more. Datagrams go before streams: while many wait for the connection's turn, what
    /// would be echoed has not been sent either.
    fn send(&self, stream: StreamId, (begin, bytes): &Piece) {
        if self.0.connection.datagram_send_buffer_space() + ECHOED_BYTES_MAX < self.0.room {
            return;
        }
        let Some(room) = self.0.connection.max_datagram_size() else { return };
        let Some(piece) = room.checked_sub(ECHO_HEADER_BYTES_MAX).filter(|piece| *piece > 0) else { return };
        for (at, bytes) in (*begin..).step_by(piece).zip(bytes.chunks(piece)) {
            let _ = self.0.connection.send_datagram(encode_echo(stream.into(), at, bytes).into());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives each echo to whoever reads its stream. It may come from anybody: what nobody waits for is dropped.
async fn listen(connection: Connection, readers: Arc<Mutex<Readers>>) {
    while let Ok(datagram) = connection.read_datagram().await {
        let Some((stream, begin, header)) = decode_echo(&datagram) else { continue };
        if let Some(reader) = lock(&readers).streams.get(&stream) {
            // As it came, it would keep all of what the socket was read into.
            let _ = reader.try_send((begin, Bytes::copy_from_slice(&datagram[header..])));
        }
        consume_budget().await;
    }
}

/// What was lost of what was sent on the connection's path.
#[derive(Debug, Default)]
struct Losses {
    looked: Option<Instant>,
    packets: Option<Packets>,
    /// How many had been sent when the last but one, and the last, of those that were lost were noticed.
    last: [Option<u64>; 2],
}

impl Losses {
    fn note(&mut self, now: Packets) {
        let before = self.packets.replace(now);
        let Some(before) = before.filter(|before| before.path == now.path) else {
            self.last = [None; 2];
            return;
        };
        for _ in 0..now.lost.saturating_sub(before.lost).min(2) {
            self.last = [self.last[1], Some(now.sent)];
        }
    }

    fn are_recent(&self) -> bool {
        let recent = |last: u64| self.packets.is_some_and(|packets| packets.sent - last < LOSSES_REMEMBERED);
        self.last[0].is_some_and(recent)
    }
}

/// What a stream's writer has written and is to echo.
#[derive(Debug)]
pub(crate) struct Echoing {
    echoes: Option<Echoes>,
    stream: StreamId,
    written: u64,
    waiting: VecDeque<(Instant, Piece)>,
}

impl Echoing {
    /// Of a stream that nothing has been written to.
    pub(crate) fn new(echoes: Option<Echoes>, stream: StreamId) -> Self {
        Self { echoes, stream, written: 0, waiting: VecDeque::new() }
    }

    /// That was written next.
    pub(crate) fn wrote(&mut self, bytes: Bytes) {
        let begin = self.written;
        self.written += bytes.len() as u64;
        let Some(echoes) = &self.echoes else { return };
        if bytes.len() <= ECHOED_BYTES_MAX && self.waiting.len() < ECHOES_WAITING_MAX && echoes.are_due() {
            self.waiting.push_back((Instant::now() + ECHO_AFTER, (begin, bytes)));
        }
    }

    /// Sends what is to be sent again, each at its time. Safe to cancel.
    pub(crate) async fn send(&mut self) {
        loop {
            let Some((at, _)) = self.waiting.front() else { return std::future::pending().await };
            sleep_until(*at).await;
            if let (Some(piece), Some(echoes)) = (self.take(Instant::now()), &self.echoes) {
                echoes.send(self.stream, &piece);
            }
        }
    }

    /// What was due first; none where it is of no use any more.
    fn take(&mut self, now: Instant) -> Option<Piece> {
        let (at, piece) = self.waiting.pop_front()?;
        (now.saturating_duration_since(at) < ECHO_OVERDUE).then_some(piece)
    }
}

/// The echoes of a stream. Dropped, they are heard no more.
#[derive(Debug)]
struct Hearing {
    stream: u64,
    pieces: mpsc::Receiver<Piece>,
    readers: Arc<Mutex<Readers>>,
}

impl Drop for Hearing {
    fn drop(&mut self) {
        let mut readers = lock(&self.readers);
        readers.streams.remove(&self.stream);
        if readers.streams.is_empty()
            && let Some(task) = readers.task.take()
        {
            task.abort();
        }
    }
}

/// A stream that is read together with its echoes.
#[derive(Debug)]
pub(crate) struct Incoming {
    recv: RecvStream,
    joined: Joined,
    hearing: Option<Hearing>,
}

impl Incoming {
    /// Of a stream of which nothing has been read.
    pub(crate) fn new(recv: RecvStream) -> Self {
        Self { recv, joined: Joined::default(), hearing: None }
    }

    /// Its echoes count from now on.
    pub(crate) fn hear(&mut self, echoes: &Echoes) {
        self.hearing.get_or_insert_with(|| echoes.hear(self.recv.id()));
    }

    /// Bytes that echoes have brought before the stream itself did.
    pub(crate) fn echoed(&self) -> u64 {
        self.joined.echoed
    }

    /// The stream itself, where no echo of it was heard yet.
    pub(crate) fn into_stream(self) -> RecvStream {
        self.recv
    }

    /// What comes next; none at its end. Safe to cancel.
    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            if let Some(bytes) = self.joined.next() {
                return Ok(Some(bytes));
            }
            let heard = async {
                match &mut self.hearing {
                    Some(hearing) => hearing.pieces.recv().await,
                    None => None,
                }
            };
            let mut heard = pin!(heard);
            tokio::select! {
                biased;
                chunk = self.recv.read_chunk(READ_BYTES) => match chunk? {
                    Some(chunk) => self.joined.came(chunk),
                    None => return Ok(None),
                },
                Some(piece) = &mut heard => self.joined.heard(piece),
            }
        }
    }
}

/// A stream put together from itself and its echoes: each byte once, in order.
#[derive(Debug, Default)]
struct Joined {
    /// How far the stream itself has come, and how far it was read.
    came: u64,
    read: u64,
    /// How much of it echoes have brought first.
    echoed: u64,
    ready: Option<Bytes>,
    /// Echoes that came before their turn, by where they begin.
    early: BTreeMap<u64, Bytes>,
}

impl Joined {
    /// The stream itself has come so much further.
    fn came(&mut self, chunk: Bytes) {
        debug_assert!(self.ready.is_none(), "what is ready is read first");
        let begin = self.came;
        self.came += chunk.len() as u64;
        self.ready = self.rest((begin, chunk));
    }

    fn heard(&mut self, (begin, bytes): Piece) {
        debug_assert!(self.ready.is_none(), "what is ready is read first");
        if begin <= self.read {
            self.ready = self.rest((begin, bytes));
        } else {
            self.early.entry(begin).or_insert(bytes);
            if self.early.len() > EARLY_MAX {
                // What is due last is missed least.
                self.early.pop_last();
            }
        }
    }

    /// What was not read before of a piece that begins before the place up to which all was read.
    fn rest(&self, (begin, bytes): Piece) -> Option<Bytes> {
        let known = usize::try_from(self.read - begin).ok()?;
        (known < bytes.len()).then(|| bytes.slice(known..))
    }

    fn next(&mut self) -> Option<Bytes> {
        let bytes = self.ready.take().or_else(|| self.due())?;
        let known = self.read.max(self.came);
        self.read += bytes.len() as u64;
        self.echoed += self.read.saturating_sub(known);
        Some(bytes)
    }

    /// What came before its turn, and has its turn now.
    fn due(&mut self) -> Option<Bytes> {
        while let Some(first) = self.early.first_entry().filter(|first| *first.key() <= self.read) {
            let piece = first.remove_entry();
            if let Some(rest) = self.rest(piece) {
                return Some(rest);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use iroh::{
        Endpoint, EndpointAddr, TransportAddr,
        endpoint::{PathId, SendStream, presets},
    };
    use potluck_core::PeerId;
    use potluck_wire::{Ask, Frame};
    use proptest::prelude::*;
    use tokio::{task::JoinSet, time::timeout};

    use super::*;
    use crate::{
        NetError,
        greet::read_next,
        stream::{Halves, Inbound, Stream},
    };

    /// Of packets that were sent and lost, on paths by number.
    fn losses(seen: &[(u32, u64, u64)]) -> Losses {
        seen.iter().fold(Losses::default(), |mut losses, (path, sent, lost)| {
            losses.note(Packets { path: PathId::from(*path), sent: *sent, lost: *lost });
            losses
        })
    }

    #[test]
    fn echoes_are_due_while_packets_are_lost() {
        let due = |seen: &[(u32, u64, u64)]| losses(seen).are_recent();
        assert!(!due(&[]) && !due(&[(0, 10, 0), (0, 5_000, 0)]));
        assert!(!due(&[(0, 500, 7)]), "they may have been lost at any time");
        assert!(!due(&[(0, 10, 0), (0, 500, 1)]), "a single one");
        assert!(due(&[(0, 10, 0), (0, 500, 2)]));
        assert!(due(&[(0, 10, 0), (0, 500, 1), (0, 1_499, 2)]));
        assert!(!due(&[(0, 10, 0), (0, 500, 1), (0, 1_500, 2)]), "the first was long ago");
        assert!(due(&[(0, 10, 0), (0, 500, 9), (0, 1_499, 9)]) && !due(&[(0, 10, 0), (0, 500, 9), (0, 1_500, 9)]));
        assert!(!due(&[(0, 10, 0), (0, 500, 9), (1, 5_000, 9)]), "another path");
        assert!(!due(&[(0, 10, 0), (0, 500, 9), (1, 5_000, 20), (0, 510, 9)]), "and the first once more");
    }

    /// A stream's bytes, each another than its neighbours.
    fn bytes(range: std::ops::Range<usize>) -> Bytes {
        range.map(|n| (n * 31 % 251) as u8).collect()
    }

    fn read(joined: &mut Joined, out: &mut Vec<u8>) {
        while let Some(bytes) = joined.next() {
            out.extend_from_slice(&bytes);
        }
    }

    #[test]
    fn what_comes_before_its_turn_is_bounded() {
        let mut joined = Joined::default();
        for n in (1..1_000).rev() {
            joined.heard((n, bytes(n as usize..1_000)));
            assert_eq!(joined.next(), None);
        }
        assert_eq!(joined.early.len(), EARLY_MAX);
        joined.heard((0, bytes(0..1)));
        let mut out = Vec::new();
        read(&mut joined, &mut out);
        assert_eq!(out, bytes(0..1_000), "what is due first was kept");
        assert!(joined.early.is_empty());
    }

    /// Both sides of a connection on loopback, and a stream of the first to the second on which that byte is under way.
    async fn opened(first: u8) -> ([(Endpoint, Connection); 2], SendStream, (SendStream, RecvStream)) {
        let bind = || async {
            let local = SocketAddr::from(([127, 0, 0, 1], 0));
            let builder = Endpoint::builder(presets::Minimal).alpns(vec![b"test".to_vec()]).clear_ip_transports();
            builder.bind_addr(local).unwrap().bind().await.unwrap()
        };
        let (near, far) = (bind().await, bind().await);
        let address = EndpointAddr::from_parts(far.id(), far.bound_sockets().into_iter().map(TransportAddr::Ip));
        let accepted = async { far.accept().await.unwrap().await.unwrap() };
        let (dialled, accepted) = tokio::join!(near.connect(address, b"test"), accepted);
        let dialled = dialled.unwrap();
        let (mut send, _) = dialled.open_bi().await.unwrap();
        send.write_all(&[first]).await.unwrap();
        let there = accepted.accept_bi().await.unwrap();
        ([(near, dialled), (far, accepted)], send, there)
    }

    /// The same where the byte has come.
    async fn stream() -> ([(Endpoint, Connection); 2], SendStream, Incoming) {
        let (ends, send, (_, recv)) = opened(bytes(0..1)[0]).await;
        let mut incoming = Incoming::new(recv);
        assert_eq!(incoming.read().await.unwrap().unwrap(), bytes(0..1));
        (ends, send, incoming)
    }

    #[tokio::test]
    async fn what_follows_an_ask_is_not_heard_twice() {
        let (mut written, behind) = (Vec::new(), Frame::Credit { frames: 7 });
        Frame::Ask(Ask { endpoint: potluck_core::Endpoint::Completions, bytes: 500 }).encode(&mut written);
        behind.encode(&mut written);
        let (ends, mut send, (back, recv)) = opened(written[0]).await;
        let echoes = Echoes::agreed(&ends[1].1, FEATURE_ECHOES);
        let (inbound, mut came) = mpsc::channel(8);
        let mut tasks = JoinSet::new();
        let _stream = Stream::start(
            &mut tasks,
            Halves { send: back, recv, echoes, checks: true, upload: None },
            inbound,
            |what| what,
        );
        // The echo is there first: what comes on another stream meanwhile says so.
        ends[0].1.send_datagram(encode_echo(send.id().into(), 1, &written[1..]).into()).unwrap();
        let (mut other, _) = ends[0].1.open_bi().await.unwrap();
        other.write_all(&[1]).await.unwrap();
        ends[1].1.accept_bi().await.unwrap().1.read_exact(&mut [0]).await.unwrap();
        send.write_all(&written[1..]).await.unwrap();
        send.finish().unwrap();
        let Some(Inbound::Asked(mut asking)) = came.recv().await else { panic!("it asks") };
        let peer = PeerId::from_bytes([1; 32]);
        assert_eq!(read_next(peer, &mut asking.recv, &mut asking.reader).await.unwrap(), behind);
        let more = read_next(peer, &mut asking.recv, &mut asking.reader).await;
        assert!(matches!(more, Err(NetError::Lost { .. })), "{more:?}");
    }

    #[tokio::test]
    async fn what_waits_for_the_connection_s_turn_is_bounded() {
        let (ends, send, _incoming) = stream().await;
        let echoes = Echoes::agreed(&ends[0].1, FEATURE_ECHOES).unwrap();
        // Nothing here waits, so that nothing is sent meanwhile.
        (0..100).for_each(|n| echoes.send(send.id(), &(n * 10_000, bytes(0..10_000))));
        let waiting = echoes.0.room - ends[0].1.datagram_send_buffer_space();
        assert!((ECHOED_BYTES_MAX..2 * ECHOED_BYTES_MAX).contains(&waiting), "{waiting}");
    }

    #[tokio::test]
    async fn what_was_held_up_for_too_long_is_not_echoed() {
        let (ends, send, _incoming) = stream().await;
        let echoes = Echoes::agreed(&ends[0].1, FEATURE_ECHOES).unwrap();
        losing(&echoes);
        let mut echoing = Echoing::new(Some(echoes), send.id());
        echoing.wrote(bytes(0..100));
        echoing.wrote(bytes(0..200));
        let due = echoing.waiting.back().unwrap().0;
        assert_eq!(echoing.take(due + ECHO_OVERDUE), None);
        assert_eq!(echoing.take(due), Some((100, bytes(0..200))));
    }

    #[tokio::test]
    async fn what_an_echo_has_brought_is_not_read_again() {
        let (ends, mut send, mut incoming) = stream().await;
        let [echoes, heard] = ends.each_ref().map(|(_, at)| Echoes::agreed(at, FEATURE_ECHOES).unwrap());
        incoming.hear(&heard);
        losing(&echoes);
        let mut echoing = Echoing::new(Some(echoes), send.id());
        echoing.wrote(bytes(0..1));
        // As if all of its packets were lost: more than one takes.
        echoing.wrote(bytes(1..4_000));
        let mut read = Vec::from(bytes(0..1));
        let echoed = async {
            while read.len() < 4_000 {
                tokio::select! {
                    () = echoing.send() => {}
                    more = incoming.read() => read.extend_from_slice(&more.unwrap().unwrap()),
                }
            }
        };
        timeout(Duration::from_secs(20), echoed).await.expect("echoes come by themselves");
        send.write_all(&bytes(1..5_000)).await.unwrap();
        send.finish().unwrap();
        while let Some(more) = incoming.read().await.unwrap() {
            read.extend_from_slice(&more);
        }
        assert_eq!((read, incoming.echoed()), (bytes(0..5_000).into(), 3_999));
        drop(incoming);
        assert!(lock(&heard.0.readers).task.is_none(), "nobody listens any more");
    }

    /// As after losses, and none is looked for any more.
    fn losing(echoes: &Echoes) {
        let mut losses = losses(&[(0, 10, 0), (0, 20, 2)]);
        losses.looked = Some(Instant::now() + Duration::from_secs(3_600));
        *lock(&echoes.0.losses) = losses;
    }

    #[tokio::test]
    async fn a_row_of_a_wide_model_is_echoed_and_a_prompt_is_not() {
        let (ends, send, _incoming) = stream().await;
        let echoes = Echoes::agreed(&ends[0].1, FEATURE_ECHOES).unwrap();
        losing(&echoes);
        let mut echoing = Echoing::new(Some(echoes), send.id());
        echoing.wrote(bytes(0..24 + 2 * 8_192));
        echoing.wrote(bytes(0..24 + 2 * 8_192 * 32));
        echoing.wrote(bytes(0..100));
        let waiting: Vec<_> = echoing.waiting.iter().map(|(_, (begin, bytes))| (*begin, bytes.len())).collect();
        assert_eq!(waiting, [(0, 16_408), (16_408 + 524_312, 100)]);
    }

    #[tokio::test]
    async fn nothing_is_echoed_while_nothing_is_lost() {
        let (ends, send, _incoming) = stream().await;
        let echoes = Echoes::agreed(&ends[0].1, FEATURE_ECHOES).unwrap();
        lock(&echoes.0.losses).looked = Some(Instant::now() + Duration::from_secs(3_600));
        let mut echoing = Echoing::new(Some(echoes), send.id());
        echoing.wrote(bytes(0..100));
        assert!(echoing.waiting.is_empty());
        let mut echoing = Echoing::new(Echoes::agreed(&ends[0].1, !FEATURE_ECHOES), send.id());
        echoing.wrote(bytes(0..100));
        assert!(echoing.echoes.is_none() && echoing.waiting.is_empty());
    }

    proptest! {
        /// The stream itself comes in some chunks; echoes of any of its pieces come whenever they like, some of them never. Each
        /// byte is read once, in order, and no later than the stream itself has brought it.
        #[test]
        fn a_stream_and_its_echoes_are_the_stream(
            chunks in prop::collection::vec(1..400_usize, 1..20),
            echoes in prop::collection::vec((0..20_usize, 0..4_000_usize, 0..300_usize), 0..40),
        ) {
            let whole: usize = chunks.iter().sum();
            let (mut joined, mut out, mut at) = (Joined::default(), Vec::new(), 0);
            for (n, chunk) in chunks.iter().enumerate() {
                for (_, begin, len) in echoes.iter().filter(|(when, ..)| *when == n) {
                    let end = (begin + len).min(whole);
                    let begin = (*begin).min(end);
                    joined.heard((begin as u64, bytes(begin..end)));
                    read(&mut joined, &mut out);
                    prop_assert_eq!(&out[..], &bytes(0..out.len())[..]);
                }
                joined.came(bytes(at..at + chunk));
                at += chunk;
                read(&mut joined, &mut out);
                prop_assert!(out.len() >= at && out.len() <= whole);
                prop_assert_eq!(&out[..], &bytes(0..out.len())[..]);
            }
            prop_assert_eq!(out.len(), whole);
        }
    }
}
