//! The driver of a peer: one loop that moves frames between streams, the machine and the stages.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use potluck_core::{Offer, PeerId, SignedOffer, SignedRevocation, StageCommand, StageReply};
use potluck_grant::{Authorized, Looking, Member, Operating, Place, Request};
use potluck_peer::{DialId, Effect, Event, Now, Peer, PeerStatus, StageSlot, StreamId};
use potluck_wire::{Failure, FailureCode, Frame, PeerAddress, Upstreams};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep_until,
};
use tracing::{debug, info, info_span, warn};

use crate::{
    Directory, Giver, NetError, Node,
    accept::accept,
    greet::utc_now,
    lenders::Lenders,
    lending::{Asks, answer},
    shelf::{Question, Turn, Uploads},
    states::{StateJobs, States, Word},
    stream::{Asking, Halves, Inbound, Stream},
};

/// Events that wait for the loop: beyond it, readers stop reading.
const EVENTS_MAX: usize = 64;

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
    /// Whose sessions are open, and how many each has.
    pub clients: watch::Receiver<BTreeMap<PeerId, usize>>,
    offers: mpsc::Sender<SignedOffer>,
    known: watch::Receiver<Directory>,
    stop: mpsc::Sender<Stop>,
    /// None once it has ended.
    task: Option<tokio::task::JoinHandle<()>>,
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
    pub async fn stop(mut self) {
        let _ = self.stop.send(Stop::Now).await;
        self.finished().await;
    }

    /// Takes no new sessions from now on, and asks for others in its place in those that are open. [`finished`](Self::finished) returns once
    /// the last of them has ended, or gone on elsewhere.
    pub async fn drain(&self) {
        let _ = self.stop.send(Stop::Drained).await;
    }

    /// Waits until the loop has ended by itself, which it does if it was drained, or the node was closed.
    pub async fn finished(&mut self) {
        if let Some(task) = &mut self.task {
            let _ = task.await;
            self.task = None;
        }
    }
}

/// Serves `machine` on `node` from now on; `stages` are the machine's, in the order of their slots. Nobody keeps what sessions hold that are
/// put aside.
///
/// Must be called within a tokio runtime; a current-thread one keeps a hop free of wake-ups between threads.
pub fn serve(node: Node, machine: Peer, stages: Vec<StagePort>) -> Serving {
    serve_all(node, machine, stages, None)
}

/// The same, where somebody keeps it.
pub fn serve_keeping(node: Node, machine: Peer, stages: Vec<StagePort>, states: StateJobs) -> Serving {
    serve_all(node, machine, stages, Some(states))
}

fn serve_all(node: Node, mut machine: Peer, stages: Vec<StagePort>, states: Option<StateJobs>) -> Serving {
    machine.set_stopwatch(Instant::now);
    let (events, inbox) = mpsc::channel(EVENTS_MAX);
    let (status, status_watch) = watch::channel(machine.status());
    let (say_clients, clients) = watch::channel(BTreeMap::new());
    let (directory, known) = watch::channel(Directory::default());
    let (offers, own_offers) = mpsc::channel(8);
    let (stop, stopped) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    let commands = connect_stages(stages, &events, &mut tasks);
    let streams = Arc::new(AtomicU64::new(0));
    tasks.spawn(accept(node.clone(), events.clone(), streams.clone()));
    let uploads = Uploads::of(&node);
    let driver = Driver {
        node,
        machine,
        commands,
        events,
        open: HashMap::new(),
        fresh: HashMap::new(),
        asked: HashMap::new(),
        uploads,
        asks: Asks::default(),
        lenders: Lenders::default(),
        states: States::new(states),
        streams,
        status,
        clients: say_clients,
        directory,
        tasks,
    };
    let task = tokio::spawn(driver.run(inbox, own_offers, stopped));
    Serving { status: status_watch, clients, offers, known, stop, task: Some(task) }
}

/// When the loop ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Now,
    Drained,
}

/// Something for the loop.
#[derive(Debug)]
pub(crate) enum Happened {
    Opened { stream: StreamId, from: Member, halves: Halves },
    Came { stream: StreamId, what: Inbound },
    Dialed { dial: DialId, result: Result<Halves, Failure> },
    Stage { slot: StageSlot, reply: StageReply },
    Looked { stream: StreamId, found: Result<(Frame, Turn), Failure> },
}

fn connect_stages(
    stages: Vec<StagePort>,
    events: &mpsc::Sender<Happened>,
    tasks: &mut JoinSet<()>,
) -> Vec<mpsc::UnboundedSender<StageCommand>> {
    let connect = |(slot, port): (usize, StagePort)| {
        let StagePort { commands, mut replies } = port;
        let (slot, events) = (StageSlot(slot as u16), events.clone());
        // The stage's own queue is short and the loop never waits. What lies between them the machine bounds: one batch
        // at a time, and for each session one opening, one closing and one row.
        let (sender, mut waiting) = mpsc::unbounded_channel();
        tasks.spawn(async move {
            while let Some(command) = waiting.recv().await {
                if commands.send(command).await.is_err() {
                    return;
                }
            }
        });
        tasks.spawn(async move {
            while let Some(reply) = replies.recv().await {
                if events.send(Happened::Stage { slot, reply }).await.is_err() {
                    return;
                }
            }
            let reply = StageReply::Lost { reason: "the stage is gone".into() };
            let _ = events.send(Happened::Stage { slot, reply }).await;
        });
        sender
    };
    stages.into_iter().enumerate().map(connect).collect()
}

struct Driver {
    node: Node,
    machine: Peer,
    commands: Vec<mpsc::UnboundedSender<StageCommand>>,
    events: mpsc::Sender<Happened>,
    open: HashMap<StreamId, Stream>,
    /// Who opened a stream, until it carries a session.
    fresh: HashMap<StreamId, Member>,
    /// Streams that wait for an answer from the shelf.
    asked: HashMap<StreamId, Stream>,
    uploads: Uploads,
    /// Requests to the upstream that are under way.
    asks: Asks,
    /// Members that lend by an upstream, as they have said.
    lenders: Lenders,
    /// What sessions hold, on its way.
    states: States,
    streams: Arc<AtomicU64>,
    status: watch::Sender<PeerStatus>,
    clients: watch::Sender<BTreeMap<PeerId, usize>>,
    directory: watch::Sender<Directory>,
    tasks: JoinSet<()>,
}

impl Driver {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Happened>,
        mut own_offers: mpsc::Receiver<SignedOffer>,
        mut stopped: mpsc::Receiver<Stop>,
    ) {
        let mut draining = false;
        let mut told = (0, 0);
        let mut revoked = self.node.revocations_changed();
        loop {
            if draining && self.machine.status().sessions == 0 {
                break;
            }
            let deadline = self.machine.poll_timeout().map(tokio::time::Instant::from_std);
            let alarm = async {
                match deadline {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                stop = stopped.recv() => match stop {
                    Some(Stop::Drained) => {
                        draining = true;
                        self.machine.drain();
                        self.perform_all();
                    }
                    Some(Stop::Now) | None => break,
                },
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
                (stage, word) = self.states.next() => self.state_word(stage, word),
                Ok(()) = revoked.changed() => self.review(),
                // Tasks that ended are let go of.
                Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => continue,
            }
            // Events that never cease must not keep a deadline from passing.
            if self.machine.poll_timeout().is_some_and(|at| at <= Instant::now()) {
                self.tell(Event::Timeout);
            }
            self.flush();
            let now = self.machine.status();
            self.status.send_if_modified(|status| std::mem::replace(status, now) != now);
            let sessions = (self.machine.sessions_opened(), now.sessions);
            if std::mem::replace(&mut told, sessions) != sessions {
                self.clients.send_replace(self.machine.clients());
            }
        }
        for (_, stream) in self.open.drain() {
            stream.end(Failure::new(FailureCode::Leaving, "the peer is shutting down"));
        }
    }

    fn happen(&mut self, happened: Happened) {
        match happened {
            Happened::Opened { stream, from, halves } => {
                self.start(stream, halves);
                self.fresh.insert(stream, from.clone());
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
            Happened::Stage { slot, reply } => {
                if let Some(reply) = self.states.reply(usize::from(slot.0), reply) {
                    self.tell(Event::Stage { stage: slot, reply });
                }
            }
            Happened::Looked { stream, found } => {
                if let Some(stream) = self.asked.remove(&stream) {
                    match found {
                        Ok((part, turn)) => stream.end_with(part, turn),
                        Err(failure) => stream.end(failure),
                    }
                }
            }
        }
    }

    /// Whoever keeps states asks a stage for a part, or is done.
    fn state_word(&mut self, stage: usize, word: Word) {
        match word {
            Word::Ask(command) => self.command(StageSlot(stage as u16), command),
            Word::Done(reply) => self.tell(Event::Stage { stage: StageSlot(stage as u16), reply }),
        }
    }

    fn start(&mut self, stream: StreamId, halves: Halves) {
        let label = move |what| Happened::Came { stream, what };
        let started = Stream::start(&mut self.tasks, halves, self.events.clone(), label);
        self.open.insert(stream, started);
    }

    fn came(&mut self, stream: StreamId, what: Inbound) {
        // Questions are asked by a stream's first frame; later ones are the machine's to refuse.
        let Some(by) = self.fresh.remove(&stream) else { return self.went_on(stream, what) };
        match what {
            Inbound::Frame(frame @ (Frame::Open(_) | Frame::HopOpen(_) | Frame::Return(_) | Frame::Failed(_))) => {
                self.begun(stream, frame)
            }
            Inbound::Closed(failure) | Inbound::Broken(failure) => self.ended(stream, failure),
            Inbound::Frame(frame) => {
                if let Err(failure) = self.asked(stream, &by, frame) {
                    self.refuse(stream, failure);
                }
            }
            Inbound::Asked(asking) => {
                if let Err(failure) = self.asked_upstream(stream, &by, *asking) {
                    self.refuse(stream, failure);
                }
            }
        }
    }

    fn went_on(&mut self, stream: StreamId, what: Inbound) {
        match what {
            Inbound::Frame(frame) => self.tell(Event::Frame { stream, frame }),
            // Nobody asks for anything on a stream that carries something already: the machine says so.
            Inbound::Asked(asking) => self.tell(Event::Frame { stream, frame: Frame::Ask(asking.ask) }),
            Inbound::Closed(failure) => self.ended(stream, failure),
            Inbound::Broken(failure) => {
                self.open.remove(&stream);
                self.tell(Event::Broken { stream, failure });
            }
        }
    }

    /// A session's first frame: whether it may is checked by the machine.
    fn begun(&mut self, stream: StreamId, frame: Frame) {
        if let Frame::Open(open) = &frame {
            let span = info_span!(
                parent: None,
                "session",
                otel.kind = "server",
                potluck.session = %open.session,
                potluck.layers = %open.stage.layers,
                potluck.model = %open.stage.model.short(),
            );
            if let Some(stream) = self.open.get_mut(&stream) {
                stream.carries(span);
            }
        }
        self.tell(Event::Frame { stream, frame });
    }

    fn ended(&mut self, stream: StreamId, failure: Failure) {
        if let Some(stream) = self.open.remove(&stream) {
            let ours = failure.code == FailureCode::Protocol;
            stream.end(if ours { failure.clone() } else { Failure::new(FailureCode::Done, "") });
        }
        self.tell(Event::Closed { stream, failure });
    }

    fn refuse(&mut self, stream: StreamId, failure: Failure) {
        if let Some(stream) = self.take(stream) {
            stream.end(failure);
        }
    }

    /// What a member asks for, if it may.
    fn may<R: Request>(&self, by: &Member, request: R) -> Result<Authorized<R>, Failure> {
        let here = Place { peer: self.node.id(), now: utc_now() };
        self.node.identity.gate.authorize(by, request, here).map_err(|error| {
            // A member may know what its own grant says; whoever is none was told a code.
            info!(peer = %by.peer().short(), %error, "a member asked for what it may not");
            Failure::new(FailureCode::NotAllowed, error)
        })
    }

    /// Answers a question that is no session's business, and ends its stream.
    fn asked(&mut self, stream: StreamId, by: &Member, frame: Frame) -> Result<(), Failure> {
        match frame {
            Frame::Announce(offer) => {
                let offer = self.may(by, offer)?;
                self.keep_announced(offer);
                self.answer(stream, vec![Vec::new()]);
            }
            Frame::ListOffers => {
                self.may(by, Looking)?;
                let pages = self.directory.borrow().pages(utc_now());
                self.answer(stream, pages);
            }
            Frame::ListModels => {
                let question = self.may(by, Looking)?;
                self.look(stream, question.by().peer(), Question::Models);
            }
            Frame::Fetch(fetch) => {
                let (fetch, by) = self.may(by, fetch)?.into_parts();
                self.look(stream, by.peer(), Question::Part(fetch));
            }
            // Signed by the root, which is asked for no grant, or by the member itself, if it may.
            Frame::Order(order) => {
                let refused = || Failure::new(FailureCode::NotServed, "this peer takes no orders");
                let may = || self.may(by, Operating);
                let answer = self.node.orders.get().map_or_else(refused, |orders| orders.answer(order, &Giver(&may)));
                self.answer_with(stream, [Frame::Failed(answer)]);
            }
            Frame::ListUpstreams => {
                self.may(by, Looking)?;
                let own = self.node.lending.get().map(|lending| self.asks.describe(lending));
                let pages = self.lenders.pages(own, Instant::now());
                self.answer_with(stream, pages.into_iter().map(Frame::Upstreams));
            }
            Frame::Lend(lender) => {
                let (lender, by) = self.may(by, lender)?.into_parts();
                let gate = &self.node.identity.gate;
                let noted = self.lenders.note(Some(by.peer()), lender, gate, (Instant::now(), utc_now()));
                if let Err(error) = noted {
                    debug!(%error, "a lender was not noted");
                }
                self.answer_with(stream, [Frame::Upstreams(Upstreams::default())]);
            }
            // What was taken back is everybody's to know and to pass on: it is signed by whoever may.
            Frame::ListRevocations(digest) => {
                let pages = self.node.revocation_pages(digest);
                self.answer_with(stream, pages);
            }
            Frame::Revocations(revocations) => {
                self.note_revocations(stream, revocations);
            }
            frame => self.tell(Event::Frame { stream, frame }),
        }
        Ok(())
    }

    fn asked_upstream(&mut self, stream: StreamId, by: &Member, asking: Asking) -> Result<(), Failure> {
        let by = self.may(by, asking.ask)?.by().peer();
        let none = || Failure::new(FailureCode::NotServed, "this peer lends by no upstream");
        let lending = self.node.lending.get().cloned().ok_or_else(none)?;
        let room = self.asks.room(by, asking.ask, lending.places)?;
        if let Some(stream) = self.take(stream) {
            let stall = self.node.deadlines.stall;
            self.tasks.spawn(answer(lending, room, asking, stream, stall));
        }
        Ok(())
    }

    /// Acts on what was taken back, says so, and passes on what is new. Signatures are checked on a thread of their own.
    fn note_revocations(&mut self, stream: StreamId, revocations: Vec<SignedRevocation>) {
        let Some(mut stream) = self.take(stream) else { return };
        let own = self.node.id();
        let offers = self.directory.borrow();
        let mut members: Vec<_> = offers.offers(utc_now()).map(address_of).chain(self.lenders.addresses()).collect();
        drop(offers);
        members.sort_by_key(|member| member.peer);
        members.dedup_by_key(|member| member.peer);
        members.retain(|member| member.peer != own);
        let node = self.node.clone();
        self.tasks.spawn(async move {
            let noting = node.clone();
            let noted = tokio::task::spawn_blocking(move || noting.note_revocations(revocations)).await;
            stream.push(Frame::Revocations(Vec::new()));
            stream.end(Failure::new(FailureCode::Done, ""));
            if let Ok(new) = noted.map_err(|error| warn!(%error, "revocations were not noted")) {
                node.tell_revocations(new, members).await;
            }
        });
    }

    /// Something was taken back: those whom it concerns are forgotten.
    fn review(&mut self) {
        let (gate, now) = (self.node.identity.gate.clone(), utc_now());
        self.directory.send_modify(|directory| directory.review(&gate, now));
        self.lenders.review(&gate, now);
    }
    fn answer(&mut self, stream: StreamId, pages: Vec<Vec<SignedOffer>>) {
        self.answer_with(stream, pages.into_iter().map(Frame::Offers));
    }

    fn answer_with(&mut self, stream: StreamId, frames: impl IntoIterator<Item = Frame>) {
        if let Some(mut stream) = self.take(stream) {
            frames.into_iter().for_each(|frame| stream.push(frame));
            stream.end(Failure::new(FailureCode::Done, ""));
        }
    }

    /// Takes a stream away from the machine.
    fn take(&mut self, stream: StreamId) -> Option<Stream> {
        let taken = self.open.remove(&stream);
        self.tell(Event::Closed { stream, failure: Failure::new(FailureCode::Done, "") });
        taken
    }

    /// Has a question answered by the shelf, on a thread of its own: nothing here waits for a disk.
    fn look(&mut self, id: StreamId, by: PeerId, question: Question) {
        let Some(stream) = self.take(id) else { return };
        let Some(shelf) = self.node.shelf.get().cloned() else {
            return stream.end(Failure::new(FailureCode::NotServed, "this peer shares no models"));
        };
        if self.node.rests.load(Ordering::Relaxed) {
            return stream.end(Failure::new(FailureCode::NotServed, "this peer shares nothing for now"));
        }
        self.asked.insert(id, stream);
        let (uploads, events) = (self.uploads.clone(), self.events.clone());
        self.tasks.spawn(async move {
            let found = uploads.answer(shelf, by, question).await;
            let _ = events.send(Happened::Looked { stream: id, found }).await;
        });
    }

    /// A member speaks for itself alone: so nobody can fill the directory, or bury another's offers in it.
    fn keep_announced(&mut self, offer: Authorized<SignedOffer>) {
        let (offer, by) = offer.into_parts();
        match offer.verify(utc_now()) {
            Ok(content) if content.peer == by.peer() => self.keep(offer),
            Ok(content) => debug!(peer = %content.peer.short(), "an offer was not kept: another member announced it"),
            Err(error) => debug!(%error, "an offer was not kept"),
        }
    }

    fn keep(&mut self, offer: SignedOffer) {
        let gate = &self.node.identity.gate;
        self.directory.send_if_modified(|directory| match directory.announce(offer, gate, utc_now()) {
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
                    stream.push(frame);
                }
            }
            Effect::Account { stream, mut account, next } => {
                let rtt = next.and_then(|peer| self.node.path_to(peer)).map(|path| path.rtt.as_micros());
                account.next_rtt_us = rtt.map(|us| u32::try_from(us).unwrap_or(u32::MAX));
                self.perform(Effect::Send { stream, frame: Frame::Account(account) });
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
                let slot = usize::from(stage.0);
                let command = match self.machine.stage_spec(stage) {
                    Some(spec) => self.states.command(slot, spec, command),
                    None => Some(command),
                };
                if let Some(command) = command {
                    self.command(stage, command);
                }
            }
        }
    }

    fn command(&mut self, stage: StageSlot, command: StageCommand) {
        let sent = self.commands.get(usize::from(stage.0)).map(|commands| commands.send(command));
        if !matches!(sent, Some(Ok(()))) {
            warn!(stage = stage.0, "the stage takes no commands any more");
            let reply = StageReply::Lost { reason: "the stage takes no commands any more".into() };
            self.machine.handle(now(), Event::Stage { stage, reply });
        }
    }

    /// Writes what was asked for in this round: one write a stream. How a stream ended that takes nothing any more, its reader says.
    fn flush(&mut self) {
        let failed: Vec<_> = self
            .open
            .iter_mut()
            .filter_map(|(id, stream)| stream.flush().err().map(|failure| (*id, failure)))
            .filter(|(_, failure)| failure.code != FailureCode::PeerLost)
            .collect();
        for (id, failure) in failed {
            self.open.remove(&id);
            self.tell(Event::Closed { stream: id, failure });
        }
    }
}

fn address_of(offer: &Offer) -> PeerAddress {
    PeerAddress { peer: offer.peer, addresses: offer.addresses.clone(), relay: offer.relay.clone() }
}

fn now() -> Now {
    Now { instant: Instant::now(), utc: utc_now() }
}
