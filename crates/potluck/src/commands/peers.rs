//! `potluck peers`: who is there, and what they offer.

use std::collections::{BTreeMap, btree_map::Entry};

use clap::Args;
use potluck_core::{Offer, PeerId};
use potluck_net::{Node, PathInfo};
use serde_json::{Value, json};

use crate::{
    commands::swarm::utc_now,
    failure::Failure,
    home::{Home, Membership},
    models::Models,
    placement::address,
    screen::{Screen, size, table},
    serving::offers_of,
    talk::client_node,
};

#[derive(Debug, Args)]
pub(crate) struct Peers {}

impl Peers {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let membership = Membership::open(home)?;
        let node = client_node(home, &membership).await?;
        let (offers, silent) = offers_of(&node, &membership.contacts).await;
        let paths = paths(&node, &offers).await;
        node.close().await;
        show(home, screen, &membership, &offers, &paths, &silent)
    }
}

/// How each peer is reached, or why it is not.
type Paths = BTreeMap<PeerId, Result<Option<PathInfo>, String>>;

async fn paths(node: &Node, offers: &[Offer]) -> Paths {
    let mut paths = Paths::new();
    for offer in offers {
        if let Entry::Vacant(place) = paths.entry(offer.peer) {
            let reached = node.connect(&address(offer)).await;
            place.insert(reached.map(|link| link.path()).map_err(|error| error.to_string()));
        }
    }
    paths
}

fn show(
    home: &Home,
    screen: Screen,
    swarm: &Membership,
    offers: &[Offer],
    paths: &Paths,
    silent: &[String],
) -> Result<(), Failure> {
    let models = Models::open(home)?.catalogue.list()?;
    let name = |offer: &Offer| {
        let known = models.iter().find(|entry| entry.id == offer.shape.spec.model);
        known.map_or_else(|| offer.shape.spec.model.short(), |entry| entry.name.clone())
    };
    if screen.json {
        let peers: Vec<_> = offers.iter().map(|offer| row(offer, &name(offer), paths.get(&offer.peer))).collect();
        return screen.object(&json!({ "swarm": swarm.swarm, "peers": peers, "silent": silent }));
    }
    for why in silent {
        screen.note(why);
    }
    if offers.is_empty() {
        screen.note("nobody offers anything: potluck serve");
        return Ok(());
    }
    let heading =
        ["PEER", "MODEL", "LAYERS", "MS/TOKEN", "FREE", "MEMORY", "RTT", "PATH", "AT"].map(str::to_owned).to_vec();
    let rows = offers.iter().map(|offer| {
        vec![
            offer.peer.short(),
            name(offer),
            offer.shape.spec.layers.to_string(),
            format!("{:.2}", offer.speed.decode_us as f64 / 1e3),
            format!("{} of {}", offer.free_caches, offer.shape.caches),
            size(offer.shape.weight_bytes),
            path(paths.get(&offer.peer)).map_or("-".into(), |path| format!("{:.1} ms", milliseconds(&path))),
            match paths.get(&offer.peer) {
                Some(Err(_)) => "lost".into(),
                reached => path(reached).map_or("-".into(), |path| path.kind.to_string()),
            },
            offer.addresses.first().cloned().unwrap_or_default(),
        ]
    });
    screen.text(&table(&[heading].into_iter().chain(rows).collect::<Vec<_>>()))
}

fn path(reached: Option<&Result<Option<PathInfo>, String>>) -> Option<PathInfo> {
    reached?.as_ref().ok().copied().flatten()
}

fn milliseconds(path: &PathInfo) -> f64 {
    path.rtt.as_secs_f64() * 1e3
}

fn row(offer: &Offer, model: &str, reached: Option<&Result<Option<PathInfo>, String>>) -> Value {
    let (spec, path) = (offer.shape.spec, path(reached));
    json!({
        "peer": offer.peer.to_string(),
        "model": model,
        "model_id": spec.model.to_string(),
        "layers": [spec.layers.start(), spec.layers.end()],
        "decode_us": offer.speed.decode_us,
        "prefill_position_us": offer.speed.prefill_position_us,
        "context": offer.shape.context,
        "free_caches": offer.free_caches,
        "weight_bytes": offer.shape.weight_bytes,
        "rtt_ms": path.as_ref().map(milliseconds),
        "path": path.map(|path| path.kind.to_string()),
        "unreached": reached.and_then(|reached| reached.as_ref().err()),
        "addresses": offer.addresses,
        "expires_in_s": offer.expires.saturating_sub(utc_now()),
    })
}
