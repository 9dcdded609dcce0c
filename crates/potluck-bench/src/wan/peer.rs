//! A peer whose stage is paced: everything else is as in one that computes.

use std::{
    io::{BufRead as _, stdin},
    time::Duration,
};

use data_encoding::HEXLOWER;
use potluck_core::{SecretKey, StageSpec};
use potluck_grant::Gate;
use potluck_net::{Bind, Identity, Lan, NetDeadlines, Node, NodeConfig, serve};
use potluck_peer::{Peer, PeerConfig};
use serde_json::json;

use super::pace;
use crate::{Outcome, peers::Order};

/// Reads an order, says where it is, serves until its standard input ends.
pub(crate) async fn run() -> Outcome<()> {
    let mut line = String::new();
    stdin().lock().read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    let key = SecretKey::from_bytes(HEXLOWER.decode(order.key.as_bytes())?.as_slice().try_into()?);
    let gate = Gate::new(order.swarm.parse()?);
    let (layers, head, tail) = (order.part.layers, order.part.head, order.part.tail);
    let spec = StageSpec { model: order.model.parse()?, layers, head, tail };
    let mut pace = order.pace.ok_or("the order has no pace")?;
    pace.caches = order.settings.caches;
    let (shape, port) = pace::start(spec, pace, pace::Recordings::default());
    let (idle_max, open_timeout) = (Duration::from_secs(24 * 3_600), Duration::from_secs(20));
    let sessions_per_client = order.settings.caches;
    let mut machine =
        Peer::new(PeerConfig { id: key.peer_id(), sessions_per_client, idle_max, open_timeout }, gate.clone());
    machine.add_stage(shape);
    let identity = Identity { key, grant: HEXLOWER.decode(order.grant.as_bytes())?, gate };
    let (deadlines, bind) = (NetDeadlines::default(), order.bind.map_or(Bind::Loopback, Bind::Address));
    let node = Node::bind(NodeConfig { identity, bind, lan: Lan::Off, relay: None, deadlines }).await?;
    let address = node.address();
    println!("{}", json!({ "id": address.peer.to_string(), "addresses": address.addresses }));
    let serving = serve(node, machine, vec![port]);
    let end = tokio::task::spawn_blocking(|| std::io::copy(&mut stdin().lock(), &mut std::io::sink()));
    end.await??;
    serving.stop().await;
    Ok(())
}
