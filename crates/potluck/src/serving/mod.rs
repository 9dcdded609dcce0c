//! A peer that serves one stage: an engine child, an endpoint, and the machine between them.

mod door;
mod measure;
mod offers;

use std::time::Duration;

use potluck_core::{PeerId, StageShape, StageSpec, StageSpeed};
use potluck_engine::EngineSettings;
use potluck_net::{Bind, Identity, NetDeadlines, Node, NodeConfig, Serving, StagePort, serve};
use potluck_peer::{Peer, PeerConfig};
use potluck_store::Entry;
use potluck_wire::PeerAddress;

use crate::{
    engines::{EnginePipe, RunningEngine},
    failure::Failure,
    models::{admit, load_stage},
};

pub(crate) use door::door;
pub(crate) use measure::measure;
pub(crate) use offers::{Announcer, OFFER_SECONDS, offers_of};

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
    /// Loads the stage and serves it from then on; first it runs once, where members want to know how fast it is.
    pub(crate) async fn start(
        entry: &Entry,
        spec: StageSpec,
        settings: &EngineSettings,
        identity: Identity,
        bind: Bind,
        lent_to: LentTo,
    ) -> Result<Self, Failure> {
        admit(entry, spec).await?;
        let (engine, mut pipe) = RunningEngine::start(load_stage(entry, spec, settings)?).await?;
        let shape = engine.shape.clone();
        let speed = if lent_to == LentTo::Members { Some(measure(&shape, settings, &mut pipe).await?) } else { None };
        let config = PeerConfig {
            id: identity.key.peer_id(),
            sessions_per_client: lent_to.sessions_per_client(shape.caches),
            idle_max: IDLE_MAX,
            open_timeout: OPEN_TIMEOUT,
        };
        let mut machine = Peer::new(config, identity.gate.clone());
        machine.add_stage(shape.clone());
        let node = Node::bind(NodeConfig { identity, bind, relay: None, deadlines: NetDeadlines::default() }).await?;
        let EnginePipe { commands, replies } = pipe;
        let serving = serve(node.clone(), machine, vec![StagePort { commands, replies }]);
        Ok(Self { node, shape, speed, serving, engine })
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
        self.serving.stop().await;
        self.node.close().await;
        self.engine.stop().await;
    }
}
