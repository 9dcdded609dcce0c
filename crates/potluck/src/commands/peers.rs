//! `potluck peers`: who is there, and what they offer.

use std::collections::{BTreeMap, btree_map::Entry};

use clap::Args;
use potluck_core::{Offer, PeerId};
use potluck_net::{Found, Node, PathInfo};
use potluck_wire::UpstreamModel;
use serde_json::{Value, json};

use crate::{
    commands::swarm::utc_now,
    failure::Failure,
    home::{Home, Membership},
    models::Models,
    placement::{address, members},
    screen::{Screen, printable, size, table},
    serving::{FoundLender, lenders_among, offers_of},
    talk::client_node,
};

#[derive(Debug, Args)]
pub(crate) struct Peers {}

impl Peers {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let membership = Membership::open(home)?;
        let node = client_node(home, &membership).await?;
        let (offers, silent) = offers_of(&node, &membership.contacts).await;
        let lenders = lenders_among(&node, members(&offers, &membership.contacts)).await;
        let paths = paths(&node, &offers, &lenders).await;
        node.close().await;
        show(home, screen, &membership, &There { offers, lenders, paths, silent })
    }
}

/// What there is, and how it is reached.
struct There {
    offers: Vec<Offer>,
    lenders: Vec<FoundLender>,
    paths: Paths,
    /// Who did not answer, and why.
    silent: Vec<String>,
}

/// How each peer is reached, or why it is not.
type Paths = BTreeMap<PeerId, Result<Reached, String>>;

/// How a peer is reached.
struct Reached {
    path: Option<PathInfo>,
    found: Found,
}

async fn paths(node: &Node, offers: &[Offer], lenders: &[FoundLender]) -> Paths {
    let mut paths = Paths::new();
    for at in offers.iter().map(address).chain(lenders.iter().map(|lender| lender.address.clone())) {
        if let Entry::Vacant(place) = paths.entry(at.peer) {
            let reached = node.connect(&at).await;
            let reached = reached.map(|link| Reached { path: link.path(), found: link.found });
            place.insert(reached.map_err(|error| error.to_string()));
        }
    }
    paths
}

fn show(home: &Home, screen: Screen, swarm: &Membership, there: &There) -> Result<(), Failure> {
    let There { offers, lenders, paths, silent } = there;
    let models = Models::open(home)?.catalogue.list()?;
    let name = |offer: &Offer| {
        let known = models.iter().find(|entry| entry.id == offer.shape.spec.model);
        known.map_or_else(|| offer.shape.spec.model.short(), |entry| entry.name.clone())
    };
    if screen.json {
        let peers: Vec<_> = offers.iter().map(|offer| row(offer, &name(offer), paths.get(&offer.peer))).collect();
        let lenders: Vec<_> =
            lenders.iter().map(|lender| lender_row(lender, paths.get(&lender.address.peer))).collect();
        return screen.object(&json!({ "swarm": swarm.swarm, "peers": peers, "lenders": lenders, "silent": silent }));
    }
    for why in silent {
        screen.note(why);
    }
    for lender in lenders {
        if let Some(trouble) = &lender.upstream.trouble {
            screen.note(format!("peer {} lends nothing now: {trouble}", lender.address.peer.short()));
        }
    }
    if offers.is_empty() && lenders.iter().all(|lender| lender.upstream.models.is_empty()) {
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
            if offer.is_coming() { "?".into() } else { format!("{:.2}", offer.speed.decode_us as f64 / 1e3) },
            if offer.is_coming() {
                "loading".into()
            } else {
                format!("{} of {}", offer.free_caches, offer.shape.caches)
            },
            size(offer.shape.weight_bytes),
            distance(paths.get(&offer.peer)),
            way(paths.get(&offer.peer)),
            offer.addresses.first().cloned().unwrap_or_default(),
        ]
    });
    let lent = lenders.iter().flat_map(|lender| {
        let FoundLender { address, upstream } = lender;
        let free = upstream.places.saturating_sub(upstream.running);
        let reached = paths.get(&address.peer);
        upstream.models.iter().map(move |model| {
            vec![
                address.peer.short(),
                printable(&model.name),
                "whole".into(),
                "-".into(),
                format!("{free} of {}", upstream.places),
                "-".into(),
                distance(reached),
                way(reached),
                address.addresses.first().map_or(String::new(), |at| printable(at)),
            ]
        })
    });
    screen.text(&table(&[heading].into_iter().chain(rows).chain(lent).collect::<Vec<_>>()))
}

fn distance(reached: Option<&Result<Reached, String>>) -> String {
    path(reached).map_or("-".into(), |path| format!("{:.1} ms", milliseconds(&path)))
}

fn way(reached: Option<&Result<Reached, String>>) -> String {
    match reached {
        Some(Err(_)) => "lost".into(),
        reached => path(reached).map_or("-".into(), |path| path.kind.to_string() + by(reached)),
    }
}

fn path(reached: Option<&Result<Reached, String>>) -> Option<PathInfo> {
    reached?.as_ref().ok()?.path
}

/// A word where the peer was not where it was said to be.
fn by(reached: Option<&Result<Reached, String>>) -> &'static str {
    match reached {
        Some(Ok(Reached { found: Found::Lan, .. })) => ", mDNS",
        Some(Ok(Reached { found: Found::Public, .. })) => ", looked up",
        _ => "",
    }
}

fn milliseconds(path: &PathInfo) -> f64 {
    path.rtt.as_secs_f64() * 1e3
}

fn row(offer: &Offer, model: &str, reached: Option<&Result<Reached, String>>) -> Value {
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
        "loading": offer.is_coming(),
        "free_bytes": offer.free_bytes,
        "weight_bytes": offer.shape.weight_bytes,
        "rtt_ms": path.as_ref().map(milliseconds),
        "loss": path.map(|path| path.loss),
        "path": path.map(|path| path.kind.to_string()),
        "found_by_mdns": reached.and_then(|reached| reached.as_ref().ok()).map(|reached| reached.found == Found::Lan),
        "unreached": reached.and_then(|reached| reached.as_ref().err()),
        "addresses": offer.addresses,
        "expires_in_s": offer.expires.saturating_sub(utc_now()),
    })
}

fn lender_row(lender: &FoundLender, reached: Option<&Result<Reached, String>>) -> Value {
    let FoundLender { address, upstream } = lender;
    let model = |model: &UpstreamModel| json!({ "name": model.name, "context": model.context });
    let path = path(reached);
    json!({
        "peer": address.peer.to_string(),
        "models": upstream.models.iter().map(model).collect::<Vec<_>>(),
        "running": upstream.running,
        "places": upstream.places,
        "trouble": upstream.trouble,
        "rtt_ms": path.as_ref().map(milliseconds),
        "path": path.map(|path| path.kind.to_string()),
        "addresses": address.addresses,
    })
}
