//! From arguments to a model that is ready to answer.

use std::time::Duration;

use potluck_chain::{Deadlines, Hop, OwnStage, RemoteStage, SessionConfig};
use potluck_client::{ChatTemplate, Conversation, LocalChain, Session, SpecialTokens};
use potluck_core::{CacheId, LayerRange, SecretKey, SessionId, SessionKey, StageSpec};
use potluck_engine::EngineSettings;
use potluck_model::{facts, slice};
use potluck_net::{Bind, Identity, NetDeadlines, Node, NodeConfig, OwnPort};
use potluck_store::Entry;

use super::{
    AnyChain, Talk,
    route::{OwnEngine, RouteChain},
};
use crate::{
    args::{EngineArgs, RouteArgs},
    embedded::Embedded,
    engines::{RunningEngine, start_engine, start_vocabulary},
    failure::{Failure, OrFail},
    home::{self, Home, Membership, Role, new_key},
    models::{Models, all_layers, load_stage, load_vocabulary, load_whole},
    screen::Screen,
};

/// The cache that a session of this command uses in its own engines: they have one.
const OWN_CACHE: CacheId = CacheId(0);

impl Talk {
    /// Finds the model, starts what is to run it, and opens a session.
    pub(crate) async fn start(
        home: &Home,
        screen: Screen,
        route: &RouteArgs,
        engine: &EngineArgs,
    ) -> Result<Self, Failure> {
        let entry = Models::open(home)?.find_or_only(route.model.as_deref(), screen)?;
        let settings = engine.settings(1);
        settings.check()?;
        let bar = screen.wait(format!("loading {}", entry.name));
        let vocabulary = start_vocabulary(load_vocabulary(&entry, &settings)?);
        let started = async {
            match route.peers {
                Some(peers) => embedded_chain(home, &entry, &settings, engine, peers.into(), route.own_ends).await,
                None => local_chain(&entry, &settings).await,
            }
        };
        let (vocabulary, (chain, embedded)) = tokio::try_join!(vocabulary, started)?;
        drop(bar);
        let template = ChatTemplate::of(&entry.manifest).or_fail("bad_template", "send the prompt as it is: --raw")?;
        Ok(Self {
            conversation: Conversation::new(template, SpecialTokens::of(&entry.manifest)),
            model: entry.name,
            session: Session::new(chain, vocabulary),
            embedded,
            verdict: String::new(),
        })
    }
}

async fn local_chain(entry: &Entry, settings: &EngineSettings) -> Result<(AnyChain, Option<Embedded>), Failure> {
    let engine = start_engine(load_whole(entry, settings)?).await?;
    let chain = LocalChain::open(engine, settings.context, deadlines()).await?;
    Ok((AnyChain::Local(chain, all_layers(&entry.manifest)?), None))
}

/// Peers of the command's own, and a session over them.
async fn embedded_chain(
    home: &Home,
    entry: &Entry,
    settings: &EngineSettings,
    args: &EngineArgs,
    peers: usize,
    own_ends: bool,
) -> Result<(AnyChain, Option<Embedded>), Failure> {
    let stages = split(entry, peers, own_ends)?;
    let (own, remote): (Vec<_>, Vec<_>) =
        stages.iter().enumerate().partition(|(hop, _)| is_own(*hop, stages.len(), own_ends));
    let remote: Vec<StageSpec> = remote.into_iter().map(|(_, spec)| *spec).collect();
    let own_engines = async {
        let mut engines = Vec::new();
        for (hop, &spec) in own {
            engines.push(own_engine(entry, settings, hop, spec).await?);
        }
        Ok(engines)
    };
    let (embedded, own_engines) = tokio::try_join!(Embedded::start(home, settings, &remote), own_engines)?;
    match embedded_session(entry, settings, args, &stages, own_ends, &embedded, own_engines).await {
        Ok(chain) => Ok((AnyChain::Route(Box::new(chain)), Some(embedded))),
        Err(failure) => {
            embedded.stop().await;
            Err(failure)
        }
    }
}

async fn embedded_session(
    entry: &Entry,
    settings: &EngineSettings,
    args: &EngineArgs,
    stages: &[StageSpec],
    own_ends: bool,
    embedded: &Embedded,
    own_engines: Vec<OwnEngine>,
) -> Result<RouteChain, Failure> {
    let mut hops = Vec::with_capacity(stages.len());
    let mut peers = embedded.peers.iter();
    for (hop, &spec) in stages.iter().enumerate() {
        hops.push(match is_own(hop, stages.len(), own_ends) {
            true => Hop::Own(OwnStage { spec, cache: OWN_CACHE }),
            false => {
                let peer = peers.next().ok_or_else(|| Failure::new("internal", "a peer is missing", "report this"))?;
                Hop::Remote(RemoteStage { spec, address: peer.address()?, grant: peer.grant.clone() })
            }
        });
    }
    let key = new_key()?;
    let grant = embedded.admit(key.peer_id())?;
    let identity = Identity { key: key.clone(), grant, gate: embedded.gate() };
    let config = NodeConfig { identity, bind: Bind::Loopback, relay: None, deadlines: NetDeadlines::default() };
    let node = Node::bind(config).await?;
    let config = session_config(entry, settings, args, &key, hops)?;
    Ok(RouteChain::open(node, config, own_engines).await?)
}

/// This machine as a client of its swarm.
pub(crate) async fn client_node(home: &Home, membership: &Membership) -> Result<Node, Failure> {
    let key = home::Identity::open(home, Role::Client)?.key;
    let grant = membership.grant(key.peer_id())?;
    let identity = Identity { key, grant, gate: membership.gate()? };
    Ok(Node::bind(NodeConfig { identity, bind: Bind::Any, relay: None, deadlines: NetDeadlines::default() }).await?)
}

async fn own_engine(
    entry: &Entry,
    settings: &EngineSettings,
    hop: usize,
    spec: StageSpec,
) -> Result<OwnEngine, Failure> {
    let (engine, pipe) = RunningEngine::start(load_stage(entry, spec, settings)?).await?;
    Ok(OwnEngine { port: OwnPort { hop, commands: pipe.commands, replies: pipe.replies }, engine })
}

fn is_own(hop: usize, stages: usize, own_ends: bool) -> bool {
    own_ends && (hop == 0 || hop + 1 == stages)
}

/// Stages over all layers, for this many peers; with own ends, one layer at each end for the command itself.
fn split(entry: &Entry, peers: usize, own_ends: bool) -> Result<Vec<StageSpec>, Failure> {
    let all = all_layers(&entry.manifest)?;
    let cut = |error| Failure::usage(error, format!("the model has {} layers: ask for fewer peers", all.count()));
    let ranges = match own_ends {
        false => all.split(peers).map_err(cut)?,
        true => {
            let inner = LayerRange::new(1, all.end().saturating_sub(1)).map_err(cut)?;
            let ends = [LayerRange::new(0, 1).map_err(cut)?, LayerRange::new(inner.end(), all.end()).map_err(cut)?];
            let inner = inner.split(peers).map_err(cut)?;
            [&ends[..1], &inner, &ends[1..]].concat()
        }
    };
    for &range in &ranges {
        slice::check_range(&entry.manifest, range)?;
    }
    let spec = |layers: LayerRange| StageSpec {
        model: entry.id,
        layers,
        head: layers.start() == 0,
        tail: layers.end() == all.end(),
    };
    Ok(ranges.into_iter().map(spec).collect())
}

fn session_config(
    entry: &Entry,
    settings: &EngineSettings,
    args: &EngineArgs,
    key: &SecretKey,
    route: Vec<Hop>,
) -> Result<SessionConfig, Failure> {
    Ok(SessionConfig {
        key: SessionKey { client: key.peer_id(), id: session_id()? },
        epoch: 0,
        positions: settings.context,
        width: entry.manifest.width(),
        vocabulary: facts::vocabulary(&entry.manifest),
        codec: args.codec(),
        route,
        prefix: None,
        deadlines: deadlines(),
    })
}

fn session_id() -> Result<SessionId, Failure> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| Failure::new("io", format!("no randomness: {error}"), ""))?;
    Ok(SessionId::from_bytes(id))
}

fn deadlines() -> Deadlines {
    Deadlines { idle: Duration::from_secs(3_600), ..Deadlines::default() }
}
