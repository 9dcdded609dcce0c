//! The driver of a client's session.

use std::{collections::HashMap, time::Instant};

use potluck_chain::{
    Answer, ClientSession, Effect, Event, Hop, RemoteStage, SessionConfig, SessionError, Submission, chunks::Place,
};
use potluck_core::{Account, Hidden, SessionId, StageCommand, StageReply, StateKey};
use potluck_wire::{
    Codec, FEATURE_ACCOUNTS, FEATURE_CHECKS, FEATURE_DRAFTS, FEATURE_ECHOES, FEATURE_PADDING, FEATURE_RECOVERY,
    FEATURE_RETURN, FEATURE_SAVING, Failure, FailureCode, Frame, PeerAddress, Welcome,
};
use tokio::{sync::mpsc, task::JoinSet, time::sleep_until};
use tracing::{Span, info_span};

use crate::{
    Link, NetError, Node, PathInfo, PathKind,
    states::{StateJobs, States, Word},
    stream::{Halves, Inbound, Stream},
};

/// Events that wait for the caller: beyond it, readers stop reading.
const EVENTS_MAX: usize = 64;

/// A stage on the client's own machine, at the first or the last place of a route.
#[derive(Debug)]
pub struct OwnPort {
    /// Which place on the route.
    pub hop: usize,
    /// Commands, in order.
    pub commands: mpsc::Sender<StageCommand>,
    /// Replies.
    pub replies: mpsc::Receiver<StageReply>,
}

/// What a session tells its caller.
#[derive(Debug)]
pub enum SessionEvent {
    /// Steps may be submitted.
    Ready,
    /// A step's answer, in order.
    Answer(Answer),
    /// The whole row that was asked for.
    Row {
        /// The step.
        sequence: u32,
        /// The row.
        row: u16,
        /// All logits, in order of token id.
        logits: Hidden,
    },
    /// What each stage of the route has done for the session, in the route's order.
    Accounts(Vec<Account>),
    /// Every stage keeps so many positions, which are all that the session holds; or 0, where one does not. [`Session::save`].
    Saved {
        /// Positions.
        positions: u32,
        /// Bytes that they take, over all stages.
        bytes: u64,
    },
    /// Every stage holds so many positions of the earlier session; or 0, where one does not. [`Session::restore`].
    Restored {
        /// Positions.
        positions: u32,
    },
    /// A peer is lost, and the session waits for another in its place: [`Session::replace`]. Steps may be submitted meanwhile.
    Lost {
        /// Which stage of the route.
        hop: usize,
        /// How the session would have ended.
        error: SessionError,
    },
    /// A peer is about to go. Where another stands by for it ([`Session::stand_by`]), that one has its place as soon as it is as far.
    Leaving {
        /// Which stage of the route.
        hop: usize,
    },
    /// Every stage of the route is there again.
    Repaired,
    /// A peer is lost, or about to go, and who stood by for it has its place: [`Repaired`](Self::Repaired) follows.
    Promoted {
        /// Which stage of the route.
        hop: usize,
    },
    /// A peer stands by for that stage: [`Session::stand_by`].
    StandsBy {
        /// Which stage of the route.
        hop: usize,
    },
    /// Nobody stands by for that stage any more. The session goes on as before.
    StandbyLost {
        /// Which stage of the route.
        hop: usize,
        /// Why.
        error: SessionError,
    },
}

#[derive(Debug)]
enum Happened {
    /// `life`: which of the streams to that stage it came on.
    Came {
        hop: usize,
        life: u64,
        what: Inbound,
    },
    Own {
        hop: usize,
        reply: StageReply,
    },
}

/// A stream to a peer that takes another's place.
#[derive(Debug)]
struct NextStream {
    life: u64,
    link: Link,
    stream: Stream,
}

/// An open session. It moves only while its caller awaits [`next`](Self::next); dropped, it ends on every peer.
#[derive(Debug)]
pub struct Session {
    machine: ClientSession,
    /// None once it is closed: whoever lets go of a node lets go of its key, and another may take it.
    node: Option<Node>,
    codec: Codec,
    /// To each stage, and behind those to who stands by for it; as the streams.
    links: Vec<Option<Link>>,
    streams: HashMap<usize, Stream>,
    /// Streams to peers that take others' places: they carry nothing yet.
    next_streams: HashMap<usize, NextStream>,
    last_life: u64,
    /// Which of the streams to each stage is the present one.
    lives: Vec<u64>,
    /// What the machine of each peer had acknowledged when it was asked whether it hears, as long as that is not known.
    acknowledged: HashMap<usize, u64>,
    /// Streams that were a standby's, and are a stage's.
    promoted: HashMap<u64, usize>,
    events: mpsc::Sender<Happened>,
    own: HashMap<usize, mpsc::UnboundedSender<StageCommand>>,
    inbox: mpsc::Receiver<Happened>,
    told: std::collections::VecDeque<Result<SessionEvent, SessionError>>,
    /// What own stages hold, on its way.
    states: States,
    tasks: JoinSet<()>,
    closed_bytes: (u64, u64),
    /// As long as the session is open. Each peer of the route has one with the same session's id.
    _span: Span,
}

impl Node {
    /// Opens a session: connects to every peer of the route at once, and tells each its neighbours. Own stages are loaded
    /// already; `own` says how to reach them. The first event is [`SessionEvent::Ready`].
    ///
    /// # Errors
    /// `PeerLost` where a peer is not reached or does not let us in, else as [`ClientSession::new`].
    pub async fn open(&self, config: SessionConfig, own: Vec<OwnPort>) -> Result<Session, SessionError> {
        self.open_keeping(config, own, None).await
    }

    /// The same; `states`: whoever keeps what own stages hold, where the session is put aside.
    ///
    /// # Errors
    /// As there.
    pub async fn open_keeping(
        &self,
        mut config: SessionConfig,
        own: Vec<OwnPort>,
        states: Option<StateJobs>,
    ) -> Result<Session, SessionError> {
        let mut links = self.connect_route(&config.route).await?;
        // What a peer showed as its grant is what its previous peer will check.
        for (hop, link) in config.route.iter_mut().zip(&links) {
            if let (Hop::Remote(remote), Some(link)) = (hop, link) {
                remote.grant.clone_from(&link.welcome.grant);
            }
        }
        // Who misses another is asked for its account.
        let recovers =
            |link: &Link| [FEATURE_RECOVERY, FEATURE_ACCOUNTS].iter().all(|it| link.welcome.features & it != 0);
        if !links.iter().flatten().all(recovers) {
            // A peer that knows nothing of it ends its session with the first neighbour that is lost.
            config.deadlines.grace = None;
        }
        if config.pad {
            let unable = |link: &Link| link.welcome.features & FEATURE_PADDING == 0;
            let hop = links.iter().position(|link| link.as_ref().is_some_and(unable));
            if let Some(stage) = hop.map(|hop| &config.route[hop]) {
                let detail = "it does not know how to pad: leave --pad out, or have its Potluck updated";
                return Err(failed(stage, Failure::new(FailureCode::Version, detail)));
            }
        }
        let ignorant = |codec| {
            let unable = |link: &Link| !link.welcome.codecs.contains(codec);
            links.iter().position(|link| link.as_ref().is_some_and(unable))
        };
        if let Some(otherwise) = config.codec_otherwise
            && ignorant(config.codec).is_some()
        {
            tracing::info!(wanted = %config.codec, codec = %otherwise, "a peer of the route does not know the codec");
            config.codec = otherwise;
        }
        let codec = config.codec;
        if let Some(stage) = ignorant(codec).map(|hop| &config.route[hop]) {
            let detail = format!("it does not know the codec {codec}: use --codec f16, or have its Potluck updated");
            return Err(failed(stage, Failure::new(FailureCode::Version, detail)));
        }
        let mut tasks = JoinSet::new();
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let mut streams = HashMap::new();
        for (hop, link) in links.iter().enumerate() {
            let Some(link) = link else { continue };
            let halves = link.open_stream(self).await.map_err(|error| unreached(&config.route[hop], &error))?;
            let label = move |what| Happened::Came { hop, life: 0, what };
            streams.insert(hop, Stream::start(&mut tasks, halves, events.clone(), label));
        }
        let own = own.into_iter().map(|port| connect_own(port, &events, &mut tasks)).collect();
        // It outlives whoever opened it: a parent would be kept open, and not be sent, for as long.
        let span = info_span!(
            parent: None,
            "session",
            otel.kind = "client",
            potluck.session = %config.key.id,
            stages = config.route.len()
        );
        let machine = ClientSession::new(Instant::now(), config)?;
        // Nobody stands by yet.
        links.resize(2 * links.len(), None);
        let mut session = Session {
            machine,
            node: Some(self.clone()),
            codec,
            lives: vec![0; links.len()],
            links,
            streams,
            next_streams: HashMap::new(),
            last_life: 0,
            acknowledged: HashMap::new(),
            promoted: HashMap::new(),
            events,
            own,
            inbox,
            told: Default::default(),
            states: States::new(states),
            tasks,
            closed_bytes: (0, 0),
            _span: span,
        };
        session.perform_all();
        Ok(session)
    }

    async fn connect_route(&self, route: &[Hop]) -> Result<Vec<Option<Link>>, SessionError> {
        let mut attempts = JoinSet::new();
        for (hop, stage) in route.iter().enumerate() {
            if let Hop::Remote(remote) = stage {
                let (node, address) = (self.clone(), remote.address.clone());
                attempts.spawn(async move { (hop, node.connect(&address).await) });
            }
        }
        let mut links = vec![None; route.len()];
        while let Some(attempt) = attempts.join_next().await {
            let Ok((hop, result)) = attempt else { continue };
            links[hop] = Some(result.map_err(|error| unreached(&route[hop], &error))?);
        }
        Ok(links)
    }
}

fn unreached(hop: &Hop, error: &NetError) -> SessionError {
    failed(hop, error.failure())
}

fn failed(hop: &Hop, failure: Failure) -> SessionError {
    let layers = hop.layers().to_string();
    match hop.peer() {
        Some(peer) if failure.code == FailureCode::PeerLost => SessionError::PeerLost { peer, layers, failure },
        Some(peer) => SessionError::Peer { peer, layers, failure },
        None => SessionError::Closed,
    }
}

/// A connection and a stream to each of them, all at once.
async fn reach(
    node: &Node,
    places: &[(usize, RemoteStage)],
) -> Result<Vec<(usize, Link, Halves)>, (usize, SessionError)> {
    let mut attempts = JoinSet::new();
    for (hop, stage) in places {
        let (node, hop, stage) = (node.clone(), *hop, stage.clone());
        attempts.spawn(async move {
            let place = Hop::Remote(stage.clone());
            let link = node.connect(&stage.address).await.map_err(|error| (hop, unreached(&place, &error)))?;
            let halves = link.open_stream(&node).await.map_err(|error| (hop, unreached(&place, &error)))?;
            Ok::<_, (usize, SessionError)>((hop, link, halves))
        });
    }
    let mut reached = Vec::new();
    while let Some(attempt) = attempts.join_next().await {
        let Ok(attempt) = attempt else { continue };
        reached.push(attempt?);
    }
    Ok(reached)
}

fn connect_own(
    port: OwnPort,
    events: &mpsc::Sender<Happened>,
    tasks: &mut JoinSet<()>,
) -> (usize, mpsc::UnboundedSender<StageCommand>) {
    let OwnPort { hop, commands, mut replies } = port;
    let events = events.clone();
    // The stage's own queue may be short, and submitting never waits. The machine bounds what lies between them: as many
    // steps as may be in flight. It outlives the session by what is waiting then: the last word closes the cache.
    let (sender, mut waiting) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(command) = waiting.recv().await {
            if commands.send(command).await.is_err() {
                return;
            }
        }
    });
    tasks.spawn(async move {
        while let Some(reply) = replies.recv().await {
            if events.send(Happened::Own { hop, reply }).await.is_err() {
                return;
            }
        }
        let reply = StageReply::Lost { reason: "the stage is gone".into() };
        let _ = events.send(Happened::Own { hop, reply }).await;
    });
    (hop, sender)
}

impl Session {
    /// Sends tokens down the route. See [`ClientSession::submit`].
    ///
    /// # Errors
    /// As there.
    pub fn submit(&mut self, submission: Submission) -> Result<u32, SessionError> {
        let sequence = self.machine.submit(Instant::now(), submission)?;
        self.perform_all();
        Ok(sequence)
    }

    /// Asks for a whole row. See [`ClientSession::request_row`].
    ///
    /// # Errors
    /// As there.
    pub fn request_row(&mut self, sequence: u32, row: u16) -> Result<(), SessionError> {
        self.machine.request_row(Instant::now(), sequence, row)?;
        self.perform_all();
        Ok(())
    }

    /// Other peers take the places of those that are lost, or the same ones once more: connects to them, and tells their neighbours.
    /// [`SessionEvent::Repaired`] follows once all are ready. Safe to cancel: then none was told.
    ///
    /// # Errors
    /// With the stage whose peer is not reached, does not let us in, or cannot take the place: the session waits for another still.
    /// See [`ClientSession::replace`].
    pub async fn replace(&mut self, mut others: Vec<(usize, RemoteStage)>) -> Result<(), (usize, SessionError)> {
        let first = others.first().map_or(0, |(hop, _)| *hop);
        let node = self.node.clone().ok_or((first, SessionError::Closed))?;
        let reached = reach(&node, &others).await?;
        if let Some((hop, link, _)) = reached.iter().find(|(_, link, _)| !self.fits(&link.welcome)) {
            let failure = Failure::new(FailureCode::Version, "its Potluck does not know what this session agreed on");
            let layers = self.machine.route().get(*hop).map_or(String::new(), |stage| stage.layers().to_string());
            return Err((*hop, SessionError::Peer { peer: link.peer, layers, failure }));
        }
        for (hop, link, halves) in reached {
            let Some((_, other)) = others.iter_mut().find(|(other, _)| *other == hop) else { continue };
            // What a peer showed as its grant is what its previous peer will check.
            other.grant.clone_from(&link.welcome.grant);
            self.is_next(hop, link, halves);
        }
        let replaced = self.machine.replace(Instant::now(), others).map_err(|error| (first, error));
        self.perform_all();
        self.next_streams.clear();
        replaced
    }

    /// What follows for that place goes to this stream, from the moment that the machine says so.
    fn is_next(&mut self, hop: usize, link: Link, halves: Halves) {
        self.last_life += 1;
        let life = self.last_life;
        let label = move |what| Happened::Came { hop, life, what };
        let stream = Stream::start(&mut self.tasks, halves, self.events.clone(), label);
        self.next_streams.insert(hop, NextStream { life, link, stream });
    }

    /// Where the peers are that are lost, if of all of them no more is known than that the connections to them are lost, and they keep
    /// sessions for clients that come back: [`come_back`](Self::come_back).
    pub fn broken_off(&self) -> Option<Vec<PeerAddress>> {
        let hops = self.machine.broken_off()?;
        let knows =
            |hop: &usize| self.links[*hop].as_ref().is_some_and(|link| link.welcome.features & FEATURE_RETURN != 0);
        let address = |hop: &usize| Some(self.machine.peer_at(*hop)?.address.clone());
        if hops.iter().all(knows) { hops.iter().map(address).collect() } else { None }
    }

    /// Goes on with the [same peers](Self::broken_off), which have kept the session: connects to them. [`SessionEvent::Repaired`] follows
    /// once all have said so, [`SessionEvent::Lost`] where one has not. Safe to cancel: then none was told.
    ///
    /// # Errors
    /// With the stage whose peer is not reached, or does not know how any more: the session waits still.
    pub async fn come_back(&mut self) -> Result<(), (usize, SessionError)> {
        let hops = self.machine.broken_off().unwrap_or_default();
        let first = hops.first().copied().unwrap_or_default();
        let places: Vec<_> = hops.iter().filter_map(|hop| Some((*hop, self.machine.peer_at(*hop)?.clone()))).collect();
        let node = self.node.clone().ok_or((first, SessionError::Closed))?;
        let reached = reach(&node, &places).await?;
        let forgetful = reached.iter().find(|(_, link, _)| link.welcome.features & FEATURE_RETURN == 0);
        if let Some((hop, ..)) = forgetful {
            let failure =
                Failure::new(FailureCode::Version, "its Potluck keeps no sessions for clients that come back");
            return Err((*hop, failed(&self.machine.route()[*hop], failure)));
        }
        reached.into_iter().for_each(|(hop, link, halves)| self.is_next(hop, link, halves));
        let asked = self.machine.come_back(Instant::now()).map_err(|error| (first, error));
        self.perform_all();
        self.next_streams.clear();
        asked
    }

    /// A peer is to stand by for that stage: connects to it. [`SessionEvent::StandsBy`] follows once it is ready. Safe to cancel: then nobody
    /// was told.
    ///
    /// # Errors
    /// Where it is not reached, does not let us in, or does not know how. See [`ClientSession::stand_by`].
    pub async fn stand_by(&mut self, hop: usize, mut stage: RemoteStage) -> Result<(), SessionError> {
        let node = self.node.clone().ok_or(SessionError::Closed)?;
        let place = Hop::Remote(stage.clone());
        let link = node.connect(&stage.address).await.map_err(|error| unreached(&place, &error))?;
        let halves = link.open_stream(&node).await.map_err(|error| unreached(&place, &error))?;
        if !self.fits(&link.welcome) {
            let detail = "its Potluck does not know what this session agreed on";
            return Err(failed(&place, Failure::new(FailureCode::Version, detail)));
        }
        // What a peer showed as its grant is what its previous peer will check.
        stage.grant.clone_from(&link.welcome.grant);
        self.is_next(self.machine.route().len() + hop, link, halves);
        let stands_by = self.machine.stand_by(Instant::now(), hop, stage);
        self.perform_all();
        self.next_streams.clear();
        stands_by
    }

    /// Who stands by for a stage, and is ready.
    pub fn standby(&self, hop: usize) -> Option<potluck_core::PeerId> {
        self.machine.standby(hop).map(|stage| stage.address.peer)
    }

    /// Whether somebody stands by for a stage, or is about to.
    pub fn has_standby(&self, hop: usize) -> bool {
        self.machine.peer_at(self.machine.route().len() + hop).is_some()
    }

    /// Whether the peer of a stage is about to go.
    pub fn is_leaving(&self, hop: usize) -> bool {
        self.machine.is_leaving(hop)
    }

    /// Whether a peer knows what the peers of this session agreed on.
    fn fits(&self, welcome: &Welcome) -> bool {
        let agreed = self.links.iter().flatten().fold(u64::MAX, |agreed, link| agreed & link.welcome.features);
        welcome.codecs.contains(self.codec) && knows(agreed, welcome.features)
    }

    /// The stages as they are now: other peers may have taken the places of some.
    pub fn route(&self) -> &[Hop] {
        self.machine.route()
    }

    /// How hidden states travel: as was wanted, or otherwise where a peer does not know how.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// True where every peer of the route keeps accounts of its sessions.
    pub fn keeps_accounts(&self) -> bool {
        self.all_have(FEATURE_ACCOUNTS)
    }

    /// True where every peer of the route takes trees of drafts, and skips what is fenced off.
    pub fn takes_drafts(&self) -> bool {
        self.all_have(FEATURE_DRAFTS)
    }

    fn all_have(&self, feature: u64) -> bool {
        self.links.iter().flatten().all(|link| link.welcome.features & feature != 0)
    }

    /// True where every peer of the route can keep what sessions hold.
    pub fn keeps_states(&self) -> bool {
        self.all_have(FEATURE_SAVING)
    }

    /// Asks every stage to keep what it holds. See [`ClientSession::save`].
    ///
    /// # Errors
    /// As there.
    pub fn save(&mut self, key: StateKey, seconds: u32) -> Result<(), SessionError> {
        self.machine.save(Instant::now(), key, seconds)?;
        self.perform_all();
        Ok(())
    }

    /// What the stages were to keep is not waited for any longer. See [`ClientSession::stop_saving`].
    pub fn stop_saving(&mut self) {
        self.machine.stop_saving();
        self.perform_all();
    }

    /// Asks every stage for what it has kept of an earlier session. See [`ClientSession::restore`].
    ///
    /// # Errors
    /// As there.
    pub fn restore(&mut self, session: SessionId, key: StateKey) -> Result<(), SessionError> {
        self.machine.restore(Instant::now(), session, key)?;
        self.perform_all();
        Ok(())
    }

    /// Asks each stage what it has done so far. See [`ClientSession::ask_accounts`].
    ///
    /// # Errors
    /// As there.
    pub fn ask_accounts(&mut self) -> Result<(), SessionError> {
        self.machine.ask_accounts(Instant::now())?;
        self.perform_all();
        Ok(())
    }

    /// What the session has to tell next. Safe to cancel: nothing is lost.
    ///
    /// # Errors
    /// How the session ended; from then on always `Closed`.
    pub async fn next(&mut self) -> Result<SessionEvent, SessionError> {
        loop {
            if let Some(told) = self.told.pop_front() {
                return told;
            }
            if self.machine.is_over() {
                return Err(SessionError::Closed);
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
                Some(happened) = self.inbox.recv() => self.happen(happened),
                (hop, word) = self.states.next() => self.state_word(hop, word),
                // What is there already is read before it counts as late.
                () = alarm => tokio::task::yield_now().await,
            }
            // Events that never cease must not keep a deadline from passing.
            if self.machine.poll_timeout().is_some_and(|at| at <= Instant::now()) {
                self.time_passes();
            }
        }
    }

    /// Steps that have not been answered yet.
    pub fn in_flight(&self) -> usize {
        self.machine.in_flight()
    }

    /// Positions that the caches hold once every submitted step has run.
    pub fn held(&self) -> u32 {
        self.machine.held()
    }

    /// How each stage of the route is reached at present; none for own stages.
    pub fn paths(&self) -> Vec<Option<PathInfo>> {
        self.links.iter().map(|link| link.as_ref().and_then(Link::path)).collect()
    }

    /// The stages as prompts are cut for them. What is reached over the loopback has this machine's cores.
    pub fn places(&self) -> Vec<Place> {
        let place = |(hop, path): (&Hop, Option<PathInfo>)| {
            let (peer, layers) = (hop.peer(), hop.layers());
            let here = peer.is_none() || path.is_some_and(|path| path.kind == PathKind::Loopback);
            let rtt_s = path.filter(|_| !here).map_or(0.0, |path| path.rtt.as_secs_f64());
            let speed = match hop {
                Hop::Remote(remote) => remote.speed,
                Hop::Own(_) => None,
            };
            Place { peer, layers, here, rtt_s, speed }
        };
        self.machine.route().iter().zip(self.paths()).map(place).collect()
    }

    /// Bytes written to and read from peers on this session's streams so far.
    pub fn bytes(&self) -> (u64, u64) {
        self.streams.values().fold(self.closed_bytes, |(written, read), stream| {
            (written + stream.written_bytes(), read + stream.read_bytes())
        })
    }

    /// Bytes that came a second time to this session's present streams before they came the first: packets of theirs were lost.
    pub fn echoed_bytes(&self) -> u64 {
        self.streams.values().map(Stream::echoed_bytes).sum()
    }

    /// Ends the session on every peer, and lets go of own stages.
    pub fn close(&mut self) {
        self.machine.close();
        self.perform_all();
        self.own.clear();
        self.next_streams.clear();
        self.tasks.abort_all();
        self.node = None;
    }

    fn happen(&mut self, happened: Happened) {
        let happened = match happened {
            Happened::Came { hop, life, what } => {
                let hop = self.promoted.get(&life).copied().unwrap_or(hop);
                Happened::Came { hop, life, what }
            }
            own => own,
        };
        match happened {
            // What a stream still brings whose peer was replaced.
            Happened::Came { hop, life, .. } if life != self.lives[hop] => {}
            Happened::Came { hop, what: Inbound::Frame(frame), .. } => self.tell(Event::Frame { hop, frame }),
            Happened::Came { hop, what: Inbound::Asked(asking), .. } => {
                self.tell(Event::Frame { hop, frame: Frame::Ask(asking.ask) });
            }
            Happened::Came { hop, what: Inbound::Closed(failure), .. } => self.tell(Event::Closed { hop, failure }),
            Happened::Came { hop, what: Inbound::Broken(failure), .. } => self.tell(Event::Broken { hop, failure }),
            Happened::Own { hop, reply } => {
                if let Some(reply) = self.states.reply(hop, reply) {
                    self.tell(Event::Own { hop, reply });
                }
            }
        }
    }

    /// Whoever keeps states asks an own stage for a part, or is done.
    fn state_word(&mut self, hop: usize, word: Word) {
        match word {
            Word::Ask(command) => self.command(hop, command),
            Word::Done(reply) => self.tell(Event::Own { hop, reply }),
        }
    }

    fn command(&mut self, hop: usize, command: StageCommand) {
        let sent = self.own.get(&hop).map(|commands| commands.send(command));
        if !matches!(sent, Some(Ok(()))) && !self.machine.is_over() {
            let reply = StageReply::Lost { reason: "the stage takes no commands any more".into() };
            self.machine.handle(Instant::now(), Event::Own { hop, reply });
        }
    }

    /// A deadline has passed: what has come by now is not late, nor is a peer that has acknowledged anything meanwhile, though its answer may
    /// be behind much else.
    fn time_passes(&mut self) {
        for _ in 0..EVENTS_MAX {
            let Ok(happened) = self.inbox.try_recv() else { break };
            self.happen(happened);
        }
        let asked: Vec<usize> = self.machine.doubted().collect();
        for hop in asked {
            let link = self.links.get(hop).and_then(Option::as_ref);
            let now = link.map(Link::acknowledgements);
            if now.zip(self.acknowledged.get(&hop)).is_some_and(|(now, before)| now > *before) {
                self.tell(Event::Heard { hop });
            }
        }
        self.tell(Event::Timeout);
    }

    fn tell(&mut self, event: Event) {
        self.machine.handle(Instant::now(), event);
        if !self.acknowledged.is_empty() {
            let doubted: Vec<usize> = self.machine.doubted().collect();
            self.acknowledged.retain(|hop, _| doubted.contains(hop));
        }
        self.perform_all();
    }

    fn perform_all(&mut self) {
        while let Some(effect) = self.machine.poll() {
            self.perform(effect);
        }
        // How a stream ended that takes nothing any more, its reader says.
        let lives = &self.lives;
        let failed: Vec<_> = self
            .streams
            .iter_mut()
            .filter_map(|(hop, stream)| stream.flush().err().map(|failure| (*hop, lives[*hop], failure)))
            .filter(|(_, _, failure)| failure.code != FailureCode::PeerLost)
            .collect();
        for (hop, life, failure) in failed {
            // The first of them may have brought another to the second one's place.
            if self.lives[hop] != life {
                continue;
            }
            self.end_stream(hop, Failure::new(FailureCode::Done, ""));
            self.tell(Event::Closed { hop, failure });
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send { hop, frame } => {
                if let (Frame::AskAccount, Some(link)) = (&frame, &self.links[hop])
                    && self.machine.doubted().any(|doubted| doubted == hop)
                {
                    self.acknowledged.entry(hop).or_insert_with(|| link.acknowledgements());
                }
                if let Some(stream) = self.streams.get_mut(&hop) {
                    stream.push(frame);
                }
            }
            Effect::Limit { hop, frame_bytes_max } => {
                if let Some(stream) = self.streams.get(&hop) {
                    stream.set_limit(frame_bytes_max);
                }
            }
            Effect::Close { hop, failure } => self.end_stream(hop, failure),
            Effect::Reopen { hop } => {
                self.end_stream(hop, Failure::new(FailureCode::Done, ""));
                if let Some(NextStream { life, link, stream }) = self.next_streams.remove(&hop) {
                    self.lives[hop] = life;
                    self.links[hop] = Some(link);
                    self.streams.insert(hop, stream);
                }
            }
            Effect::Promoted { hop } => {
                let at = self.machine.route().len() + hop;
                self.end_stream(hop, Failure::new(FailureCode::Done, ""));
                if let Some(stream) = self.streams.remove(&at) {
                    self.streams.insert(hop, stream);
                }
                (self.lives[hop], self.links[hop]) = (self.lives[at], self.links[at].take());
                self.promoted.insert(self.lives[hop], hop);
                self.told.push_back(Ok(SessionEvent::Promoted { hop }));
            }
            Effect::StandsBy { hop } => self.told.push_back(Ok(SessionEvent::StandsBy { hop })),
            Effect::StandbyLost { hop, error } => self.told.push_back(Ok(SessionEvent::StandbyLost { hop, error })),
            Effect::Own { hop, command } => {
                let spec = self.machine.route()[hop].spec();
                if let Some(command) = self.states.command(hop, spec, command) {
                    self.command(hop, command);
                }
            }
            Effect::Saved { positions, bytes } => self.told.push_back(Ok(SessionEvent::Saved { positions, bytes })),
            Effect::Restored { positions } => self.told.push_back(Ok(SessionEvent::Restored { positions })),
            Effect::Ready => self.told.push_back(Ok(SessionEvent::Ready)),
            Effect::Lost { hop, error } => self.told.push_back(Ok(SessionEvent::Lost { hop, error })),
            Effect::Leaving { hop } => self.told.push_back(Ok(SessionEvent::Leaving { hop })),
            Effect::Repaired => self.told.push_back(Ok(SessionEvent::Repaired)),
            Effect::Answer(answer) => self.told.push_back(Ok(SessionEvent::Answer(answer))),
            Effect::Row { sequence, row, logits } => {
                self.told.push_back(Ok(SessionEvent::Row { sequence, row, logits }));
            }
            Effect::Accounts(accounts) => self.told.push_back(Ok(SessionEvent::Accounts(accounts))),
            Effect::Failed(error) => self.told.push_back(Err(error)),
        }
    }

    fn end_stream(&mut self, hop: usize, failure: Failure) {
        if let Some(stream) = self.streams.remove(&hop) {
            self.closed_bytes.0 += stream.written_bytes();
            self.closed_bytes.1 += stream.read_bytes();
            stream.end(failure);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

/// Whether those features are all that a session has agreed on. Echoes and checks are each connection's own, and who keeps a session for a
/// client that comes back, or what one holds that is put aside, does so alone.
fn knows(agreed: u64, features: u64) -> bool {
    agreed & !(FEATURE_ECHOES | FEATURE_CHECKS | FEATURE_RETURN | FEATURE_SAVING) & !features == 0
}

#[cfg(test)]
mod tests {
    use potluck_wire::FEATURES;

    use super::*;

    #[test]
    fn whoever_takes_a_place_knows_what_was_agreed_on() {
        assert!(knows(FEATURES, FEATURES) && knows(FEATURES & !FEATURE_DRAFTS, FEATURES));
        assert!(!knows(FEATURES, FEATURES & !FEATURE_DRAFTS) && !knows(FEATURES, 0));
        assert!(knows(FEATURES, FEATURES & !FEATURE_ECHOES), "an older one, by a connection without echoes");
        assert!(knows(FEATURES, FEATURES & !FEATURE_CHECKS), "an older one, which is sent no checks");
        assert!(knows(FEATURES, FEATURES & !FEATURE_RETURN), "an older one, to which nobody comes back");
        assert!(knows(FEATURES, FEATURES & !FEATURE_SAVING), "an older one, which keeps nothing");
    }
}
