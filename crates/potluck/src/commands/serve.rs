//! `potluck serve`: a stage of one model, lent to a swarm.

use std::{
    io::{BufRead, Read, stdin},
    net::SocketAddr,
    time::Duration,
};

use clap::Args;
use potluck_chain::plan::lend;
use potluck_core::{LayerRange, StageSpec};
use potluck_engine::EngineSettings;
use potluck_grant::Gate;
use potluck_net::{Bind, Identity as NetIdentity};
use potluck_pull::{Pulled, shelf};
use potluck_store::Entry;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    apart::apart,
    args::{EngineArgs, parse_bytes},
    commands::join::{join, read_line},
    embedded::{ORDER_BYTES_MAX, Order, Ready},
    failure::{Failure, OrFail},
    home::{Home, Identity, Membership, Role},
    models::{Models, Sharers, all_layers, find_model, pull_stage},
    placement::{free_memory, model_facts},
    screen::{Screen, size},
    serving::{Announcer, LentTo, ServingPeer, door},
    signals::Interrupt,
};

/// Where a peer listens unless the user says otherwise.
pub(crate) const PORT: u16 = 7575;

/// How often the swarm is asked again for a model.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Sessions that a peer keeps caches for, unless the user says otherwise.
const CACHES: u16 = 8;

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Join a swarm first, with the line that its owner passed on; `-` reads it from stdin
    #[arg(long, value_name = "LINE", conflicts_with = "embedded")]
    join: Option<String>,
    /// Let the swarm decide which layers are needed most, as far as --memory goes
    #[arg(long, conflicts_with_all = ["layers", "embedded"])]
    auto: bool,
    /// Take the order from stdin, and end with it: for the peers that another command starts
    #[arg(long, hide = true)]
    embedded: bool,
    #[command(flatten)]
    lend: Lend,
}

/// What a machine lends.
#[derive(Debug, Args)]
pub(crate) struct Lend {
    /// A name from `potluck model list` or of the swarm's, an id, or a path [default: the only model there is]
    #[arg(long, short, value_name = "M")]
    model: Option<String>,
    /// The layers to lend, half open
    #[arg(long, value_name = "A..B", value_parser = parse_layers)]
    layers: Option<LayerRange>,
    /// Memory that this machine gives, such as 4GB, where it chooses its layers [default: most of what is free]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Where to listen
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from(([0, 0, 0, 0], PORT)))]
    bind: SocketAddr,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Serve {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        if self.embedded {
            return serve_order(screen).await;
        }
        if let Some(line) = self.join {
            join(home, screen, read_line(line).await?, false).await?;
        }
        self.lend.serve(home, screen, self.auto).await
    }
}

impl Lend {
    /// Serves what it says. `auto`: layers that are not named are chosen, and a model is waited for.
    pub(crate) async fn serve(self, home: &Home, screen: Screen, auto: bool) -> Result<(), Failure> {
        let mut interrupt = Interrupt::listen()?;
        let mut membership = Membership::open(home)?;
        let identity = Identity::open(home, Role::Peer)?;
        let _lock = identity.lock(home)?;
        let grant = membership.grant(identity.key.peer_id())?;
        let door = door(home, screen)?;
        let settings = self.engine.settings(CACHES);
        settings.check()?;
        let chosen = async {
            let entry = if auto { self.wait_for_model(home, screen).await } else { self.model(home, screen).await }?;
            let spec = self.choose(home, &entry, &settings, auto).await?;
            let pulled = pull_stage(home, screen, &entry, spec).await?;
            Ok::<_, Failure>((entry, spec, pulled))
        };
        let (entry, spec, pulled) = interrupt.or(chosen).await??;
        let entry = pulled.as_ref().map_or(entry, |pulled| pulled.entry.clone());
        let layers = spec.layers;
        let bar = screen.wait(format!("loading layers {layers} of {}", entry.name));
        let who = NetIdentity { key: identity.key.clone(), grant: grant.clone(), gate: membership.gate()? };
        let started = ServingPeer::start(&entry, spec, &settings, who, Bind::Address(self.bind), LentTo::Members);
        let peer = interrupt.or(started).await??;
        drop(bar);
        peer.node.open_shelf(shelf(home.models(), entry.id));
        if let Some(door) = door {
            peer.node.open_door(door);
        }
        membership.knows(peer.address());
        membership.save(home)?;
        tell(screen, &peer, &membership.swarm, &entry.name, pulled.as_ref())?;
        let announcer = Announcer::new(identity.key, grant, membership.contacts);
        tokio::select! {
            () = announcer.run(&peer) => {}
            () = interrupt.wait() => {}
        }
        peer.stop().await;
        Ok(())
    }

    async fn model(&self, home: &Home, screen: Screen) -> Result<Entry, Failure> {
        find_model(home, screen, self.model.as_deref()).await
    }

    /// The model, as soon as there is one: who joins first may have to wait for whoever has it.
    async fn wait_for_model(&self, home: &Home, screen: Screen) -> Result<Entry, Failure> {
        let mut waits = None;
        loop {
            match self.model(home, screen).await {
                Err(failure) if failure.code == "no_model" => {
                    waits.get_or_insert_with(|| screen.wait(format!("{}: waiting", failure.message)));
                    sleep(ASK_AGAIN).await;
                }
                found => return found,
            }
        }
    }

    /// Which layers: those that were named, or those that the swarm needs most; otherwise all.
    async fn choose(
        &self,
        home: &Home,
        entry: &Entry,
        settings: &EngineSettings,
        auto: bool,
    ) -> Result<StageSpec, Failure> {
        let all = all_layers(&entry.manifest)?;
        let layers = match self.layers {
            Some(layers) => layers,
            None if auto => self.needed(home, entry, settings).await?,
            None => all,
        };
        let (head, tail) = (layers.start() == 0, layers.end() == all.end());
        Ok(StageSpec { model: entry.id, layers, head, tail })
    }

    async fn needed(&self, home: &Home, entry: &Entry, settings: &EngineSettings) -> Result<LayerRange, Failure> {
        let mine = Identity::open(home, Role::Peer)?.key.peer_id();
        let offered: Vec<LayerRange> = match Sharers::find(home).await? {
            Some(sharers) => {
                let others = sharers.offered.iter().filter(|(peer, spec)| *peer != mine && spec.model == entry.id);
                let layers = others.map(|(_, spec)| spec.layers).collect();
                sharers.close().await;
                layers
            }
            None => Vec::new(),
        };
        let memory = self.memory.unwrap_or_else(free_memory);
        let positions = u64::from(settings.caches) * u64::from(settings.context);
        let facts = model_facts(entry, settings.kv)?;
        lend(&facts, &offered, positions, memory).ok_or_else(|| {
            let message = format!("no layers of {} that are needed fit into {}", entry.name, size(memory));
            Failure::new("no_memory", message, "give more with --memory, or a shorter --context, or fewer --caches")
        })
    }
}

/// Serves what another command orders, for as long as that command holds our stdin open.
async fn serve_order(screen: Screen) -> Result<(), Failure> {
    die_with_parent();
    let order = Order::parse(&apart(first_line).await??)?;
    let spec = order.spec()?;
    let entry = Models::at(&order.models)?.catalogue.get(&spec.model.to_string())?;
    let gate = Gate::new(order.swarm()?);
    let identity = NetIdentity { key: order.key()?, grant: order.grant()?, gate };
    let mut interrupt = Interrupt::listen()?;
    let started = ServingPeer::start(&entry, spec, &order.settings, identity, Bind::Loopback, LentTo::Command);
    let peer = interrupt.or(started).await??;
    tell(screen, &peer, &order.swarm()?.to_string(), &entry.name, None)?;
    tokio::select! {
        _ = apart(wait_for_end) => {}
        () = interrupt.wait() => {}
    }
    peer.stop().await;
    Ok(())
}

fn tell(screen: Screen, peer: &ServingPeer, swarm: &str, model: &str, pulled: Option<&Pulled>) -> Result<(), Failure> {
    let (layers, addresses) = (peer.shape.spec.layers, peer.address().addresses);
    let ready = Ready {
        id: peer.id().to_string(),
        addresses,
        layers: [layers.start(), layers.end()],
        pid: std::process::id(),
        swarm: swarm.to_owned(),
    };
    if screen.json {
        let mut object = serde_json::to_value(&ready).or_fail("internal", "report this")?;
        if let Some(pulled) = pulled {
            object["pulled"] = json!({ "wanted_bytes": pulled.wanted_bytes, "received_bytes": pulled.received_bytes });
        }
        return screen.object(&object);
    }
    let speed = peer.speed.map_or(String::new(), |speed| format!(", {:.2} ms a token", speed.decode_us as f64 / 1e3));
    let lines = [
        format!("serving layers {layers} of {model}{speed}"),
        format!("  peer   {}", ready.id),
        format!("  at     {}", ready.addresses.join(" ")),
        format!("  swarm  {swarm}"),
    ];
    screen.text(&(lines.join("\n") + "\n"))
}

fn first_line() -> Result<String, Failure> {
    let mut line = String::new();
    let read = stdin().lock().take(ORDER_BYTES_MAX).read_line(&mut line);
    read.map(|_| line).map_err(|error| Failure::io("reading the order", &error))
}

/// Returns when stdin ends: the command that started us is gone, or done.
fn wait_for_end() {
    // An error is an end, too.
    let _ = std::io::copy(&mut stdin().lock(), &mut std::io::sink());
}

/// Asks the kernel to end this process with the one that started it, even where that one is killed.
#[cfg(target_os = "linux")]
fn die_with_parent() {
    // Where it is refused, the end of stdin still ends us.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent() {}

pub(crate) fn parse_layers(text: &str) -> Result<LayerRange, String> {
    let (start, end) = text.split_once("..").ok_or("expected A..B, such as 0..10")?;
    let number = |text: &str| text.trim().parse().map_err(|_| format!("`{text}` is no layer"));
    LayerRange::new(number(start)?, number(end)?).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_half_open_and_never_empty() {
        assert_eq!(parse_layers("0..10"), Ok(LayerRange::new(0, 10).unwrap()));
        for text in ["", "3", "3..3", "4..3", "a..b", "-1..3", "0..99999"] {
            assert!(parse_layers(text).is_err(), "{text}");
        }
    }
}
