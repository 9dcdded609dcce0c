//! A session over a route of peers, as the generation loop wants it.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use potluck_chain::{Answer, Hop, SessionConfig, SessionError, Submission, chunks::Place, plan::Sees};
use potluck_client::{Chain, ChainShape, RepairTimes, StageAccount};
use potluck_core::{Account, Hidden, LayerRange, PeerId, SessionId, StateKey};
use potluck_net::{Node, OwnPort, PathKind, Session, SessionEvent, StateJobs};
use potluck_wire::{Codec, Failure as WireFailure, FailureCode, HEADER_BYTES, answer_rows_max, padded_positions};

use tokio::{
    task::JoinHandle,
    time::{sleep_until, timeout},
};

use super::{
    RouteStage,
    opening::REOPEN_EVERY,
    substitutes::{Parted, Places, Search, Substitutes, Vacancy},
};
use crate::{engines::RunningEngine, failure::Failure};

/// How often it is seen whether a standby is missing, and how often one is looked for that was not found.
const STANDBY_LOOK: Duration = Duration::from_secs(1);
const STANDBY_EVERY: Duration = Duration::from_secs(10);

/// How long others may be tried in the place of a lost peer, but for the time in which somebody loads what it had: after that another route
/// is the quicker way.
const TRIED_WITHIN: Duration = Duration::from_secs(10);

/// How often it is tried in one pause to go on with the same peers: the way to them may be cut again, and others are there.
const RETURNS_MAX: u32 = 3;

/// How long it may take to ask them: there were connections to them a moment ago.
const BACK_TAKES: Duration = Duration::from_secs(2);

/// A session that is ready on every peer of its route.
#[derive(Debug)]
pub(crate) struct RouteChain {
    /// Closed with the session; none where other sessions use it, too.
    node: Option<Node>,
    repair: Repair,
    standbys: Standbys,
    session: Session,
    /// What its peers know it by.
    id: SessionId,
    /// Its number at the engines of this machine that sessions share; 0 where they share none.
    number: u64,
    shape: ChainShape,
    /// Who holds what: none is this machine.
    stages: Vec<(Option<PeerId>, LayerRange)>,
    codec: Codec,
    pad: bool,
    width: usize,
    /// Bytes between peers, which this machine does not see: they follow from the steps.
    between: u64,
    /// Answers that came while something else was awaited.
    answers: VecDeque<Answer>,
    /// The accounts were asked for, and are not waited for.
    asked: bool,
    told: Option<Vec<Account>>,
    engines: Vec<RunningEngine>,
}

/// How the session goes on without peers that it loses.
#[derive(Debug)]
struct Repair {
    /// None once the chain was let go of.
    node: Option<Node>,
    substitutes: Substitutes,
    /// Stages whose peers are lost, and how the session would have ended.
    lost: Vec<(usize, SessionError)>,
    /// The first of those in whose places others were asked.
    first: Option<SessionError>,
    /// Who they were, of the repair that is under way.
    gone: BTreeSet<PeerId>,
    /// Since when, and when others are looked for next.
    since: Instant,
    again: Option<Instant>,
    /// Others were asked to take the places, and have not all said that they are ready; until when they are waited for.
    trying: bool,
    until: Option<Instant>,
    /// A search that is under way.
    search: Option<JoinHandle<Result<Search, Failure>>>,
    /// How long somebody was waited for who loaded what was missing, in the repair that is under way.
    load: Duration,
    /// Stages that others were asked to take, of the repair that is under way; how long it took to find these others, and what is known
    /// of it once they were ready.
    layers: Vec<usize>,
    /// None of them was looked for: peers stood by.
    stood_by: bool,
    /// How often the same peers were asked to go on, of the repair that is under way; and whether nobody else was asked since.
    returns: u32,
    came_back: bool,
    found_s: Option<f64>,
    ready: Option<RepairTimes>,
    /// Those that are complete.
    done: Vec<RepairTimes>,
}

/// A stage of a route that runs on this machine.
#[derive(Debug)]
pub(crate) struct OwnEngine {
    /// How it is reached.
    pub(crate) port: OwnPort,
    /// Ends with the session.
    pub(crate) engine: RunningEngine,
}

impl RouteChain {
    /// Opens a session on `node` and waits until every peer has confirmed it. `kept`: the node stays when the session ends. `states`: whoever
    /// keeps what own stages hold.
    ///
    /// # Errors
    /// See [`SessionError`]; there is a deadline.
    pub(crate) async fn open(
        node: Node,
        kept: bool,
        config: SessionConfig,
        own: Vec<OwnEngine>,
        states: Option<StateJobs>,
        substitutes: Substitutes,
    ) -> Result<Self, SessionError> {
        let (ports, engines): (_, Vec<RunningEngine>) = own.into_iter().map(|own| (own.port, own.engine)).unzip();
        let opened = Self::ready(&node, config, (ports, states), substitutes).await;
        let node = (!kept).then_some(node);
        match opened {
            Ok(chain) => Ok(Self { node, engines, ..chain }),
            Err(error) => {
                // The peers are told, and not left to find out by silence: their caches are free at once.
                end(node.as_ref(), engines).await;
                Err(error)
            }
        }
    }

    /// The same on a node, and on own stages, that other sessions use, too: they stay. `number`: which of these it is.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub(crate) async fn open_on(
        node: &Node,
        config: SessionConfig,
        own: Vec<OwnPort>,
        number: u64,
        substitutes: Substitutes,
    ) -> Result<Self, SessionError> {
        Ok(Self { number, ..Self::ready(node, config, (own, None), substitutes).await? })
    }

    /// Waits until every peer has confirmed; dropped before, the session ends on those that have.
    async fn ready(
        node: &Node,
        config: SessionConfig,
        (own, states): (Vec<OwnPort>, Option<StateJobs>),
        substitutes: Substitutes,
    ) -> Result<Self, SessionError> {
        let shape = ChainShape { vocabulary: config.vocabulary, positions: config.positions };
        let stages = config.route.iter().map(stage_of).collect();
        let (pad, width, id) = (config.pad, config.width as usize, config.key.id);
        let is_whole = config.prefix.is_none();
        let mut session = node.open_keeping(config, own, states).await?;
        let codec = session.codec();
        while !matches!(session.next().await?, SessionEvent::Ready) {}
        let (answers, engines) = (VecDeque::new(), Vec::new());
        let (between, asked, told) = (0, false, None);
        // Whoever begins with another's positions has nothing to send a standby.
        let standbys = Standbys::new(is_whole.then(|| node.clone()), substitutes.clone());
        let repair = Repair::new(node.clone(), substitutes);
        let (node, number) = (None, 0);
        Ok(Self {
            node,
            repair,
            standbys,
            session,
            id,
            number,
            shape,
            stages,
            codec,
            pad,
            width,
            between,
            answers,
            asked,
            told,
            engines,
        })
    }

    /// The stages, as they are reached now.
    pub(crate) fn route(&self) -> Vec<RouteStage> {
        let whole = self.stages.last().map_or(0, |(_, layers)| layers.end());
        let paths = self.session.paths();
        let describe = |hop: usize| {
            let ((peer, layers), path) = (self.stages[hop], paths.get(hop).copied().flatten());
            let Some(peer) = peer else { return RouteStage::own(layers) };
            RouteStage {
                peer: peer.to_string(),
                layers: [layers.start(), layers.end()],
                path: match path.map(|path| path.kind) {
                    Some(PathKind::Loopback) => "loopback",
                    Some(PathKind::Relay) => "relay",
                    Some(PathKind::Direct) | None => "direct",
                },
                sees: Sees::of(false, layers.start() == 0, layers.end() == whole),
                rtt_ms: path.map_or(0.0, |path| path.rtt.as_secs_f64() * 1e3),
                standby: self.session.standby(hop).map(|peer| peer.to_string()),
            }
        };
        (0..self.stages.len()).map(describe).collect()
    }

    /// How hidden states travel.
    pub(crate) fn codec(&self) -> Codec {
        self.codec
    }

    /// What its peers know it by.
    pub(crate) fn session(&self) -> SessionId {
        self.id
    }

    /// Its number at the engines that sessions share.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Who holds which layers: none is this machine.
    pub(crate) fn stages(&self) -> &[(Option<PeerId>, LayerRange)] {
        &self.stages
    }

    /// Has every stage keep what it holds, for so many seconds: positions, and the bytes that they take; none where one does not.
    ///
    /// # Errors
    /// See [`SessionError`]; there is a deadline.
    pub(crate) async fn save(&mut self, key: StateKey, seconds: u32) -> Result<Option<(u32, u64)>, SessionError> {
        if !self.session.keeps_states() {
            return Ok(None);
        }
        match self.session.save(key, seconds) {
            // Something is under way, or a peer is lost just now.
            Err(SessionError::BadStep(why)) => {
                tracing::info!("nothing is kept: {why}");
                return Ok(None);
            }
            asked => asked?,
        }
        loop {
            match self.event().await? {
                SessionEvent::Saved { positions, bytes } => return Ok((positions > 0).then_some((positions, bytes))),
                SessionEvent::Accounts(accounts) => self.hear(accounts),
                SessionEvent::Answer(answer) => self.answers.push_back(answer),
                _ => {}
            }
        }
    }

    /// Has every stage begin with what it has kept of that session: positions that all hold then.
    ///
    /// # Errors
    /// See [`SessionError`]; there is a deadline.
    pub(crate) async fn restore(&mut self, session: SessionId, key: StateKey) -> Result<u32, SessionError> {
        if !self.session.keeps_states() {
            return Ok(0);
        }
        self.session.restore(session, key)?;
        // Nobody could be sent what came before.
        let node = self.standbys.end();
        loop {
            match self.event().await? {
                SessionEvent::Restored { positions } => {
                    if positions == 0 {
                        self.standbys.node = node;
                    }
                    return Ok(positions);
                }
                SessionEvent::Accounts(accounts) => self.hear(accounts),
                _ => {}
            }
        }
    }

    /// What the session tells next, but for the peers that it loses: others are looked for meanwhile. Dropping the future loses nothing.
    async fn event(&mut self) -> Result<SessionEvent, SessionError> {
        loop {
            // A lost peer's place comes first.
            if !self.repair.is_under_way() {
                self.standbys.look(&self.session, self.shape.positions);
            }
            let event = tokio::select! {
                biased;
                event = self.session.next() => event?,
                found = self.repair.found() => match found {
                    Found::Nobody => return Err(self.repair.give_up()),
                    found => {
                        self.take_places(found).await;
                        continue;
                    }
                },
                found = self.standbys.found(), if !self.repair.is_under_way() => {
                    self.stand_by(found).await;
                    continue;
                }
            };
            match event {
                SessionEvent::Lost { hop, error } => {
                    tracing::info!(%error, "another peer is looked for in its place");
                    self.repair.lose(hop, error, self.stages[hop].0);
                    // Whoever could not take the place may be able to in a moment.
                    match std::mem::take(&mut self.repair.trying) {
                        true => self.repair.look_again(),
                        false => self.look(),
                    }
                }
                SessionEvent::Leaving { hop } => {
                    tracing::info!(hop, "a peer is about to go: another is looked for");
                    self.standbys.in_vain.remove(&hop);
                }
                SessionEvent::Promoted { hop } => {
                    tracing::info!(hop, "who stood by for a peer takes its place");
                    self.repair.promoted(hop, self.stages[hop].0);
                    self.standbys.unfit.extend(self.stages.get(hop).and_then(|(peer, _)| *peer));
                }
                SessionEvent::StandsBy { hop } => tracing::info!(hop, "a peer stands by"),
                SessionEvent::StandbyLost { hop, error } => {
                    tracing::info!(hop, %error, "nobody stands by any more");
                    self.standbys.failed(hop, &error);
                    self.standbys.again = Instant::now() + STANDBY_LOOK;
                }
                SessionEvent::Repaired => {
                    self.stages = self.session.route().iter().map(stage_of).collect();
                    self.repair.ready(self.session.route());
                    self.repair.tell(&self.stages);
                    tracing::info!(seconds = self.repair.since.elapsed().as_secs_f32(), "the session goes on");
                }
                event => {
                    if matches!(event, SessionEvent::Answer(_)) {
                        self.repair.answered();
                    }
                    return Ok(event);
                }
            }
        }
    }

    /// Others were found, or it is time to look for them again.
    async fn take_places(&mut self, found: Found) {
        if let Found::Nothing | Found::Nobody = found {
            return self.look();
        }
        // Where this is dropped on the way, they are looked for again.
        self.repair.look_again();
        let is_back = matches!(found, Found::Same);
        let asked = match found {
            Found::Others(others) => self.session.replace(others).await,
            _ => {
                self.repair.returns += 1;
                match timeout(BACK_TAKES, self.session.come_back()).await {
                    Ok(asked) => asked,
                    Err(_) => return,
                }
            }
        };
        match asked {
            Ok(()) => self.repair.tries(is_back),
            Err((_, error)) => tracing::info!(%error, "nobody took a lost peer's place yet"),
        }
    }

    /// Begins to look for peers in the places of all that are lost: for others, and, where only connections were, for the same.
    fn look(&mut self) {
        let route = self.session.route();
        let peers = self.session.broken_off().filter(|_| self.repair.returns < RETURNS_MAX);
        let remote = route.iter().filter(|hop| hop.peer().is_some()).count();
        let parted = peers.map(|peers| Parted { are_all: peers.len() == remote, peers });
        self.repair.look(route, self.shape.positions, parted);
    }

    /// A peer was found that can stand by.
    async fn stand_by(&mut self, found: Places) {
        for (hop, stage) in found {
            if !self.standbys.wants(&self.session, hop) {
                continue;
            }
            // There is a connection to it; where that is gone since, the session's own events do not wait for another.
            match timeout(STANDBY_LOOK, self.session.stand_by(hop, stage)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::info!(hop, %error, "a peer does not stand by");
                    self.standbys.failed(hop, &error);
                }
                Err(_) => {
                    tracing::info!(hop, "a peer that was to stand by is not there any more");
                    self.standbys.in_vain.insert(hop);
                }
            }
        }
    }

    /// What was asked for has come.
    fn hear(&mut self, accounts: Vec<Account>) {
        self.asked = false;
        self.told = Some(accounts);
    }

    /// Hops from one peer to another.
    fn peer_hops(&self) -> usize {
        self.stages.windows(2).filter(|pair| pair.iter().all(|(peer, _)| peer.is_some())).count()
    }
}

/// What came of a search.
#[derive(Debug)]
enum Found {
    Others(Places),
    /// Those that were lost are reached again.
    Same,
    /// It is time for another one.
    Nothing,
    /// There is nobody.
    Nobody,
}

impl Repair {
    fn new(node: Node, substitutes: Substitutes) -> Self {
        Self {
            node: Some(node),
            substitutes,
            lost: Vec::new(),
            first: None,
            gone: BTreeSet::new(),
            since: Instant::now(),
            again: None,
            trying: false,
            until: None,
            search: None,
            load: Duration::ZERO,
            layers: Vec::new(),
            stood_by: true,
            returns: 0,
            came_back: false,
            found_s: None,
            ready: None,
            done: Vec::new(),
        }
    }

    /// Whether somebody is lost, or has not said yet that it is ready.
    fn is_under_way(&self) -> bool {
        !self.lost.is_empty() || self.trying
    }

    /// A peer is gone. Until a step is answered it is all one pause.
    fn begin(&mut self, peer: Option<PeerId>) {
        if self.lost.is_empty() && !self.trying && self.ready.is_none() {
            (self.since, self.load) = (Instant::now(), Duration::ZERO);
            (self.returns, self.came_back) = (0, false);
            self.layers.clear();
        }
        // It is noticed more than once: by others, and here.
        self.gone.extend(peer);
    }

    fn lose(&mut self, hop: usize, error: SessionError, peer: Option<PeerId>) {
        self.begin(peer);
        if !self.lost.iter().any(|(lost, _)| *lost == hop) {
            self.lost.push((hop, error));
        }
    }

    /// Whoever stood by for a peer that is lost has its place.
    fn promoted(&mut self, hop: usize, peer: Option<PeerId>) {
        self.begin(peer);
        self.came_back = false;
        self.layers.push(hop);
        self.tries_now();
        self.found_s.get_or_insert(self.since.elapsed().as_secs_f64());
    }

    /// Others were asked to take the places, or the same to go on.
    fn tries(&mut self, is_back: bool) {
        let lost = std::mem::take(&mut self.lost);
        self.came_back = is_back && (self.came_back || self.layers.is_empty());
        self.stood_by = false;
        self.layers.extend(lost.iter().map(|(hop, _)| hop));
        self.first = lost.into_iter().next().map(|(_, error)| error).or(self.first.take());
        self.again = None;
        self.tries_now();
        self.found_s = Some(self.since.elapsed().as_secs_f64());
    }

    fn tries_now(&mut self) {
        self.trying = true;
        self.until = Some(Instant::now() + TRIED_WITHIN);
    }

    /// They are ready.
    fn ready(&mut self, route: &[Hop]) {
        (self.trying, self.until, self.first) = (false, None, None);
        self.layers.sort_unstable();
        self.layers.dedup();
        let range = |hop: &usize| route.get(*hop).map(|hop| [hop.layers().start(), hop.layers().end()]);
        let layers = self.layers.iter().filter_map(range).collect();
        let ready_s = self.since.elapsed().as_secs_f64();
        let found_s = self.found_s.take().unwrap_or(ready_s);
        let (stood_by, load_s) = (std::mem::replace(&mut self.stood_by, true), self.load.as_secs_f64());
        let (came_back, answered_s) = (self.came_back, ready_s);
        self.ready = Some(RepairTimes { layers, stood_by, came_back, found_s, load_s, ready_s, answered_s });
    }

    /// Tells whoever reads along who has gone, and who is there instead.
    fn tell(&mut self, stages: &[(Option<PeerId>, LayerRange)]) {
        let gone = std::mem::take(&mut self.gone);
        // One whose engine alone was lost has its own place again.
        let is_back = |peer: &PeerId| stages.iter().any(|(at, _)| *at == Some(*peer));
        let gone: Vec<_> = gone.iter().filter(|peer| !is_back(peer)).map(PeerId::short).collect();
        let places = self.layers.iter().filter_map(|&hop| stages.get(hop));
        let has =
            |(peer, layers): &(Option<PeerId>, LayerRange)| Some(format!("{} has layers {layers}", (*peer)?.short()));
        let now = places.filter_map(has).collect::<Vec<_>>().join(", ");
        let seconds = self.since.elapsed().as_secs_f64();
        if self.came_back {
            return self.substitutes.tell(format!("the connection was lost; the answer goes on after {seconds:.1} s"));
        }
        let what = match &gone[..] {
            [] if self.returns > 0 => "the connection was lost".into(),
            [] => "an engine was lost".into(),
            gone => format!("gone: peer {}", gone.join(", ")),
        };
        self.substitutes.tell(format!("{what}; {now} now, and the answer goes on after {seconds:.1} s"));
    }

    /// A step was answered.
    fn answered(&mut self) {
        let answered_s = self.since.elapsed().as_secs_f64();
        let Some(times) = self.ready.take() else { return };
        self.done.push(RepairTimes { answered_s, ..times });
        // What is lost meanwhile is another pause.
        self.since = Instant::now();
        if !self.trying {
            self.layers.clear();
        }
    }

    /// All repairs so far, one that no answer has followed included.
    fn take(&mut self) -> Vec<RepairTimes> {
        self.done.extend(self.ready.take());
        std::mem::take(&mut self.done)
    }

    fn look(&mut self, route: &[Hop], positions: u32, parted: Option<Parted>) {
        self.end_search();
        self.again = None;
        let vacancies = Vacancy::of(route, &self.lost, positions);
        let find = |node| tokio::spawn(self.substitutes.clone().find(node, vacancies, parted));
        self.search = self.node.clone().map(find);
    }

    fn look_again(&mut self) {
        self.again = Some(Instant::now() + REOPEN_EVERY);
    }

    fn end_search(&mut self) {
        if let Some(search) = self.search.take() {
            search.abort();
        }
    }

    /// How the session ends where nobody can take a place: another route may lead elsewhere.
    fn give_up(&mut self) -> SessionError {
        let first = self.lost.first().map(|(_, error)| error.clone()).or(self.first.take());
        let late = || {
            // Whoever stood by did not take the place in time.
            let failure = WireFailure::new(FailureCode::PeerLost, "nobody was ready in its place in time");
            let (peer, layers) = (self.gone.first().copied()?, String::new());
            Some(SessionError::PeerLost { peer, layers, failure })
        };
        first.or_else(late).unwrap_or(SessionError::Closed)
    }

    /// What a search has found. Never, where nobody is lost.
    async fn found(&mut self) -> Found {
        if let Some(search) = &mut self.search {
            let found = search.await;
            self.search = None;
            match found {
                Ok(Ok(Search::Others { places, load })) => {
                    self.load += load;
                    return Found::Others(places);
                }
                Ok(Ok(Search::Back)) => return Found::Same,
                Ok(Err(failure)) => {
                    tracing::info!(code = %failure.code, "{}", failure.message);
                    return Found::Nobody;
                }
                Err(_) => self.look_again(),
            }
        }
        let Some(at) = self.again.or(self.until) else { return std::future::pending().await };
        sleep_until(at.into()).await;
        let is_late = match self.again {
            Some(_) => self.since.elapsed() >= TRIED_WITHIN + self.load,
            None => true,
        };
        if is_late { Found::Nobody } else { Found::Nothing }
    }
}

/// Peers that stand by, or are looked for: as many as were asked for, and one for each peer that is about to go.
#[derive(Debug)]
struct Standbys {
    node: Option<Node>,
    substitutes: Substitutes,
    search: Option<JoinHandle<Result<Places, Failure>>>,
    /// Somebody is missing.
    wanted: bool,
    /// When one is looked for next, where nobody waits for it.
    again: Instant,
    /// The stage for which one was looked for last, and those for which none was found since all were tried.
    hop: usize,
    in_vain: BTreeSet<usize>,
    /// Peers that could not, or did not go on, or have left.
    unfit: BTreeSet<PeerId>,
    /// When those that were tried in vain are tried again.
    anew: Instant,
}

impl Standbys {
    fn new(node: Option<Node>, substitutes: Substitutes) -> Self {
        let (in_vain, unfit) = Default::default();
        let (search, wanted, again) = (None, false, Instant::now());
        Self { node, substitutes, search, wanted, again, hop: 0, in_vain, unfit, anew: again + STANDBY_EVERY }
    }

    /// Stages for which somebody is to stand by and nobody does, the most urgent first: those whose peers are about to go, and then, of as
    /// many as were asked for, those with the most layers.
    fn missing(&self, session: &Session) -> Vec<usize> {
        let route = session.route();
        let (have, without): (Vec<usize>, Vec<usize>) = (0..route.len()).partition(|hop| session.has_standby(*hop));
        let without = without.into_iter().filter(|hop| route[*hop].peer().is_some());
        let (deserted, mut others): (Vec<usize>, Vec<usize>) = without.partition(|hop| session.is_leaving(*hop));
        let room = self.substitutes.standbys().saturating_sub(have.len() + deserted.len());
        others.sort_by_key(|hop| std::cmp::Reverse(route[*hop].layers().count()));
        let others = if room > 0 { others } else { Vec::new() };
        deserted.into_iter().chain(others).collect()
    }

    /// Looks for somebody, where it is time for that. Who is about to go does not wait, unless nobody was found just now.
    fn look(&mut self, session: &Session, positions: u32) {
        // It is asked at each event: mostly nobody can be missing.
        let may_miss = self.substitutes.standbys() > 0 || (0..session.route().len()).any(|hop| session.is_leaving(hop));
        if !may_miss || self.node.is_none() {
            self.wanted = false;
            return;
        }
        let missing = self.missing(session);
        self.wanted = !missing.is_empty();
        let now = Instant::now();
        if self.wanted && self.anew <= now {
            // All once more, whoever did not fit included: much may have changed.
            (self.in_vain, self.unfit) = Default::default();
            self.anew = now + STANDBY_EVERY;
        }
        let next = missing.into_iter().find(|hop| !self.in_vain.contains(hop));
        if next.is_none() {
            self.again = self.again.max(self.anew);
        }
        let is_urgent = next.is_some_and(|hop| session.is_leaving(hop));
        let (Some(hop), Some(node)) = (next.filter(|_| is_urgent || self.again <= now), self.node.clone()) else {
            return;
        };
        // What is not urgent can wait.
        if let Some(search) = &self.search {
            if !is_urgent || session.is_leaving(self.hop) {
                return;
            }
            search.abort();
            self.search = None;
        }
        self.again = now + STANDBY_LOOK;
        self.hop = hop;
        let route = session.route();
        let others = route.iter().filter_map(Hop::peer).chain(self.unfit.iter().copied());
        let others = others.chain((0..route.len()).filter_map(|hop| session.standby(hop))).collect();
        if let Some(vacancy) = Vacancy::beside(route, hop, others, positions) {
            self.search = Some(tokio::spawn(self.substitutes.clone().find_standby(node, vacancy)));
        }
    }

    /// Whether somebody who was found for that stage is wanted still.
    fn wants(&self, session: &Session, hop: usize) -> bool {
        self.missing(session).contains(&hop)
    }

    /// Who was found; nobody, where it is time to look. Never, where nobody is to stand by.
    async fn found(&mut self) -> Places {
        let Some(search) = &mut self.search else {
            match self.wanted {
                true => sleep_until(self.again.into()).await,
                false => std::future::pending().await,
            }
            return Places::new();
        };
        let found = search.await;
        self.search = None;
        match found {
            Ok(Ok(found)) => return found,
            Ok(Err(failure)) => tracing::info!(code = %failure.code, "{}", failure.message),
            Err(_) => {}
        }
        self.in_vain.insert(self.hop);
        Places::new()
    }

    /// A peer did not stand by for that stage, or does no more.
    fn failed(&mut self, hop: usize, error: &SessionError) {
        match error {
            // It was let go of here: others changed places.
            SessionError::Peer { failure, .. } if failure.code == FailureCode::Done => {}
            SessionError::Peer { peer, .. } | SessionError::PeerLost { peer, .. } => {
                self.unfit.insert(*peer);
            }
            _ => {
                self.in_vain.insert(hop);
            }
        }
    }

    /// Nobody is looked for any more: with this node that was done.
    fn end(&mut self) -> Option<Node> {
        if let Some(search) = self.search.take() {
            search.abort();
        }
        self.node.take()
    }
}

impl Drop for Standbys {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for Repair {
    fn drop(&mut self) {
        self.end_search();
    }
}

/// Closes every connection, and waits for the own engines' end; their sessions are gone.
async fn end(node: Option<&Node>, engines: Vec<RunningEngine>) {
    if let Some(node) = node {
        node.close().await;
    }
    for engine in engines {
        engine.stop().await;
    }
}

/// Who holds which layers: none is this machine.
pub(crate) fn stage_of(hop: &Hop) -> (Option<PeerId>, LayerRange) {
    match hop {
        Hop::Own(own) => (None, own.spec.layers),
        Hop::Remote(remote) => (Some(remote.address.peer), remote.spec.layers),
    }
}

impl Chain for RouteChain {
    fn shape(&self) -> ChainShape {
        self.shape
    }

    fn takes_drafts(&self) -> bool {
        self.session.takes_drafts()
    }

    fn rows_max(&self, top: u16) -> usize {
        answer_rows_max(self.width as u32, self.shape.vocabulary, top)
    }

    async fn submit(&mut self, submission: Submission) -> Result<u32, SessionError> {
        // Whoever waited for it does so no more.
        self.session.stop_saving();
        let tokens = submission.tokens.len();
        let positions = if self.pad { padded_positions(tokens) } else { tokens };
        let frame = HEADER_BYTES + self.codec.bytes(positions, self.width);
        self.between += (self.peer_hops() * frame) as u64;
        self.session.submit(submission)
    }

    async fn answer(&mut self) -> Result<Answer, SessionError> {
        if let Some(answer) = self.answers.pop_front() {
            return Ok(answer);
        }
        loop {
            match self.event().await? {
                SessionEvent::Answer(answer) => return Ok(answer),
                SessionEvent::Accounts(accounts) => self.hear(accounts),
                _ => {}
            }
        }
    }

    async fn row(&mut self, sequence: u32, row: u16) -> Result<Hidden, SessionError> {
        self.session.request_row(sequence, row)?;
        loop {
            match self.event().await? {
                SessionEvent::Row { logits, .. } => return Ok(logits),
                SessionEvent::Accounts(accounts) => self.hear(accounts),
                SessionEvent::Answer(answer) => self.answers.push_back(answer),
                _ => {}
            }
        }
    }

    async fn accounts(&mut self) -> Result<Option<Vec<StageAccount>>, SessionError> {
        if !self.session.keeps_accounts() {
            return Ok(None);
        }
        // What was asked for before is of an earlier moment.
        let mut due = self.asked;
        self.ask_accounts()?;
        loop {
            match self.event().await? {
                SessionEvent::Accounts(accounts) if due => {
                    self.hear(accounts);
                    self.ask_accounts()?;
                    due = false;
                }
                SessionEvent::Accounts(accounts) => {
                    self.asked = false;
                    let named = self.stages.iter().zip(accounts);
                    return Ok(Some(named.map(|(&(peer, layers), it)| StageAccount::new(peer, layers, it)).collect()));
                }
                // A step that nobody waits for any more may still be under way.
                SessionEvent::Answer(answer) => self.answers.push_back(answer),
                _ => {}
            }
        }
    }

    fn places(&self) -> Vec<Place> {
        self.session.places()
    }

    fn ask_accounts(&mut self) -> Result<(), SessionError> {
        if !self.asked && self.session.keeps_accounts() {
            self.session.ask_accounts()?;
            self.asked = true;
        }
        Ok(())
    }

    async fn told_accounts(&mut self) -> Result<Option<Vec<Account>>, SessionError> {
        // They may have come since the session was looked at last.
        while self.asked {
            let event = tokio::select! {
                biased;
                event = self.event() => event?,
                () = std::future::ready(()) => break,
            };
            match event {
                SessionEvent::Accounts(accounts) => self.hear(accounts),
                SessionEvent::Answer(answer) => self.answers.push_back(answer),
                _ => {}
            }
        }
        Ok(self.told.take())
    }

    fn take_repairs(&mut self) -> Vec<RepairTimes> {
        self.repair.take()
    }

    fn bytes_written(&self) -> u64 {
        let (written, read) = self.session.bytes();
        written + read + self.between
    }

    async fn let_go(&mut self) {
        self.session.close();
        self.repair.end_search();
        self.repair.node = None;
        self.standbys.end();
        end(self.node.take().as_ref(), std::mem::take(&mut self.engines)).await;
    }

    async fn close(mut self) {
        self.let_go().await;
    }
}
