//! What stands behind a gateway: the model's tokenizer, and sessions over peers, as many as there are slots.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use potluck_chain::{Hop, SessionConfig};
use potluck_client::{ChatTemplate, Session, SpecialTokens};
use potluck_engine::{EngineSettings, VocabularyClient};
use potluck_gateway::{Access, Gateway, Model, Opener, Problem, Whose, serve};
use potluck_model::Facts;
use potluck_net::Node;
use potluck_store::Entry;
use potluck_wire::Codec;
use tokio::{net::TcpListener, sync::oneshot};

use super::{
    Talk, own_peers,
    route::RouteChain,
    start::{Wanted, session_config, session_id},
    swarm::{peers_only, route_through},
};
use crate::{
    args::{DoorArgs, EngineArgs, RouteArgs},
    commands::swarm::utc_now,
    embedded::{Embedded, EmbeddedPeer},
    engines::start_vocabulary,
    failure::{Failure, OrFail},
    home::{Home, Membership},
    models::{find_model, load_vocabulary},
    screen::Screen,
};

/// Seconds after which a session that could not be opened may be tried again: an engine is back by then.
const RETRY_SECONDS: u32 = 2;

/// How old a plan may be when a session is opened.
const PLAN_AGAIN: Duration = Duration::from_secs(30);

/// Everything that a gateway is put in front of.
#[derive(Debug)]
pub(crate) struct Front {
    /// The model, for the gateway.
    pub(crate) model: Model,
    /// What opens its sessions.
    sessions: Sessions,
    exact: bool,
    node: Node,
    /// The peers that were started for it.
    embedded: Option<Embedded>,
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
    /// When it was planned last.
    planned: Rc<Cell<Instant>>,
}

/// What a plan through the swarm is made for.
#[derive(Debug)]
struct Swarm {
    home: Home,
    entry: Entry,
    settings: EngineSettings,
    codec: Codec,
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
        let entry = find_model(home, screen, route.model.as_deref()).await?;
        let (settings, codec) = (engine.settings(slots), engine.codec());
        settings.check()?;
        let wanted = Wanted { home, entry: &entry, settings: &settings, codec, memory: route.memory };
        let bar = screen.wait(format!("loading {}", entry.name));
        let vocabulary = start_vocabulary(load_vocabulary(&entry, &settings)?);
        let (vocabulary, (node, hops, embedded)) = tokio::try_join!(vocabulary, route_of(&wanted, route))?;
        drop(bar);
        let config = Rc::new(RefCell::new(session_config(&wanted, node.id(), hops)?));
        let swarm = || Rc::new(Swarm { home: home.clone(), entry: entry.clone(), settings: settings.clone(), codec });
        let swarm = embedded.is_none().then(swarm);
        let planned = Rc::new(Cell::new(Instant::now()));
        let sessions = Sessions { node: node.clone(), config, vocabulary: vocabulary.clone(), swarm, planned };
        let model = model(&entry, &settings, vocabulary)?;
        Ok(Self { model, sessions, exact: settings.exact, node, embedded })
    }

    /// In front of the peers that a command has started for a conversation already: they end with it.
    pub(crate) async fn over(talk: &Talk) -> Result<Option<Self>, Failure> {
        let Some(embedded) = talk.embedded.as_ref().filter(|_| !talk.route.own_ends) else { return Ok(None) };
        let Talk { home, entry, settings, codec, .. } = talk;
        let wanted = Wanted { home, entry, settings, codec: *codec, memory: None };
        let node = own_peers::client_node(embedded).await?;
        let config = Rc::new(RefCell::new(session_config(&wanted, node.id(), hops(embedded)?)?));
        let vocabulary = talk.session.vocabulary().clone();
        let planned = Rc::new(Cell::new(Instant::now()));
        let sessions = Sessions { node: node.clone(), config, vocabulary: vocabulary.clone(), swarm: None, planned };
        let model = model(entry, settings, vocabulary)?;
        Ok(Some(Self { model, sessions, exact: settings.exact, node, embedded: None }))
    }

    /// Serves on `listener` until `stop`, and then ends what has begun. To be awaited in a local set.
    pub(crate) fn serve(
        &self,
        listener: TcpListener,
        access: Access,
        door: &DoorArgs,
        chunk: u16,
        stop: oneshot::Receiver<()>,
    ) -> impl Future<Output = Result<(), Failure>> + use<> {
        let gateway = Gateway {
            model: Model { aliases: door.alias.clone(), ..self.model.clone() },
            access,
            opener: self.sessions.clone(),
            slots: door.slots.into(),
            chunk,
            exact: self.exact,
        };
        async move {
            // A sender that is dropped has nothing left to serve: that is a stop, too.
            let stopped = async move { stop.await.unwrap_or_default() };
            serve(listener, gateway, stopped).await.map_err(|error| Failure::io("serving", &error))
        }
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
        self.node.close().await;
        if let Some(embedded) = self.embedded {
            embedded.stop().await;
        }
    }
}

impl Opener for Sessions {
    type Chain = RouteChain;

    /// Over the route that was planned last; where that fails, over one that is planned by who is there now.
    async fn open(&self) -> Result<Session<RouteChain>, Problem> {
        // Peers come and go: a session that is opened later may find a better way than the first one did.
        if self.planned.get().elapsed() >= PLAN_AGAIN
            && let Some(swarm) = &self.swarm
            && let Err(failure) = self.plan(swarm).await
        {
            tracing::info!(code = %failure.code, "the last plan stands");
        }
        let chain = match (self.try_open().await, &self.swarm) {
            (Err(failure), Some(swarm)) => {
                tracing::info!(code = %failure.code, "the route is planned again");
                self.plan(swarm).await.map_err(problem)?;
                self.try_open().await
            }
            (opened, _) => opened,
        };
        Ok(Session::new(chain.map_err(problem)?, self.vocabulary.clone()))
    }
}

impl Sessions {
    async fn plan(&self, swarm: &Swarm) -> Result<(), Failure> {
        self.planned.set(Instant::now());
        let route = swarm.route(&self.node).await?;
        self.config.borrow_mut().route = route;
        Ok(())
    }

    async fn try_open(&self) -> Result<RouteChain, Failure> {
        let mut config = self.config.borrow().clone();
        config.key.id = session_id()?;
        Ok(RouteChain::open_on(&self.node, config).await?)
    }
}

impl Swarm {
    async fn route(&self, node: &Node) -> Result<Vec<Hop>, Failure> {
        let Self { home, entry, settings, codec } = self;
        route_through(&Wanted { home, entry, settings, codec: *codec, memory: None }, node).await
    }
}

/// What those who ask are told: nobody serves the model now.
fn problem(failure: Failure) -> Problem {
    let message = format!("{}; {}", failure.message, failure.hint);
    Problem::new(Whose::Lenders(RETRY_SECONDS), failure.code, message)
}

/// A client, the route that its sessions take, and the peers that were started for it.
async fn route_of(wanted: &Wanted<'_>, route: &RouteArgs) -> Result<(Node, Vec<Hop>, Option<Embedded>), Failure> {
    if let (None, false, Some(_)) = (route.peers, route.local, Membership::find(wanted.home)?)
        && let Some((node, hops)) = peers_only(wanted, route.prefer).await?
    {
        return Ok((node, hops, None));
    }
    // One peer holds the whole model where nothing else was asked for: its engine batches what the slots send.
    let stages = own_peers::split(wanted.entry, route.peers.unwrap_or(1).into(), false)?;
    let embedded = Embedded::start(wanted.home, wanted.settings, &stages).await?;
    let opened = async {
        let node = own_peers::client_node(&embedded).await?;
        Ok((node, hops(&embedded)?))
    };
    match opened.await {
        Ok((node, hops)) => Ok((node, hops, Some(embedded))),
        Err(failure) => {
            embedded.stop().await;
            Err(failure)
        }
    }
}

fn hops(embedded: &Embedded) -> Result<Vec<Hop>, Failure> {
    embedded.peers.iter().map(EmbeddedPeer::hop).collect()
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
