//! A swarm of toy peers on loopback.

use std::time::Duration;

use potluck_core::{LayerRange, PeerId, SecretKey, Stage as _, StageSpec};
use potluck_grant::{Gate, Root};
use potluck_net::{Bind, Identity, Lan, NetDeadlines, Node, NodeConfig, Serving, StagePort, serve};
use potluck_peer::{Peer, PeerConfig};
use potluck_sim::toy::{self, ToyStage};
use tokio::sync::mpsc;

pub(crate) const CONTEXT: u32 = 64;
pub(crate) const FAR: u64 = 4_000_000_000;

pub(crate) fn root() -> Root {
    Root::from_bytes(&[7; 32])
}

pub(crate) fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

pub(crate) fn grant_of(root: &Root, holder: PeerId, expires: u64) -> Vec<u8> {
    root.grant(holder, expires).unwrap().into_bytes()
}

/// A member's node.
pub(crate) async fn node(n: u8, deadlines: NetDeadlines) -> Node {
    let (key, gate) = (key(n), Gate::new(root().public()));
    let identity = Identity { grant: grant_of(&root(), key.peer_id(), FAR), key, gate };
    Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines }).await.unwrap()
}

/// Layers `start..end` of a toy model with `total`.
pub(crate) fn spec(start: u32, end: u32, total: u32) -> StageSpec {
    toy::spec(LayerRange::new(start, end).unwrap(), total)
}

/// Serves one toy stage on that node. Nobody waits for more than `open_timeout`.
pub(crate) fn lend(node: &Node, spec: StageSpec, open_timeout: Duration) -> Serving {
    let idle_max = Duration::from_secs(60);
    let config = PeerConfig { id: node.id(), sessions_per_client: 2, idle_max, open_timeout };
    let stage = ToyStage::new(spec, 8, CONTEXT);
    let mut machine = Peer::new(config, Gate::new(root().public()));
    machine.add_stage(stage.shape().clone());
    serve(node.clone(), machine, vec![port(stage)])
}

/// A toy stage behind channels, as an engine's process is.
fn port(mut stage: ToyStage) -> StagePort {
    let (commands, mut asked) = mpsc::channel::<potluck_core::StageCommand>(1);
    let (answered, replies) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(command) = asked.recv().await {
            if let Some(reply) = command.apply(&mut stage) {
                let _ = answered.send(reply).await;
            }
        }
    });
    StagePort { commands, replies }
}
