//! What stands behind a gateway: the model's tokenizer, and sessions over peers, as many as there are slots.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use potluck_chain::{Hop, OwnStage, SessionConfig, SharedPrefix, plan::Wish};
use potluck_client::{ChatTemplate, Drafts, Session, SpecialTokens};
use potluck_core::{LayerRange, PeerId, StageSpec};
use potluck_engine::{EngineSettings, VocabularyClient, memory};
use potluck_gateway::{
    Access, Gateway, Lent, Model, Opener, Own as GatewayOwn, Paths, PeerPath, Problem, Whose, serve,
};
use potluck_model::Facts;
use potluck_net::{Node, OwnPort, PathInfo};
use potluck_store::{Entry, InUse};
use potluck_wire::Prefix;
use tokio::{net::TcpListener, sync::oneshot, time::sleep};

use super::{
    Talk,
    draft::{Drafter, drafting},
    lent::Lenders,
    opening::{LOADED_EVERY, LOADED_WITHIN, LOADING, PassedOver, REOPEN_EVERY, RESUME_WITHIN, Unopened},
    own_peers,
    route::{RouteChain, stage_of},
    shared::SharedEngine,
    start::{OWN_CACHE, Wanted, session_config, session_id},
    substitutes::Substitutes,
    swarm::{client_node, has_both_ends, shared_route},
};
use crate::{
    args::{DoorArgs, EngineArgs, Prefer, Privacy, RouteArgs},
    commands::swarm::utc_now,
    embedded::Embedded,
    engines::start_vocabulary,
    failure::{Failure, OrFail},
    home::{Home, Membership, trusted},
    models::{CodecChoice, Keeper, find_model, load_stage, load_vocabulary},
    placement::free_memory,
    screen::Screen,
};

/// Seconds after which a session that could not be opened may be tried again: an engine is back by then.
const RETRY_SECONDS: u32 = 2;

/// How old a plan may be when a session is opened.
const PLAN_AGAIN: Duration = Duration::from_secs(30);

/// Everything that a gateway is put in front of.
#[derive(Debug)]
pub(crate) struct Front {
    /// A model that peers run; none where there are only models that members lend whole.
    own: Option<Own>,
    /// Models that members lend whole; none where the swarm was not asked.
    lenders: Option<Lenders>,
    /// What fetches and removes models.
    keeper: Keeper,
    /// This machine in its swarm; none where the swarm was not asked.
    swarm: Option<Node>,
    /// What is to be closed at the end.
    nodes: Vec<Node>,
    /// The peers that were started for it.
    embedded: Option<Embedded>,
}

/// A model that peers run.
#[derive(Debug)]
struct Own {
    /// What the gateway knows of it.
    model: Model,
    /// What opens its sessions.
    sessions: Sessions,
    exact: bool,
    /// Nothing of it is removed to make room while it is served.
    _in_use: InUse,
}

/// Opens sessions over a route of peers.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    node: Node,
    /// With the route as it was planned last.
    config: Rc<RefCell<SessionConfig>>,
    vocabulary: VocabularyClient,
    /// How to plan again; none where the peers are the command's own.
    swarm: Option<Rc<Swarm>>,
    /// The engines of the route's stages on this machine.
    engines: Rc<RefCell<Vec<(StageSpec, SharedEngine)>>>,
    /// What is drafted, and with which model.
    drafts: Drafts,
    drafter: Option<Rc<Drafter>>,
    /// Sessions opened so far.
    opened: Rc<Cell<u64>>,
    /// When it was planned last.
    planned: Rc<Cell<Instant>>,
    /// One plans at a time: two would start the same engine twice.
    planning: Rc<tokio::sync::Mutex<()>>,
}

/// What a plan through the swarm is made for.
#[derive(Debug)]
struct Swarm {
    home: Home,
    entry: InUse,
    settings: EngineSettings,
    codec: CodecChoice,
    /// With the first plan's own ends: a later one does not give them up.
    privacy: Privacy,
    prefer: Prefer,
    memory: u64,
    /// How many peers are to stand by for each session.
    standby: u16,
}

impl Front {
    /// Starts what is to run the model for `slots` sessions at once: `--peers` peers of its own, one where this machine is
    /// enough, or the peers of the swarm.
    pub(crate) async fn start(
        home: &Home,
        screen: Screen,
        route: &RouteArgs,
        engine: &EngineArgs,
        slots: u16,
    ) -> Result<Self, Failure> {
        let home = &route.disk.limit(home);
        let name = route.model.as_deref();
        let privacy = route.privacy.read();
        let found = find_model(home, screen, name).await;
        let through_swarm = route.peers.is_none() && !route.local;
        let swarm = match Membership::find(home)?.filter(|_| through_swarm) {
            Some(membership) => Some((client_node(home, &membership).await?, membership)),
            None => None,
        };
        let started = async {
            let lenders = match &swarm {
                // A lender is sent whole conversations.
                Some((node, membership)) if privacy.hide_layers == 0 => {
                    Some(Lenders::watch(home, node.clone(), membership, &privacy).await)
                }
                _ => None,
            };
            let lent = lenders.as_ref().map_or_else(Vec::new, Lenders::names);
            let entry = match found {
                // What is not here may be lent whole.
                Err(failure) if failure.code == "no_model" && is_lent(&lent, name) => {
                    let keeper = Keeper::new(home, screen, None);
                    return Ok(Self { own: None, keeper, lenders, swarm: None, nodes: Vec::new(), embedded: None });
                }
                found => found?,
            };
            let front = Self::load(home, screen, entry, (route, swarm.as_ref()), engine, slots).await?;
            Ok(Self { lenders, ..front })
        };
        let started: Result<Self, Failure> = started.await;
        match (started, swarm) {
            (Ok(mut front), swarm) => {
                front.nodes.extend(swarm.as_ref().map(|(node, _)| node.clone()));
                front.swarm = swarm.map(|(node, _)| node);
                Ok(front)
            }
            (Err(failure), swarm) => {
                if let Some((node, _)) = swarm {
                    node.close().await;
                }
                Err(failure)
            }
        }
    }

    /// The model, over the swarm's peers or own ones.
    async fn load(
        home: &Home,
        screen: Screen,
        entry: InUse,
        (route, swarm): (&RouteArgs, Option<&(Node, Membership)>),
        engine: &EngineArgs,
        slots: u16,
    ) -> Result<Self, Failure> {
        let (settings, codec) = (engine.settings(slots), CodecChoice::of(home, screen, &entry, engine));
        settings.check()?;
        memory::keep_freed(settings.wipe_within.is_none());
        let mut privacy = route.privacy.read();
        // Its own engines will have taken of what is free when it plans again.
        let memory = route.memory.unwrap_or_else(free_memory);
        let standby = route.standby;
        let wanted = Wanted {
            home,
            entry: &entry,
            settings: &settings,
            codec,
            memory: Some(memory),
            privacy: &privacy,
            standby,
            screen: None,
        };
        let bar = screen.wait(format!("loading {}", entry.name));
        let vocabulary = start_vocabulary(load_vocabulary(&entry, &settings)?);
        let drafter = Drafter::start(home, screen, route, &entry.manifest, &settings);
        let (vocabulary, (node, hops, embedded), drafter) =
            tokio::try_join!(vocabulary, route_of(&wanted, route, swarm), drafter)?;
        let engines = own_engines(&wanted, &hops, &[]).await?;
        drop(bar);
        let ends_here = has_both_ends(&hops);
        let config = session_config(&wanted, node.id(), hops)?;
        if ends_here {
            privacy.hide_layers = privacy.hide_layers.max(1);
        }
        let replan = || {
            let (home, entry, settings) = (home.clone(), entry.clone(), settings.clone());
            Rc::new(Swarm { home, entry, settings, codec, privacy, prefer: route.prefer, memory, standby })
        };
        let replan = embedded.is_none().then(replan);
        let drafts = (route.drafts(), drafter);
        let sessions = Sessions::new(node.clone(), config, vocabulary.clone(), replan, engines, drafts);
        let model = model(&entry, &settings, vocabulary)?;
        let keeper = Keeper::new(home, screen, Some(entry.id));
        let own = Some(Own { model, sessions, exact: settings.exact, _in_use: entry });
        // The swarm's node is closed by whoever has opened it.
        let nodes = embedded.iter().map(|_| node.clone()).collect();
        Ok(Self { own, keeper, lenders: None, swarm: None, nodes, embedded })
    }

    /// In front of the peers that a command has started for a conversation already: they end with it.
    pub(crate) async fn over(talk: &Talk, screen: Screen) -> Result<Option<Self>, Failure> {
        let Some(embedded) = talk.embedded.as_ref() else { return Ok(None) };
        let Talk { home, entry, settings, codec, privacy, .. } = talk;
        let wanted = Wanted { home, entry, settings, codec: *codec, memory: None, privacy, standby: 0, screen: None };
        let node = own_peers::client_node(embedded).await?;
        let stages = own_peers::split(entry, embedded.peers.len(), talk.route.ends())?;
        let route = hops(embedded, &stages)?;
        let engines = own_engines(&wanted, &route, &[]).await?;
        let config = session_config(&wanted, node.id(), route)?;
        let vocabulary = talk.session.vocabulary().clone();
        let drafts = (talk.route.drafts(), talk.drafter.clone());
        let sessions = Sessions::new(node.clone(), config, vocabulary.clone(), None, engines, drafts);
        let model = model(entry, settings, vocabulary)?;
        let keeper = Keeper::new(home, screen, Some(entry.id));
        let own = Some(Own { model, sessions, exact: settings.exact, _in_use: entry.clone() });
        Ok(Some(Self { own, keeper, lenders: None, swarm: None, nodes: vec![node], embedded: None }))
    }

    /// Serves on `listener` until `stop`, and then ends what has begun. To be awaited in a local set.
    pub(crate) fn serve(
        &self,
        listener: TcpListener,
        access: Access,
        door: &DoorArgs,
        chunk: Option<u16>,
        stop: oneshot::Receiver<()>,
    ) -> impl Future<Output = Result<(), Failure>> + use<> {
        let own = self.own.as_ref().map(|own| GatewayOwn {
            model: Model { aliases: door.alias.clone(), ..own.model.clone() },
            opener: own.sessions.clone(),
            slots: door.slots.into(),
            chunk,
            exact: own.exact,
        });
        let lent = self.lenders.clone().map(|lenders| Box::new(lenders) as Box<dyn Lent>);
        let keeper = (!door.no_pull).then(|| self.keeper.clone());
        let node = self.own.as_ref().map(|own| &own.sessions.node).or(self.swarm.as_ref());
        let paths = node.map(|node| Box::new(NodePaths(node.clone())) as Box<dyn Paths>);
        let gateway = Gateway { own, access, keeper, lent, overflow: door.overflow.into(), paths };
        async move {
            // A sender that is dropped has nothing left to serve: that is a stop, too.
            let stopped = async move { stop.await.unwrap_or_default() };
            serve(listener, gateway, stopped).await.map_err(|error| Failure::io("serving", &error))
        }
    }

    /// This machine in its swarm.
    pub(crate) fn swarm(&self) -> Option<Node> {
        self.swarm.clone()
    }

    /// What the model that peers run is called; none where there is none.
    pub(crate) fn model(&self) -> Option<&str> {
        self.own.as_ref().map(|own| own.model.name.as_str())
    }

    /// What members lend whole now, beside that model; none where the swarm was not asked.
    pub(crate) fn lent(&self) -> Option<Vec<String>> {
        let mut names = self.lenders.as_ref()?.names();
        names.retain(|name| Some(name.as_str()) != self.model());
        Some(names)
    }

    /// The peers that were started for it: ids, layers and processes.
    pub(crate) fn peers(&self) -> Vec<serde_json::Value> {
        self.embedded.iter().flat_map(Embedded::list).collect()
    }

    /// Waits until a peer that was started for it ends, which it should not.
    pub(crate) async fn lost(&mut self) -> Failure {
        match &mut self.embedded {
            Some(embedded) => embedded.first_loss().await,
            None => std::future::pending().await,
        }
    }

    /// Ends whatever was started. Its sessions are closed already.
    pub(crate) async fn close(self) {
        if let Some(own) = self.own {
            let engines = own.sessions.engines.take();
            let drafter = own.sessions.drafter.clone();
            drop(own);
            Drafter::stop(drafter).await;
            for (_, engine) in engines {
                engine.stop().await;
            }
        }
        for node in self.nodes {
            node.close().await;
        }
        if let Some(embedded) = self.embedded {
            embedded.stop().await;
        }
    }
}

/// The connections of a node.
#[derive(Debug)]
struct NodePaths(Node);

impl Paths for NodePaths {
    fn paths(&self) -> Vec<PeerPath> {
        let of = |PathInfo { kind, rtt, loss }| PeerPath { kind: kind.name(), rtt, loss };
        self.0.paths().into_iter().map(of).collect()
    }
}

impl Opener for Sessions {
    type Chain = RouteChain;

    /// Over the route that was planned last; where that fails, over one that is planned by who is there now.
    async fn open(&self) -> Result<Session<RouteChain>, Problem> {
        // Peers come and go: a session that is opened later may find a better way than the first one did.
        if self.planned.get().elapsed() >= PLAN_AGAIN
            && let Some(swarm) = &self.swarm
            && let Err(failure) = self.plan(swarm, &PassedOver::default()).await
        {
            tracing::info!(code = %failure.code, "the last plan stands");
        }
        let (begun, mut passed, mut is_first) = (Instant::now(), PassedOver::default(), true);
        let chain = loop {
            let unopened = match self.try_open().await {
                Ok(chain) => break chain,
                Err(unopened) => unopened,
            };
            // Whoever is gone, full or stuck is passed over, one after the other.
            let is_passed = matches!(&unopened, Unopened::Session(error) if passed.note(error));
            let failure = Failure::from(unopened);
            match &self.swarm {
                Some(swarm) if is_first || (is_passed && begun.elapsed() < RESUME_WITHIN) => {
                    tracing::info!(code = %failure.code, "the route is planned again");
                    if !is_first {
                        sleep(REOPEN_EVERY).await;
                    }
                    self.plan_when_loaded(swarm, &passed).await.map_err(problem)?;
                }
                _ => return Err(problem(failure)),
            }
            is_first = false;
        };
        Ok(self.session(chain).await)
    }

    async fn open_beside(&self, of: &Session<RouteChain>, positions: usize) -> Option<Session<RouteChain>> {
        match self.try_open_beside(of.chain(), positions).await {
            Ok(chain) => Some(self.session(chain?).await.beginning_as(of, positions)),
            Err(failure) => {
                tracing::info!(code = %failure.code, "a prefix is evaluated again");
                None
            }
        }
    }

    fn is_current(&self, chain: &RouteChain) -> bool {
        self.check_trust(chain.stages()).is_ok()
    }
}

impl Sessions {
    fn new(
        node: Node,
        config: SessionConfig,
        vocabulary: VocabularyClient,
        swarm: Option<Rc<Swarm>>,
        engines: Vec<(StageSpec, SharedEngine)>,
        (drafts, drafter): (Drafts, Option<Rc<Drafter>>),
    ) -> Self {
        let (config, engines) = (Rc::new(RefCell::new(config)), Rc::new(RefCell::new(engines)));
        let planned = Rc::new(Cell::new(Instant::now()));
        let (opened, planning) = Default::default();
        Self { node, config, vocabulary, swarm, engines, drafts, drafter, opened, planned, planning }
    }

    async fn plan(&self, swarm: &Swarm, passed: &PassedOver) -> Result<(), Failure> {
        let _alone = self.planning.lock().await;
        self.planned.set(Instant::now());
        // One that has ended serves nobody again: another takes its place.
        self.engines.borrow_mut().retain(|(_, engine)| !engine.is_over());
        let Swarm { home, entry, settings, codec, privacy, prefer, memory, standby } = swarm;
        let (memory, standby, screen) = (Some(*memory), *standby, None);
        let wanted = Wanted { home, entry, settings, codec: *codec, memory, privacy, standby, screen };
        let membership = Membership::open(home)?;
        // This machine alone was not the better choice when it began: now the last plan stands.
        let among = (self.node.clone(), membership);
        let Some(route) = shared_route(&wanted, *prefer, &among, passed.peers()).await? else {
            return Ok(());
        };
        let running: Vec<StageSpec> = self.engines.borrow().iter().map(|(spec, _)| *spec).collect();
        let started = own_engines(&wanted, &route, &running).await?;
        let mut engines = self.engines.borrow_mut();
        engines.extend(started);
        // One that no route takes any more ends with the last session that uses it.
        engines.retain(|(spec, _)| own_specs(&route).any(|its| its == *spec));
        drop(engines);
        let mut config = self.config.borrow_mut();
        // A route of more hops than were proven at once travels otherwise.
        (config.codec, config.codec_otherwise) = codec.over(route.len());
        config.route = route;
        Ok(())
    }

    /// Where a peer is loading what is missing for a route, that is waited for.
    async fn plan_when_loaded(&self, swarm: &Swarm, passed: &PassedOver) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            match self.plan(swarm, passed).await {
                Err(failure) if failure.code == LOADING && begun.elapsed() < LOADED_WITHIN => {}
                planned => return planned,
            }
            sleep(LOADED_EVERY).await;
        }
    }

    async fn session(&self, chain: RouteChain) -> Session<RouteChain> {
        let mut session = Session::new(chain, self.vocabulary.clone());
        session.set_drafting(drafting(self.drafts, self.drafter.as_deref()).await);
        session
    }

    /// A session's ports to the engines of this machine's stages.
    fn ports(&self, route: &[Hop], session: u64, beside: Option<u64>) -> Vec<OwnPort> {
        let engines = self.engines.borrow();
        let own = route.iter().enumerate().filter_map(|(hop, stage)| match stage {
            Hop::Own(own) => Some((hop, engines.iter().find(|(spec, _)| *spec == own.spec)?)),
            Hop::Remote(_) => None,
        });
        own.map(|(hop, (_, engine))| engine.port(hop, session, beside)).collect()
    }

    /// Refuses stages at peers that the user trusts no more with them. The list is read when it matters; one that cannot be read trusts
    /// nobody.
    fn check_trust(&self, stages: &[(Option<PeerId>, LayerRange)]) -> Result<(), Failure> {
        let Some(swarm) = self.swarm.as_ref().filter(|swarm| swarm.privacy.trusted_layers > 0) else { return Ok(()) };
        let (list, depth) = (trusted(&swarm.home)?, swarm.privacy.trusted_layers);
        let layers = stages.last().map_or(0, |(_, range)| range.end());
        let sensitive = |range: LayerRange| Wish::touches_ends(range, depth, layers);
        let stranger =
            stages.iter().find_map(|&(peer, range)| peer.filter(|peer| sensitive(range) && !list.contains(peer)));
        match stranger {
            Some(peer) => {
                let message = format!("the route leads through {}, which is trusted no more", peer.short());
                Err(Failure::new(
                    "no_route",
                    message,
                    "potluck peers shows who is there; trust others: potluck swarm trust KEY",
                ))
            }
            None => Ok(()),
        }
    }

    async fn try_open(&self) -> Result<RouteChain, Unopened> {
        let config = self.config.borrow().clone();
        self.open_on(config, None).await
    }

    /// A session with positions of another, where the plan leads where those are.
    async fn try_open_beside(&self, of: &RouteChain, positions: usize) -> Result<Option<RouteChain>, Failure> {
        let mut config = self.config.borrow().clone();
        if !config.route.iter().map(stage_of).eq(of.stages().iter().copied()) {
            return Ok(None);
        }
        let own = config.route.iter().enumerate().filter(|(_, hop)| hop.peer().is_none());
        config.prefix = Some(SharedPrefix {
            prefix: Prefix { session: of.session(), positions: positions as u32 },
            own: own.map(|(hop, _)| (hop, OWN_CACHE)).collect(),
        });
        Ok(Some(self.open_on(config, Some(of.number())).await?))
    }

    /// `beside`: the number of the session whose prefix it shares.
    async fn open_on(&self, mut config: SessionConfig, beside: Option<u64>) -> Result<RouteChain, Unopened> {
        self.check_trust(&config.route.iter().map(stage_of).collect::<Vec<_>>())?;
        config.key.id = session_id()?;
        let number = self.opened.get() + 1;
        self.opened.set(number);
        let ports = self.ports(&config.route, number, beside);
        let substitutes = self.swarm.as_ref().map_or(Substitutes::Same, |swarm| Substitutes::Swarm {
            home: Box::new(swarm.home.clone()),
            trusted_layers: swarm.privacy.trusted_layers,
            standby: swarm.standby.into(),
            screen: None,
        });
        Ok(RouteChain::open_on(&self.node, config, ports, number, substitutes).await?)
    }
}

/// The stages of a route that are this machine's.
fn own_specs(route: &[Hop]) -> impl Iterator<Item = StageSpec> {
    route.iter().filter_map(|hop| match hop {
        Hop::Own(own) => Some(own.spec),
        Hop::Remote(_) => None,
    })
}

/// Starts engines for them, but for those that run.
async fn own_engines(
    wanted: &Wanted<'_>,
    route: &[Hop],
    running: &[StageSpec],
) -> Result<Vec<(StageSpec, SharedEngine)>, Failure> {
    let mut engines = Vec::new();
    for spec in own_specs(route).filter(|spec| !running.contains(spec)) {
        engines.push((spec, SharedEngine::start(load_stage(wanted.entry, spec, wanted.settings)?).await?));
    }
    Ok(engines)
}

/// What those who ask are told: nobody serves the model now.
fn problem(failure: Failure) -> Problem {
    let message = format!("{}; {}", failure.message, failure.hint);
    Problem::new(Whose::Lenders(RETRY_SECONDS), failure.code, message)
}

/// True where nobody needs to be asked for a model of that name, or for any, but those who lend one whole.
fn is_lent(lent: &[String], name: Option<&str>) -> bool {
    name.map_or(!lent.is_empty(), |name| lent.iter().any(|model| model == name))
}

/// A client, the route that its sessions take, and the peers that were started for it.
async fn route_of(
    wanted: &Wanted<'_>,
    route: &RouteArgs,
    swarm: Option<&(Node, Membership)>,
) -> Result<(Node, Vec<Hop>, Option<Embedded>), Failure> {
    if let Some(swarm) = swarm
        && let Some(hops) = shared_route(wanted, route.prefer, swarm, &[]).await?
    {
        return Ok((swarm.0.clone(), hops, None));
    }
    // One peer holds the whole model where nothing else was asked for: its engine batches what the slots send.
    let ends = route.peers.map_or(0, |_| route.ends());
    let stages = own_peers::split(wanted.entry, route.peers.unwrap_or(1).into(), ends)?;
    let remote = own_peers::of_peers(&stages, ends);
    let embedded = Embedded::start(wanted.home, wanted.settings, remote).await?;
    let opened = async {
        let node = own_peers::client_node(&embedded).await?;
        Ok((node, hops(&embedded, &stages)?))
    };
    match opened.await {
        Ok((node, hops)) => Ok((node, hops, Some(embedded))),
        Err(failure) => {
            embedded.stop().await;
            Err(failure)
        }
    }
}

/// The stages' places on a route: at the peer that holds it, else on this machine.
fn hops(embedded: &Embedded, stages: &[StageSpec]) -> Result<Vec<Hop>, Failure> {
    let hop = |spec: &StageSpec| match embedded.peers.iter().find(|peer| peer.spec == *spec) {
        Some(peer) => peer.hop(),
        None => Ok(Hop::Own(OwnStage { spec: *spec, cache: OWN_CACHE })),
    };
    stages.iter().map(hop).collect()
}

fn model(entry: &Entry, settings: &EngineSettings, vocabulary: VocabularyClient) -> Result<Model, Failure> {
    let facts = Facts::of(&entry.manifest);
    Ok(Model {
        name: entry.name.clone(),
        aliases: Vec::new(),
        id: entry.id.to_string(),
        context: settings.context,
        bytes: facts.bytes,
        family: facts.architecture,
        quantization: facts.quantisation,
        created: utc_now(),
        template: ChatTemplate::of(&entry.manifest).or_fail("bad_template", "use /v1/completions")?,
        special: SpecialTokens::of(&entry.manifest),
        vocabulary,
    })
}
