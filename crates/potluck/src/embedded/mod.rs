//! Peers that a command starts on this machine, and ends: each a `potluck serve` of its own, ordered over its stdin.
//!
//! Keys and grants travel over stdin, never as arguments, which others on the machine can read. A peer ends when its stdin
//! does; on Linux it also ends with the process that started it, however that one died.

mod child;
mod order;

use potluck_chain::{Hop, RemoteStage};
use potluck_core::{PeerId, StageSpec};
use potluck_engine::EngineSettings;
use potluck_grant::Gate;
use potluck_wire::PeerAddress;
use serde_json::{Value, json};

use crate::{
    commands::swarm::utc_now,
    failure::Failure,
    home::{Home, SwarmRoot, new_key},
};

pub(crate) use child::PeerProcess;
pub(crate) use order::{ORDER_BYTES_MAX, Order, Ready};

/// Seconds that the grants of a command's own peers hold: longer than any of them runs.
const GRANT_SECONDS: u64 = 365 * 24 * 3_600;

/// Peers that are ready, in the order of their layers. Dropping them ends them.
#[derive(Debug)]
pub(crate) struct Embedded {
    /// The swarm that they and the command form.
    root: SwarmRoot,
    /// The peers, in the order of their layers.
    pub(crate) peers: Vec<EmbeddedPeer>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct EmbeddedPeer {
    /// What it serves.
    pub(crate) spec: StageSpec,
    /// Its grant.
    pub(crate) grant: Vec<u8>,
    /// What it said when it was ready.
    pub(crate) ready: Ready,
    process: PeerProcess,
}

impl Embedded {
    /// Starts a peer for each stage, and waits until all are ready.
    ///
    /// The first that fails ends them all: its failure is the command's.
    pub(crate) async fn start(home: &Home, settings: &EngineSettings, stages: &[StageSpec]) -> Result<Self, Failure> {
        let root = SwarmRoot::ephemeral()?;
        let mut started = Vec::with_capacity(stages.len());
        for &spec in stages {
            let key = new_key()?;
            let grant = root.admit(key.peer_id(), utc_now() + GRANT_SECONDS)?;
            let order = Order::new(&key, &root, &grant, home, spec, settings);
            started.push((spec, grant, PeerProcess::start(&order).await?));
        }
        // All load at once; each is waited for in turn.
        let mut peers = Vec::with_capacity(stages.len());
        for (spec, grant, mut process) in started {
            let ready = process.ready().await?;
            peers.push(EmbeddedPeer { spec, grant, ready, process });
        }
        Ok(Self { root, peers })
    }

    /// A grant for another key of the same swarm: the command's own.
    pub(crate) fn admit(&self, key: PeerId) -> Result<Vec<u8>, Failure> {
        self.root.admit(key, utc_now() + GRANT_SECONDS)
    }

    /// What checks the grants of this swarm.
    pub(crate) fn gate(&self) -> Gate {
        Gate::new(self.root.swarm())
    }

    /// Them, for `--json`.
    pub(crate) fn list(&self) -> impl Iterator<Item = Value> {
        self.peers.iter().map(|peer| json!({ "id": peer.ready.id, "layers": peer.ready.layers, "pid": peer.ready.pid }))
    }

    /// Ends the peers and waits until they are gone.
    pub(crate) async fn stop(self) {
        let mut processes: Vec<_> = self.peers.into_iter().map(|peer| peer.process).collect();
        processes.iter_mut().for_each(PeerProcess::dismiss);
        for process in processes {
            process.reap().await;
        }
    }

    /// Waits until one of them ends, which it should not; which one.
    pub(crate) async fn first_loss(&mut self) -> Failure {
        let ends = self.peers.iter_mut().map(|peer| {
            Box::pin(async {
                let status = peer.process.ended().await;
                let text = format!("peer {} of stage {} ended: {status}", &peer.ready.id[..10], peer.spec.layers);
                Failure::new("peer_lost", text, "run it again; RUST_LOG=info shows more")
            })
        });
        let mut ends: Vec<_> = ends.collect();
        std::future::poll_fn(|cx| {
            let ready = ends.iter_mut().find_map(|end| match end.as_mut().poll(cx) {
                std::task::Poll::Ready(failure) => Some(failure),
                std::task::Poll::Pending => None,
            });
            ready.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        })
        .await
    }
}

impl EmbeddedPeer {
    /// Its place on a route.
    pub(crate) fn hop(&self) -> Result<Hop, Failure> {
        Ok(Hop::Remote(RemoteStage {
            spec: self.spec,
            address: self.address()?,
            grant: self.grant.clone(),
            speed: None,
        }))
    }

    /// Where it is reached.
    fn address(&self) -> Result<PeerAddress, Failure> {
        let peer = self.ready.id.parse().map_err(|error| Failure::new("internal", error, "report this"))?;
        Ok(PeerAddress { peer, addresses: self.ready.addresses.clone(), relay: None })
    }
}
