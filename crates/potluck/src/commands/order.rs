//! `potluck model load|unload`: what the swarm's root, or an operator, asks of a peer.

use clap::Args;
use potluck_core::{Action, LayerRange, Order};
use potluck_wire::PeerAddress;
use serde_json::json;

use super::{
    serve::parse_layers,
    swarm::{parse_contact, utc_now},
};
use crate::{
    args::RootArgs,
    failure::Failure,
    home::{Home, Identity, Membership, Role, RootKept, SwarmRoot},
    models::find_model,
    placement::members,
    screen::{Screen, printable},
    serving::offers_of,
    talk::client_node,
};

/// Seconds that an order holds.
const ORDER_SECONDS: u64 = 60;

#[derive(Debug, Args)]
pub(crate) struct Load {
    /// A name, or an id
    model: String,
    /// The layers to serve, half open
    #[arg(long, value_name = "A..B", value_parser = parse_layers)]
    layers: LayerRange,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
pub(crate) struct Unload {
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
struct To {
    /// Which peer: the first digits of its id, as `potluck peers` shows it, or KEY@IP:PORT
    #[arg(long, value_name = "PEER")]
    peer: String,
    #[command(flatten)]
    root: RootArgs,
}

impl Load {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let entry = find_model(home, screen, Some(&self.model)).await?;
        // What cannot be served is not ordered.
        potluck_model::slice::check_range(&entry.manifest, self.layers)?;
        give(home, screen, &self.to, Action::Load { model: entry.id, layers: self.layers }).await
    }
}

impl Unload {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        give(home, screen, &self.to, Action::Unload).await
    }
}

async fn give(home: &Home, screen: Screen, to: &To, action: Action) -> Result<(), Failure> {
    let (home, peer) = (&to.root.of(home), &to.peer);
    let membership = Membership::open(home)?;
    // Who holds no root key, or keeps it locked, gives orders as the operator that its grant makes it; the peer says if that makes none.
    let locked = RootKept::of(home)?.map(|kept| kept.is_locked()).transpose()?.unwrap_or(false);
    let root = if locked && !home.root.is_named() { None } else { Some(SwarmRoot::open(home)) };
    let key = match root {
        Some(Ok(root)) => root.key(),
        Some(Err(failure)) if failure.code != "no_root" => return Err(failure),
        _ => Identity::open(home, Role::Client)?.key,
    };
    let node = client_node(home, &membership).await?;
    let given = async {
        let to = match parse_contact(peer) {
            Ok(address) => address,
            Err(_) => {
                let (offers, _) = offers_of(&node, &membership.contacts).await;
                named(members(&offers, &membership.contacts), peer)?
            }
        };
        let now = utc_now();
        // Two orders of one second are told apart by their order.
        let sequence = std::time::UNIX_EPOCH.elapsed().map_or(now << 20, |since| since.as_micros() as u64);
        let order = Order { peer: to.peer, sequence, expires: now + ORDER_SECONDS, action }.sign(&key);
        let said = node.order(&to, order).await?;
        Ok::<_, Failure>((to, said))
    };
    let given = given.await;
    node.close().await;
    let (to, said) = given?;
    if screen.json {
        return screen.object(&json!({ "peer": to.peer.to_string(), "answer": said }));
    }
    screen.text(&format!("{} will serve {}\n", to.peer.short(), printable(&said)))
}

fn named(mut found: Vec<PeerAddress>, text: &str) -> Result<PeerAddress, Failure> {
    found.retain(|peer| peer.peer.to_string().starts_with(&text.to_ascii_lowercase()));
    match <[PeerAddress; 1]>::try_from(found) {
        Ok([peer]) => Ok(peer),
        Err(found) if found.is_empty() => {
            let hint = "potluck peers says who is there; who serves nothing is named by KEY@IP:PORT";
            Err(Failure::new("no_peer", format!("nobody is known by `{text}`"), hint))
        }
        Err(found) => {
            Err(Failure::new("ambiguous", format!("`{text}` could be {} peers", found.len()), "give more of the id"))
        }
    }
}
