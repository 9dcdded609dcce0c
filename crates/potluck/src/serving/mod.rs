//! A peer that serves one stage: an engine child, an endpoint, and the machine between them.

mod door;
mod expose;
mod lenders;
mod measure;
mod mending;
mod offers;
mod orders;
mod owner;
mod place;
mod present;
mod revoked;
mod taking;
mod upstream;
mod whereabouts;

use std::{collections::BTreeMap, time::Duration};

use potluck_core::{PeerId, SignedOffer, StageShape, StageSpec, StageSpeed};
use potluck_engine::EngineSettings;
use potluck_grant::Meter;
use potluck_net::{
    Bind, Identity, Lan, NetDeadlines, Node, NodeConfig, RelayUse, Serving, StagePort, StateJobs, serve, serve_keeping,
};
use potluck_peer::{Peer, PeerConfig};
use potluck_store::Entry;
use potluck_wire::PeerAddress;
use tokio::sync::watch;

use crate::{
    commands::swarm::utc_now,
    engines::{EnginePipe, RunningEngine},
    failure::Failure,
    models::{admit, load_stage},
};

pub(crate) use door::door;
pub(crate) use expose::ExposeArgs;
pub(crate) use lenders::{FoundLender, Heard, hear_lenders, lenders_among};
pub(crate) use measure::{Timed, measure};
pub(crate) use mending::Mending;
pub(crate) use offers::{Announcer, Hearing, OFFER_SECONDS, offers_of};
pub(crate) use orders::orders;
pub(crate) use owner::Owner;
pub(crate) use place::{Place, tell};
pub(crate) use present::Present;
pub(crate) use revoked::{hearing_node, keep_hearing};
pub(crate) use upstream::{UpstreamArgs, lend_upstream};
pub(crate) use whereabouts::{find_peer, known, look_again};

/// Whom a stage is lent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LentTo {
    /// The members of a swarm: each leaves a cache to the others, and they want to know how fast it is.
    Members,
    /// The command that started this peer, its only client.
    Command,
}

impl LentTo {
    /// Sessions that one client may have open here.
    fn sessions_per_client(self, caches: u16) -> u16 {
        match self {
            Self::Members => PeerConfig::fair_share(caches),
            Self::Command => caches,
        }
    }
}

/// Longest that a session may go without a step.
const IDLE_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Longest wait for the other half of a session, for the next peer, or for a dial.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// A peer that serves.
#[derive(Debug)]
pub(crate) struct ServingPeer {
    /// Where it is reached.
    pub(crate) node: Node,
    /// What it serves.
    pub(crate) shape: StageShape,
    /// How fast it was when it started; none where that was not measured.
    pub(crate) speed: Option<StageSpeed>,
    serving: Serving,
    engine: RunningEngine,
}

impl ServingPeer {
    /// Loads the stage and serves it on a new endpoint from then on.
    pub(crate) async fn start(
        entry: &Entry,
        spec: StageSpec,
        settings: &EngineSettings,
        identity: Identity,
        bind: Bind,
        lent_to: LentTo,
    ) -> Result<Self, Failure> {
        let stage = LoadedStage::load(entry, spec, settings, lent_to).await?;
        Ok(stage.serve(bind_node(identity, bind, Lan::Off, Vec::new()).await?, Meter::default(), None))
    }

    /// Its id.
    pub(crate) fn id(&self) -> PeerId {
        self.node.id()
    }

    /// Where it is reached.
    pub(crate) fn address(&self) -> PeerAddress {
        self.node.address()
    }

    /// Ends every session, the endpoint and the engine.
    pub(crate) async fn stop(self) {
        let node = self.node.clone();
        self.unload().await;
        node.close().await;
    }

    /// Tells it of an offer of another.
    pub(crate) async fn announce(&self, offer: SignedOffer) {
        self.serving.announce(offer).await;
    }

    /// Takes no new sessions, and returns when those that are open have ended, or gone on elsewhere.
    pub(crate) async fn drained(&mut self) {
        self.serving.drain().await;
        self.serving.finished().await;
    }

    /// Whose sessions are open here, and how many each has: whenever that changes.
    pub(crate) fn clients(&self) -> watch::Receiver<BTreeMap<PeerId, usize>> {
        self.serving.clients.clone()
    }

    /// Ends every session and the engine; the endpoint stays. What this peer has heard of others is passed on.
    pub(crate) async fn unload(self) -> Vec<SignedOffer> {
        let offers = self.serving.directory().signed(utc_now());
        self.serving.stop().await;
        self.engine.stop().await;
        offers.into_iter().filter(|offer| offer.verify(utc_now()).is_ok_and(|o| o.peer != self.node.id())).collect()
    }
}

/// A stage that is loaded, and not served yet.
#[derive(Debug)]
pub(crate) struct LoadedStage {
    shape: StageShape,
    speed: Option<StageSpeed>,
    lent_to: LentTo,
    /// Per cent of the time in which it may compute.
    share: u8,
    pipe: EnginePipe,
    engine: RunningEngine,
}

impl LoadedStage {
    /// Loads it; first it runs once, where members want to know how fast it is.
    pub(crate) async fn load(
        entry: &Entry,
        spec: StageSpec,
        settings: &EngineSettings,
        lent_to: LentTo,
    ) -> Result<Self, Failure> {
        admit(entry, spec).await?;
        let (engine, mut pipe) = RunningEngine::start(load_stage(entry, spec, settings)?).await?;
        let shape = engine.shape.clone();
        let speed = if lent_to == LentTo::Members { Some(measure(&shape, settings, &mut pipe).await?) } else { None };
        Ok(Self { shape, speed, lent_to, share: settings.share, pipe, engine })
    }

    /// Serves it on that endpoint from then on. `states`: whoever keeps what sessions hold that are put aside.
    pub(crate) fn serve(self, node: Node, meter: Meter, states: Option<StateJobs>) -> ServingPeer {
        let Self { shape, speed, lent_to, share, pipe: EnginePipe { commands, replies }, engine } = self;
        let mut machine = empty(&node, lent_to.sessions_per_client(shape.caches));
        machine.set_meter(meter);
        machine.add_stage(shape.clone());
        machine.limit_share(share);
        let ports = vec![StagePort { commands, replies }];
        let serving = match states {
            Some(states) => serve_keeping(node.clone(), machine, ports, states),
            None => serve(node.clone(), machine, ports),
        };
        ServingPeer { node, shape, speed, serving, engine }
    }
}

/// An endpoint with the deadlines of peers.
pub(crate) async fn bind_node(identity: Identity, bind: Bind, lan: Lan, relays: Vec<String>) -> Result<Node, Failure> {
    // Whoever serves has locked its key.
    let relay = (!relays.is_empty()).then_some(RelayUse { urls: relays, pass: None, claim: None });
    Ok(Node::bind(NodeConfig { identity, bind, lan, relay, deadlines: NetDeadlines::default() }).await?)
}

/// Serves no stage: newcomers are answered, models are shared, orders are taken, offers are passed on.
pub(crate) fn serve_nothing(node: &Node) -> Serving {
    serve(node.clone(), empty(node, 1), Vec::new())
}

fn empty(node: &Node, sessions_per_client: u16) -> Peer {
    let (idle_max, open_timeout) = (IDLE_MAX, OPEN_TIMEOUT);
    let config = PeerConfig { id: node.id(), sessions_per_client, idle_max, open_timeout };
    Peer::new(config, node.identity().gate.clone())
}
