//! A session over a route of peers, as the generation loop wants it.

use std::{collections::VecDeque, time::Instant};

use potluck_chain::{Answer, Hop, SessionConfig, SessionError, Submission, chunks::Place, plan::Sees};
use potluck_client::{Chain, ChainShape, StageAccount};
use potluck_core::{Account, Hidden, LayerRange, PeerId, SessionId};
use potluck_net::{Node, OwnPort, PathKind, Session, SessionEvent};
use potluck_wire::{Codec, HEADER_BYTES, answer_rows_max, padded_positions};

use tokio::{task::JoinHandle, time::sleep_until};

use super::{
    RouteStage,
    start::REOPEN_EVERY,
    substitutes::{Places, Substitutes, Vacancy},
};
use crate::{engines::RunningEngine, failure::Failure};

/// A session that is ready on every peer of its route.
#[derive(Debug)]
pub(crate) struct RouteChain {
    /// Closed with the session; none where other sessions use it, too.
    node: Option<Node>,
    repair: Repair,
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
    /// Since when, and when others are looked for next.
    since: Instant,
    again: Option<Instant>,
    /// Others were asked to take the places, and have not all said that they are ready.
    trying: bool,
    /// A search that is under way.
    search: Option<JoinHandle<Result<Places, Failure>>>,
    /// How often others took the places of lost peers, so far.
    count: usize,
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
    /// Opens a session on `node` and waits until every peer has confirmed it. `kept`: the node stays when the session ends.
    ///
    /// # Errors
    /// See [`SessionError`]; there is a deadline.
    pub(crate) async fn open(
        node: Node,
        kept: bool,
        config: SessionConfig,
        own: Vec<OwnEngine>,
        substitutes: Substitutes,
    ) -> Result<Self, SessionError> {
        let (ports, engines): (_, Vec<RunningEngine>) = own.into_iter().map(|own| (own.port, own.engine)).unzip();
        let opened = Self::ready(&node, config, ports, substitutes).await;
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
        Ok(Self { number, ..Self::ready(node, config, own, substitutes).await? })
    }

    /// Waits until every peer has confirmed; dropped before, the session ends on those that have.
    async fn ready(
        node: &Node,
        config: SessionConfig,
        own: Vec<OwnPort>,
        substitutes: Substitutes,
    ) -> Result<Self, SessionError> {
        let shape = ChainShape { vocabulary: config.vocabulary, positions: config.positions };
        let stages = config.route.iter().map(stage_of).collect();
        let (pad, width, id) = (config.pad, config.width as usize, config.key.id);
        let mut session = node.open(config, own).await?;
        let codec = session.codec();
        while !matches!(session.next().await?, SessionEvent::Ready) {}
        let (answers, engines) = (VecDeque::new(), Vec::new());
        let (between, asked, told) = (0, false, None);
        let repair = Repair::new(node.clone(), substitutes);
        let (node, number) = (None, 0);
        Ok(Self {
            node,
            repair,
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
        let stages = self.stages.iter().zip(self.session.paths());
        let describe = |(&(peer, layers), path): (&(Option<PeerId>, LayerRange), Option<potluck_net::PathInfo>)| {
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
            }
        };
        stages.map(describe).collect()
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

    /// What the session tells next, but for the peers that it loses: others are looked for meanwhile. Dropping the future loses nothing.
    async fn event(&mut self) -> Result<SessionEvent, SessionError> {
        loop {
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
            };
            match event {
                SessionEvent::Lost { hop, error } => {
                    tracing::info!(%error, "another peer is looked for in its place");
                    self.repair.lose(hop, error);
                    // Whoever could not take the place may be able to in a moment.
                    match std::mem::take(&mut self.repair.trying) {
                        true => self.repair.look_again(),
                        false => self.repair.look(self.session.route(), self.shape.positions),
                    }
                }
                SessionEvent::Repaired => {
                    self.stages = self.session.route().iter().map(stage_of).collect();
                    self.repair.count += 1;
                    self.repair.trying = false;
                    tracing::info!(seconds = self.repair.since.elapsed().as_secs_f32(), "the session goes on");
                }
                event => return Ok(event),
            }
        }
    }

    /// Others were found, or it is time to look for them again.
    async fn take_places(&mut self, found: Found) {
        let Found::Others(others) = found else {
            return self.repair.look(self.session.route(), self.shape.positions);
        };
        // Where this is dropped on the way, they are looked for again.
        self.repair.look_again();
        match self.session.replace(others).await {
            Ok(()) => {
                (self.repair.lost, self.repair.again) = (Vec::new(), None);
                self.repair.trying = true;
            }
            Err((_, error)) => tracing::info!(%error, "nobody took a lost peer's place yet"),
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
    /// It is time for another one.
    Nothing,
    /// There is nobody.
    Nobody,
}

impl Repair {
    fn new(node: Node, substitutes: Substitutes) -> Self {
        let (lost, since) = (Vec::new(), Instant::now());
        let node = Some(node);
        Self { node, substitutes, lost, since, again: None, trying: false, search: None, count: 0 }
    }

    fn lose(&mut self, hop: usize, error: SessionError) {
        if self.lost.is_empty() && !self.trying {
            self.since = Instant::now();
        }
        if !self.lost.iter().any(|(lost, _)| *lost == hop) {
            self.lost.push((hop, error));
        }
    }

    /// Begins to look for peers in the places of all that are lost.
    fn look(&mut self, route: &[Hop], positions: u32) {
        self.end_search();
        self.again = None;
        let vacancies = Vacancy::of(route, &self.lost, positions);
        let find = |node| tokio::spawn(self.substitutes.clone().find(node, vacancies));
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
        self.lost.first().map_or(SessionError::Closed, |(_, error)| error.clone())
    }

    /// What a search has found. Never, where nobody is lost.
    async fn found(&mut self) -> Found {
        if let Some(search) = &mut self.search {
            let found = search.await;
            self.search = None;
            match found {
                Ok(Ok(found)) => return Found::Others(found),
                Ok(Err(failure)) => {
                    tracing::info!(code = %failure.code, "{}", failure.message);
                    return Found::Nobody;
                }
                Err(_) => self.look_again(),
            }
        }
        match self.again {
            Some(at) => sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
        Found::Nothing
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

    fn take_repairs(&mut self) -> usize {
        std::mem::take(&mut self.repair.count)
    }

    fn bytes_written(&self) -> u64 {
        let (written, read) = self.session.bytes();
        written + read + self.between
    }

    async fn let_go(&mut self) {
        self.session.close();
        self.repair.end_search();
        self.repair.node = None;
        end(self.node.take().as_ref(), std::mem::take(&mut self.engines)).await;
    }

    async fn close(mut self) {
        self.let_go().await;
    }
}
