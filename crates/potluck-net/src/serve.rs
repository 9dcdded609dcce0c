//! The driver of a peer: one loop that moves frames between streams, the machine and the stages.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use iroh::endpoint::{Connection, Incoming, RecvStream, SendStream};
use potluck_core::{SignedOffer, StageCommand, StageReply};
use potluck_grant::Member;
use potluck_peer::{DialId, Effect, Event, Now, Peer, PeerStatus, StageSlot, StreamId};
use potluck_wire::{Failure, FailureCode, Frame};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    Directory, NetError, Node,
    greet::{admit, close, utc_now},
    node::peer_id,
    stream::{Inbound, Stream},
};

/// Connections that have not shown a grant yet. The next one is refused before its handshake.
const UNGREETED_MAX: usize = 64;

/// Connections at once. The next one is refused before its handshake.
const CONNECTIONS_MAX: usize = 1_024;

/// Events that wait for the loop: beyond it, readers stop reading.
const EVENTS_MAX: usize = 512;

/// Events that are handled before what they asked for is written.
const EVENTS_A_ROUND: usize = 64;

/// A stage that runs somewhere else: where its commands go, and where its replies come from.
#[derive(Debug)]
pub struct StagePort {
    /// Commands, in order.
    pub commands: mpsc::Sender<StageCommand>,
    /// Replies.
    pub replies: mpsc::Receiver<StageReply>,
}

/// Where to read how much of a peer is in use.
pub type StatusWatch = watch::Receiver<PeerStatus>;

/// A peer that serves. Dropped, or its `stop` sent, it ends every session and every connection.
#[derive(Debug)]
pub struct Serving {
    /// How much of it is in use.
    pub status: StatusWatch,
    offers: mpsc::Sender<SignedOffer>,
    known: watch::Receiver<Directory>,
    stop: mpsc::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Serving {
    /// Publishes an offer: whoever asks this peer learns of it.
    pub async fn announce(&self, offer: SignedOffer) {
        let _ = self.offers.send(offer).await;
    }

    /// The offers that this peer knows.
    pub fn directory(&self) -> Directory {
        self.known.borrow().clone()
    }

    /// Ends every session, with `Leaving`, and returns when the loop has ended.
    pub async fn stop(self) {
        let _ = self.stop.send(()).await;
        let _ = self.task.await;
    }

    /// Waits until the loop has ended by itself, which it does only if the node was closed.
    pub async fn finished(&mut self) {
        let _ = (&mut self.task).await;
    }
}

/// Serves `machine` on `node` from now on; `stages` are the machine's, in the order of their slots.
///
/// Must be called within a tokio runtime; a current-thread one keeps a hop free of wake-ups between threads.
pub fn serve(node: Node, machine: Peer, stages: Vec<StagePort>) -> Serving {
    let (events, inbox) = mpsc::channel(EVENTS_MAX);
    let (status, status_watch) = watch::channel(machine.status());
    let (directory, known) = watch::channel(Directory::default());
    let (offers, own_offers) = mpsc::channel(8);
    let (stop, stopped) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    let commands = connect_stages(stages, &events, &mut tasks);
    let streams = Arc::new(AtomicU64::new(0));
    tasks.spawn(accept(node.clone(), events.clone(), streams.clone()));
    let driver = Driver { node, machine, commands, events, open: HashMap::new(), streams, status, directory, tasks };
    let task = tokio::spawn(driver.run(inbox, own_offers, stopped));
    Serving { status: status_watch, offers, known, stop, task }
}

/// Something for the loop.
#[derive(Debug)]
enum Happened {
    Opened { stream: StreamId, from: Member, halves: (SendStream, RecvStream) },
    Came { stream: StreamId, what: Inbound },
    Dialed { dial: DialId, result: Result<(SendStream, RecvStream), Failure> },
    Stage { slot: StageSlot, reply: StageReply },
}

fn connect_stages(
    stages: Vec<StagePort>,
    events: &mpsc::Sender<Happened>,
    tasks: &mut JoinSet<()>,
) -> Vec<mpsc::Sender<StageCommand>> {
    let connect = |(slot, mut port): (usize, StagePort)| {
        let (slot, events) = (StageSlot(slot as u16), events.clone());
        tasks.spawn(async move {
            while let Some(reply) = port.replies.recv().await {
                if events.send(Happened::Stage { slot, reply }).await.is_err() {
                    return;
                }
            }
            let reply = StageReply::Lost { reason: "the stage is gone".into() };
            let _ = events.send(Happened::Stage { slot, reply }).await;
        });
        port.commands
    };
    stages.into_iter().enumerate().map(connect).collect()
}

struct Driver {
    node: Node,
    machine: Peer,
    commands: Vec<mpsc::Sender<StageCommand>>,
    events: mpsc::Sender<Happened>,
    open: HashMap<StreamId, Stream>,
    streams: Arc<AtomicU64>,
    status: watch::Sender<PeerStatus>,
    directory: watch::Sender<Directory>,
    tasks: JoinSet<()>,
}

impl Driver {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Happened>,
        mut own_offers: mpsc::Receiver<SignedOffer>,
        mut stopped: mpsc::Receiver<()>,
    ) {
        loop {
            let deadline = self.machine.poll_timeout().map(tokio::time::Instant::from_std);
            let alarm = async {
                match deadline {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                happened = inbox.recv() => {
                    let Some(happened) = happened else { break };
                    self.happen(happened);
                    for _ in 1..EVENTS_A_ROUND {
                        let Ok(happened) = inbox.try_recv() else { break };
                        self.happen(happened);
                    }
                }
                () = alarm => self.tell(Event::Timeout),
                Some(offer) = own_offers.recv() => self.keep(offer),
                _ = stopped.recv() => break,
                // Tasks that ended are let go of.
                Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => continue,
            }
            self.flush();
            self.status.send_if_modified(|status| {
                let now = self.machine.status();
                std::mem::replace(status, now) != now
            });
        }
        for (_, stream) in self.open.drain() {
            stream.end(Failure::new(FailureCode::Leaving, "the peer is shutting down"));
        }
    }

    fn happen(&mut self, happened: Happened) {
        match happened {
            Happened::Opened { stream, from, halves } => {
                self.start(stream, halves);
                self.tell(Event::StreamOpened { stream, from });
            }
            Happened::Came { stream, what } if self.open.contains_key(&stream) => self.came(stream, what),
            Happened::Came { .. } => {}
            Happened::Dialed { dial, result } => {
                let result = result.map(|halves| {
                    let stream = StreamId(self.streams.fetch_add(1, Ordering::Relaxed));
                    self.start(stream, halves);
                    stream
                });
                self.tell(Event::Dialed { dial, result });
            }
            Happened::Stage { slot, reply } => self.tell(Event::Stage { stage: slot, reply }),
        }
    }

    fn start(&mut self, stream: StreamId, halves: (SendStream, RecvStream)) {
        let label = move |what| Happened::Came { stream, what };
        let started = Stream::start(&mut self.tasks, halves, self.events.clone(), label);
        self.open.insert(stream, started);
    }

    fn came(&mut self, stream: StreamId, what: Inbound) {
        match what {
            Inbound::Frame(Frame::Announce(offer)) => {
                self.keep(offer);
                self.answer(stream, Frame::Offers(Vec::new()));
            }
            Inbound::Frame(Frame::ListOffers) => {
                let offers = self.directory.borrow().signed(utc_now());
                self.answer(stream, Frame::Offers(offers));
            }
            Inbound::Frame(frame) => self.tell(Event::Frame { stream, frame }),
            Inbound::Closed(failure) => {
                if let Some(stream) = self.open.remove(&stream) {
                    let ours = failure.code == FailureCode::Protocol;
                    stream.end(if ours { failure.clone() } else { Failure::new(FailureCode::Done, "") });
                }
                self.tell(Event::Closed { stream, failure });
            }
        }
    }

    /// Answers a question that is no session's business, and ends its stream.
    fn answer(&mut self, stream: StreamId, frame: Frame) {
        if let Some(mut stream) = self.open.remove(&stream) {
            stream.push(&frame);
            stream.end(Failure::new(FailureCode::Done, ""));
        }
        let failure = Failure::new(FailureCode::Done, "");
        self.machine.handle(now(), Event::Closed { stream, failure });
        self.perform_all();
    }

    fn keep(&mut self, offer: SignedOffer) {
        self.directory.send_if_modified(|directory| match directory.announce(offer, utc_now()) {
            Ok(new) => new,
            Err(error) => {
                debug!(%error, "an offer was not kept");
                false
            }
        });
    }

    fn tell(&mut self, event: Event) {
        self.machine.handle(now(), event);
        self.perform_all();
    }

    fn perform_all(&mut self) {
        while let Some(effect) = self.machine.poll() {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send { stream, frame } => {
                if let Some(stream) = self.open.get_mut(&stream) {
                    stream.push(&frame);
                }
            }
            Effect::Limit { stream, frame_bytes_max } => {
                if let Some(stream) = self.open.get(&stream) {
                    stream.set_limit(frame_bytes_max);
                }
            }
            Effect::Close { stream, failure } => {
                if let Some(stream) = self.open.remove(&stream) {
                    stream.end(failure);
                }
            }
            Effect::Dial { dial, to } => {
                let (node, events) = (self.node.clone(), self.events.clone());
                self.tasks.spawn(async move {
                    let result = async { node.connect(&to).await?.open_stream(&node).await }.await;
                    let result = result.map_err(|error: NetError| error.failure().of(to.peer));
                    let _ = events.send(Happened::Dialed { dial, result }).await;
                });
            }
            Effect::Stage { stage, command } => {
                let sent = self.commands.get(usize::from(stage.0)).map(|commands| commands.try_send(command));
                if !matches!(sent, Some(Ok(()))) {
                    warn!(stage = stage.0, "the stage does not take commands");
                    let reply = StageReply::Lost { reason: "the stage does not take commands".into() };
                    self.machine.handle(now(), Event::Stage { stage, reply });
                }
            }
        }
    }

    /// Writes what was asked for in this round: one write a stream.
    fn flush(&mut self) {
        let failed: Vec<_> = self
            .open
            .iter_mut()
            .filter_map(|(id, stream)| stream.flush().err().map(|failure| (*id, failure)))
            .collect();
        for (id, failure) in failed {
            self.open.remove(&id);
            self.tell(Event::Closed { stream: id, failure });
        }
    }
}

fn now() -> Now {
    Now { instant: Instant::now(), utc: utc_now() }
}

async fn accept(node: Node, events: mpsc::Sender<Happened>, streams: Arc<AtomicU64>) {
    let ungreeted = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            incoming = node.endpoint.accept() => {
                let Some(incoming) = incoming else { return };
                if ungreeted.load(Ordering::Relaxed) >= UNGREETED_MAX || connections.len() >= CONNECTIONS_MAX {
                    debug!("a connection was refused: too many");
                    incoming.refuse();
                    continue;
                }
                let guard = Counted::new(&ungreeted);
                connections.spawn(attend(node.clone(), incoming, guard, events.clone(), streams.clone()));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Counts one for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One connection: handshake, greeting, and then its streams until it ends.
async fn attend(
    node: Node,
    incoming: Incoming,
    ungreeted: Counted,
    events: mpsc::Sender<Happened>,
    streams: Arc<AtomicU64>,
) {
    let Ok(Ok(connection)) = timeout(node.deadlines.connect, incoming.into_future()).await else { return };
    let peer = peer_id(connection.remote_id());
    let member = match timeout(node.deadlines.greet, admit(&connection, &node.identity)).await {
        Ok(Ok(member)) => member,
        Ok(Err(error)) => {
            info!(peer = %peer.short(), %error, "a connection was refused");
            return close(&connection, error.failure().code);
        }
        Err(_) => {
            info!(peer = %peer.short(), "a connection did not greet in time");
            return close(&connection, FailureCode::Deadline);
        }
    };
    drop(ungreeted);
    debug!(peer = %peer.short(), "let in");
    take_streams(&connection, member, &events, &streams).await;
}

async fn take_streams(connection: &Connection, from: Member, events: &mpsc::Sender<Happened>, streams: &AtomicU64) {
    while let Ok(halves) = connection.accept_bi().await {
        let stream = StreamId(streams.fetch_add(1, Ordering::Relaxed));
        if events.send(Happened::Opened { stream, from: from.clone(), halves }).await.is_err() {
            return;
        }
    }
}
