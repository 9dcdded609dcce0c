//! `potluck serve`: a stage of one model, or what runs here already, lent to a swarm.

use std::{
    io::{BufRead, Read, stdin},
    net::SocketAddr,
    time::Duration,
};

use clap::Args;
use potluck_chain::plan::lend;
use potluck_core::{LayerRange, StageSpec};
use potluck_engine::{EngineSettings, memory};
use potluck_grant::Gate;
use potluck_net::{Bind, Identity as NetIdentity};
use potluck_pull::Library;
use potluck_store::{Entry, InUse};
use tokio::time::sleep;

use crate::{
    apart::apart,
    args::{DiskArgs, EngineArgs, RootArgs, parse_bytes},
    commands::{
        join::{join, read_line},
        service::{Level, install, own_arguments, uninstall},
    },
    embedded::{ORDER_BYTES_MAX, Order},
    failure::Failure,
    home::{Home, Identity, Role, RootSource, SwarmRoot},
    models::{Models, Sharers, all_layers, find_model},
    placement::{free_memory, model_facts},
    screen::{Screen, size},
    serving::{
        Announcer, ExposeArgs, LentTo, Mending, Owner, Place, Present, ServingPeer, UpstreamArgs, lend_upstream,
        orders, serve_nothing, tell,
    },
    signals::Interrupt,
    states::{STATES_BYTES, Whose, keep_states, sweep_states},
};

/// Where a peer listens unless the user says otherwise.
pub(crate) const PORT: u16 = 7575;

/// How often the swarm is asked again for a model.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Sessions that a peer keeps caches for, unless the user says otherwise.
const CACHES: u16 = 8;

/// A size, or 0.
fn parse_room(text: &str) -> Result<u64, String> {
    if text.trim() == "0" { Ok(0) } else { parse_bytes(text) }
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Join a swarm first, with the line that its owner passed on; `-` reads it from stdin
    #[arg(long, value_name = "LINE", conflicts_with = "embedded")]
    join: Option<String>,
    /// Let the swarm decide which layers are needed most, as far as --memory goes; later, too, where nobody serves some any more
    #[arg(long, conflicts_with_all = ["layers", "embedded", "upstream"])]
    auto: bool,
    /// Have the system's service manager run it from now on, with the other arguments given here
    #[arg(long, value_enum, value_name = "WHOSE", num_args = 0..=1, require_equals = true, default_missing_value = "user",
        conflicts_with = "embedded")]
    install: Option<Level>,
    /// Take that service away
    #[arg(long, value_enum, value_name = "WHOSE", num_args = 0..=1, require_equals = true, default_missing_value = "user",
        conflicts_with_all = ["embedded", "install"])]
    uninstall: Option<Level>,
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
    #[command(flatten)]
    disk: DiskArgs,
    /// Disk that conversations may take which others have put aside, encrypted; 0: none, nor what is there
    #[arg(long, value_name = "BYTES", value_parser = parse_room, default_value_t = STATES_BYTES, hide_default_value = true)]
    parked: u64,
    /// Where to listen
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from(([0, 0, 0, 0], PORT)))]
    bind: SocketAddr,
    #[command(flatten)]
    expose: ExposeArgs,
    #[command(flatten)]
    upstream: UpstreamArgs,
    #[command(flatten)]
    root: RootArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Serve {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        if self.embedded {
            return serve_order(screen).await;
        }
        if let Some(level) = self.uninstall {
            return uninstall(screen, level);
        }
        if let Some(line) = self.join {
            join(home, screen, read_line(line).await?, false).await?;
        }
        if let Some(level) = self.install {
            return install(home, screen, level, own_arguments(std::env::args_os()));
        }
        self.lend.serve(home, screen, self.auto).await
    }
}

impl Lend {
    /// Serves what it says, and what the swarm's root orders after that. `auto`: layers that are not named are chosen, and a
    /// model is waited for.
    pub(crate) async fn serve(self, home: &Home, screen: Screen, auto: bool) -> Result<(), Failure> {
        let upstream = self.upstream.open()?;
        // Asked for before anything else waits on the terminal.
        let home = &hold_root(&self.root.of(&self.disk.limit(home)))?;
        let mut interrupt = Interrupt::listen()?;
        let terms = home.terms()?;
        let share = terms.share.unwrap_or(100);
        // Each session waits for all others' steps, and the rest after each.
        let caches = (CACHES * u16::from(share) / 100).max(1);
        let settings = EngineSettings { share, ..self.engine.settings_with(caches, terms.cores) };
        settings.check()?;
        let owner = Owner::watch(home)?;
        memory::keep_freed(settings.wipe_within.is_none());
        let present = Present::enter(home, screen, self.bind).await?;
        let (node, membership) = (present.node.clone(), &present.membership);
        if let Some(upload) = terms.upload {
            node.limit_upload(upload);
        }
        let library = Library::new(home.models());
        node.open_shelf(library.shelf());
        let _exposing = self.expose.open(home, screen, &node)?;
        let announcer = Announcer::new(home, present.identity.key.clone(), present.grant.clone(), membership);
        // Nothing of the models here is passed on either while the owner has the machine.
        let _resting = owner.resting(&node);
        if let Some(upstream) = upstream {
            return lend_upstream(screen, node, announcer, upstream, &membership.swarm, owner, &mut interrupt).await;
        }
        let (taken, mut orders) = orders(node.identity().gate.clone(), node.id());
        node.take_orders(taken);
        let (swarm, heard, mending, coming) = (membership.swarm.clone(), Vec::new(), None, None);
        let states = if self.parked > 0 {
            Some(keep_states(home, Whose::Lent, self.parked, &settings)?)
        } else {
            sweep_states(home, None);
            None
        };
        let mut place = Place { node, library, announcer, settings, mending, coming, owner, swarm, heard, states };

        // What was asked for must work; what is ordered later may not, and then it goes on as before.
        let first = async {
            let entry = if auto { self.wait_for_model(home, screen).await } else { self.model(home, screen).await }?;
            let memory = self.memory.or(terms.memory).unwrap_or_else(free_memory);
            let spec = self.choose(home, &entry, &place.settings, auto.then_some(memory)).await?;
            let mending = auto.then(|| Mending::new(&entry, &place.settings, memory)).transpose()?;
            Ok::<_, Failure>((entry, spec, mending))
        };
        let idle = serve_nothing(&place.node);
        let chosen = interrupt.or(first).await;
        let loaded = match chosen {
            Ok(Ok((entry, spec, mending))) => {
                place.mending = mending;
                interrupt.or(place.load(home, screen, entry, spec)).await
            }
            Ok(Err(failure)) | Err(failure) => Ok(Err(failure)),
        };
        idle.stop().await;
        let kept = match loaded.and_then(|loaded| loaded) {
            Ok(loaded) => place.keep(home, screen, loaded, &mut orders, &mut interrupt).await,
            // Who stops what lends nothing had nothing to wait for.
            Err(failure) if failure.code == "cancelled" && place.owner.wants().is_some() => Ok(()),
            Err(failure) => Err(failure),
        };
        place.node.close().await;
        kept
    }

    async fn model(&self, home: &Home, screen: Screen) -> Result<InUse, Failure> {
        find_model(home, screen, self.model.as_deref()).await
    }

    /// The model, as soon as there is one: who joins first may have to wait for whoever has it.
    async fn wait_for_model(&self, home: &Home, screen: Screen) -> Result<InUse, Failure> {
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

    /// Which layers: those that were named, or those that the swarm needs most and that fit into so much memory; otherwise all.
    async fn choose(
        &self,
        home: &Home,
        entry: &Entry,
        settings: &EngineSettings,
        memory: Option<u64>,
    ) -> Result<StageSpec, Failure> {
        let all = all_layers(&entry.manifest)?;
        let layers = match (self.layers, memory) {
            (Some(layers), _) => layers,
            (None, Some(memory)) => Self::needed(home, entry, settings, memory).await?,
            (None, None) => all,
        };
        let (head, tail) = (layers.start() == 0, layers.end() == all.end());
        Ok(StageSpec { model: entry.id, layers, head, tail })
    }

    async fn needed(home: &Home, entry: &Entry, settings: &EngineSettings, memory: u64) -> Result<LayerRange, Failure> {
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
        let positions = u64::from(settings.caches) * u64::from(settings.context);
        let facts = model_facts(entry, settings.kv)?;
        lend(&facts, &offered, positions, memory).ok_or_else(|| {
            let message = format!("no layers of {} that are needed fit into {}", entry.name, size(memory));
            Failure::new("no_memory", message, "give more with --memory, or a shorter --context, or fewer --caches")
        })
    }
}

/// The same home, with a root key that was named or unlocked for this process in its memory alone: so that newcomers are let in.
fn hold_root(home: &Home) -> Result<Home, Failure> {
    if !home.root.is_named() {
        return Ok(home.clone());
    }
    match SwarmRoot::open(home) {
        Ok(root) => Ok(home.with_root(root.held())),
        // A passphrase in the environment opens what is there.
        Err(failure) if failure.code == "no_root" && !home.root.is_elsewhere() => {
            Ok(home.with_root(RootSource::default()))
        }
        Err(failure) => Err(failure),
    }
}

/// Serves what another command orders, for as long as that command holds our stdin open.
async fn serve_order(screen: Screen) -> Result<(), Failure> {
    die_with_parent();
    let order = Order::parse(&apart(first_line).await??)?;
    let spec = order.spec()?;
    let entry = Models::at(&order.models)?.catalogue.hold(spec.model)?;
    let gate = Gate::new(order.swarm()?);
    let identity = NetIdentity { key: order.key()?, grant: order.grant()?, gate };
    let mut interrupt = Interrupt::listen()?;
    memory::keep_freed(order.settings.wipe_within.is_none());
    let bind = order.bind.map_or(Bind::Loopback, Bind::Address);
    let started = ServingPeer::start(&entry, spec, &order.settings, identity, bind, LentTo::Command);
    let peer = interrupt.or(started).await??;
    tell(screen, &peer, &order.swarm()?.to_string(), &entry.name, None)?;
    tokio::select! {
        _ = apart(wait_for_end) => {}
        () = interrupt.wait() => {}
    }
    peer.stop().await;
    Ok(())
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
