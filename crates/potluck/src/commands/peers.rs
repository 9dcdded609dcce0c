//! `potluck peers`: who is there, and what they offer.

use clap::Args;
use potluck_core::Offer;
use serde_json::{Value, json};

use crate::{
    commands::swarm::utc_now,
    failure::Failure,
    home::{Home, Membership},
    models::Models,
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
        node.close().await;
        show(home, screen, &membership, &offers, &silent)
    }
}

fn show(home: &Home, screen: Screen, swarm: &Membership, offers: &[Offer], silent: &[String]) -> Result<(), Failure> {
    let models = Models::open(home)?.catalogue.list()?;
    let name = |offer: &Offer| {
        let known = models.iter().find(|entry| entry.id == offer.shape.spec.model);
        known.map_or_else(|| offer.shape.spec.model.short(), |entry| entry.name.clone())
    };
    if screen.json {
        let peers: Vec<_> = offers.iter().map(|offer| row(offer, &name(offer))).collect();
        return screen.object(&json!({ "swarm": swarm.swarm, "peers": peers, "silent": silent }));
    }
    for why in silent {
        screen.note(why);
    }
    if offers.is_empty() {
        screen.note("nobody offers anything: potluck serve");
        return Ok(());
    }
    let heading = ["PEER", "MODEL", "LAYERS", "MS/TOKEN", "FREE", "MEMORY", "AT"].map(str::to_owned).to_vec();
    let rows = offers.iter().map(|offer| {
        vec![
            offer.peer.short(),
            name(offer),
            offer.shape.spec.layers.to_string(),
            format!("{:.2}", offer.speed.decode_us as f64 / 1e3),
            format!("{} of {}", offer.free_caches, offer.shape.caches),
            size(offer.shape.weight_bytes),
            offer.addresses.first().cloned().unwrap_or_default(),
        ]
    });
    screen.text(&table(&[heading].into_iter().chain(rows).collect::<Vec<_>>()))
}

fn row(offer: &Offer, model: &str) -> Value {
    let spec = offer.shape.spec;
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
        "addresses": offer.addresses,
        "expires_in_s": offer.expires.saturating_sub(utc_now()),
    })
}
