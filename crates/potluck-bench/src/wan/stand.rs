//! A test stand: the network, the peers on it, the client, and llama.cpp's servers. Kept over all rounds of one
//! setting.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    time::Duration,
};

use data_encoding::HEXLOWER;
use potluck_chain::Hop;
use potluck_core::StageSpec;
use potluck_engine::EngineSettings;
use potluck_store::Entry;
use potluck_wire::Codec;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use super::{
    contest::Case,
    measure,
    net::{Net, Setting},
    pace::Pace,
    process::ClientProcess,
    prompts::Prompt,
    rpc::Rpc,
    stages,
    words::{Answered, Ask, At, Generate, OpenChain, Place, Speculation, Told},
};
use crate::{
    Outcome,
    peers::{PeerProcess, Swarm},
};

/// The chain of the unsliced model, with the client.
pub(crate) const LOCAL: &str = "local";

/// How long a chain is tried to be opened again.
const REOPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// What all stands have in common.
pub(crate) struct Bench {
    /// The `potluck` whose peers are measured.
    pub(crate) potluck: PathBuf,
    /// The folder of llama.cpp's own tools.
    pub(crate) llama: Option<PathBuf>,
    /// The model's file, and the catalogue that has it.
    pub(crate) file: PathBuf,
    pub(crate) home: PathBuf,
    pub(crate) entry: Entry,
    pub(crate) settings: EngineSettings,
    /// Draft models, by what they are called.
    pub(crate) drafts: Vec<(String, Entry)>,
    /// What each stage was measured to take, by its layers and threads.
    pub(crate) paces: HashMap<(StageSpec, u16), Pace>,
    /// What the unsliced model says, by prompt and length.
    pub(crate) recordings: HashMap<(String, u32), (Vec<u32>, Answered)>,
}

/// What a stand has beside its client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wants {
    /// Peers with engines.
    pub(crate) real: bool,
    /// Peers that are paced.
    pub(crate) paced: bool,
    /// llama.cpp's servers, where there are any.
    pub(crate) rpc: bool,
    /// Sessions at once, of each chain and of llama.cpp's server.
    pub(crate) sessions: u16,
    /// Chains that are open at once over the same peers.
    pub(crate) chains: u16,
    /// Threads of each real engine, where they are to be fewer than this machine has cores.
    pub(crate) threads: Option<u16>,
}

/// A network with everything on it.
pub(crate) struct Stand {
    pub(crate) setting: Setting,
    pub(crate) client: ClientProcess,
    pub(crate) specs: Vec<StageSpec>,
    /// Of each stage, in the route's order, with the machine's cores to itself.
    pub(crate) paces: Vec<Pace>,
    /// Threads of each real engine.
    pub(crate) threads: u16,
    /// Whether llama.cpp's servers are there.
    pub(crate) has_rpc: bool,
    real: Vec<PeerProcess>,
    paced: Vec<PeerProcess>,
    /// Chains that lead over peers, and how they were opened: whether paced, the codec, the sessions.
    remote: BTreeMap<String, (bool, Codec, u16)>,
    _rpc: Option<Rpc>,
    /// Last: what runs in it ends first.
    pub(crate) net: Net,
}

impl Bench {
    /// What each stage takes; measured once, with nothing else at work.
    pub(crate) async fn paces(&mut self, specs: &[StageSpec], threads: u16) -> Outcome<Vec<Pace>> {
        for &spec in specs {
            if !self.paces.contains_key(&(spec, threads)) {
                let pace = measure::pace(&self.entry, spec, &with_threads(&self.settings, threads)).await?;
                let ms = |points: &[(u32, f64)], at: usize| points.get(at).map_or(0.0, |point| point.1 * 1e3);
                eprintln!(
                    "  layers {}, {threads} threads: {:.2} ms for a row, {:.2} for eight",
                    spec.layers,
                    ms(&pace.answering, 0),
                    ms(&pace.answering, 5)
                );
                self.paces.insert((spec, threads), pace);
            }
        }
        Ok(specs.iter().filter_map(|spec| self.paces.get(&(*spec, threads)).cloned()).collect())
    }

    /// Makes the network and starts everything on it.
    pub(crate) async fn stand(&mut self, setting: Setting, wants: Wants) -> Outcome<Stand> {
        let specs = stages::split(&self.entry, setting.peers)?;
        let all = self.settings.threads;
        let threads = wants.threads.unwrap_or(all);
        let paces = self.paces(&specs, all).await?;
        // Those of real ones are told beside them.
        self.paces(&specs, threads).await?;
        eprintln!("  {}", setting.words());
        let mut net = Net::new(setting.peers)?;
        let swarm = Swarm::new(&self.home);
        // As `potluck` does: branches of drafts run in one batch where few sessions share the memory.
        let of =
            |caches: u16| EngineSettings { caches, lanes: if caches <= 2 { 16 } else { 0 }, ..self.settings.clone() };
        let (settings, own) = (with_threads(&of(wants.sessions * wants.chains), threads), of(wants.sessions));
        let mut client = ClientProcess::start(net.client(), &swarm, &self.entry.id.to_string(), &own).await?;
        let rpc = match (&self.llama, wants.rpc) {
            (Some(folder), true) => Some(Rpc::start(&net, setting.peers, folder, &self.file, &own, &mut client).await?),
            _ => None,
        };
        net.slow_down(&setting)?;
        // Its sockets are of the line that is gone.
        drop(client);
        let client = ClientProcess::start(net.client(), &swarm, &self.entry.id.to_string(), &own).await?;
        let (mut real, mut paced) = (Vec::new(), Vec::new());
        let inner = specs.iter().zip(&paces).filter(|(spec, _)| !spec.head && !spec.tail);
        for (at, (&spec, pace)) in inner.enumerate() {
            if wants.real {
                let mut command = Command::from(net.peer(at).command(&self.potluck));
                command.args(["serve", "--embedded", "--json"]);
                let mut order = swarm.order(spec, &settings)?;
                order.bind = Some(net.address(at, 0));
                real.push(swarm.start_by(command, order).await?);
            }
            if wants.paced {
                let mut command = Command::from(net.peer(at).command(std::env::current_exe()?));
                command.arg("wan-paced-peer");
                let mut order = swarm.order(spec, &settings)?;
                (order.bind, order.pace) = (Some(net.address(at, 1)), Some(pace.clone()));
                paced.push(swarm.start_by(command, order).await?);
            }
        }
        Ok(Stand {
            setting,
            client,
            specs,
            paces,
            threads,
            has_rpc: rpc.is_some(),
            real,
            paced,
            remote: BTreeMap::new(),
            _rpc: rpc,
            net,
        })
    }

    /// What the unsliced model says to these prompts, from one engine with the client.
    pub(crate) async fn record(
        &mut self,
        stand: &mut Stand,
        prompts: &[Prompt],
        max_tokens: u32,
    ) -> Outcome<Vec<Case>> {
        let known = |bench: &Self, prompt: &Prompt| bench.recordings.contains_key(&(prompt.id.clone(), max_tokens));
        let missing: Vec<&Prompt> = prompts.iter().filter(|prompt| !known(self, prompt)).collect();
        if !missing.is_empty() {
            stand.open_local(self).await?;
            let texts = missing.iter().map(|prompt| prompt.text.clone()).collect();
            let Told::Prompts(tokens) = stand.client.ask(&Ask::Prompts { texts }).await? else {
                return Err("the client gave no tokens".into());
            };
            for (prompt, tokens) in missing.into_iter().zip(tokens) {
                let recorded = stand.local(tokens.clone(), max_tokens).await?;
                self.recordings.insert((prompt.id.clone(), max_tokens), (tokens, recorded));
            }
            stand.close(LOCAL).await?;
        }
        let case = |prompt: &Prompt| {
            let (tokens, recorded) = self.recordings.get(&(prompt.id.clone(), max_tokens))?;
            Some(Case { id: prompt.id.clone(), prompt: tokens.clone(), recorded: recorded.clone() })
        };
        Ok(prompts.iter().filter_map(case).collect())
    }
}

impl Stand {
    /// Opens sessions over the peers that have engines, or over the paced ones, with own ends of the same kind.
    pub(crate) async fn open(&mut self, chain: &str, paced: bool, codec: Codec, sessions: u16) -> Outcome<()> {
        let mut peers = if paced { self.paced.iter() } else { self.real.iter() };
        let mut route = Vec::with_capacity(self.specs.len());
        for (&spec, pace) in self.specs.iter().zip(&self.paces) {
            route.push(match spec.head || spec.tail {
                true => own(spec, paced.then(|| pace.clone())),
                false => remote(&peers.next().ok_or("there are too few peers")?.hop)?,
            });
        }
        let positions = self.paces.first().map_or(0, |pace| pace.context);
        self.remote.insert(chain.to_owned(), (paced, codec, sessions));
        let (chain, codec) = (chain.to_owned(), codec.to_string());
        let threads = (!paced).then_some(self.threads);
        self.open_route(OpenChain { chain, model: None, route, codec, positions, sessions, threads }).await
    }

    /// Opens a chain again that has lost a peer. The others find out by silence, and have no room for it before.
    pub(crate) async fn reopen(&mut self, chain: &str) -> Outcome<()> {
        let Some((paced, codec, sessions)) = self.remote.get(chain).copied() else {
            return Err(format!("{chain} leads over no peers").into());
        };
        self.close(chain).await?;
        let deadline = Instant::now() + REOPEN_TIMEOUT;
        loop {
            match self.open(chain, paced, codec, sessions).await {
                Err(_) if Instant::now() < deadline => sleep(Duration::from_secs(1)).await,
                opened => return opened,
            }
        }
    }

    /// Opens sessions over any route.
    async fn open_route(&mut self, open: OpenChain) -> Outcome<()> {
        self.client.ask(&Ask::Open(open)).await.map(drop)
    }

    /// Opens the unsliced model, in one engine with the client.
    pub(crate) async fn open_local(&mut self, bench: &Bench) -> Outcome<()> {
        let route = vec![own(stages::whole(&bench.entry)?, None)];
        self.open_route(one(LOCAL, route, bench.settings.context)).await
    }

    /// Opens a draft model, in one engine with the client: with all cores, or with the threads that real engines have.
    pub(crate) async fn open_draft(&mut self, name: &str, entry: &Entry, paced: bool) -> Outcome<()> {
        let route = vec![own(stages::whole(entry)?, None)];
        let positions = self.paces.first().map_or(0, |pace| pace.context);
        let (model, threads) = (Some(entry.id.to_string()), (!paced).then_some(self.threads));
        self.open_route(OpenChain { model, threads, ..one(name, route, positions) }).await
    }

    /// How hidden states travel on a chain; none where it leads over no peers.
    pub(crate) fn codec(&self, chain: &str) -> Option<Codec> {
        self.remote.get(chain).map(|(_, codec, _)| *codec)
    }

    /// Ends the sessions of a name.
    pub(crate) async fn close(&mut self, chain: &str) -> Outcome<()> {
        self.client.ask(&Ask::Close { chain: chain.to_owned() }).await.map(drop)
    }

    /// By how much the unsliced model's likeliest token is ahead after that text.
    pub(crate) async fn margin(&mut self, text: Vec<u32>) -> Outcome<Option<f32>> {
        Ok(self.local(text, 1).await?.margins.first().copied())
    }

    async fn local(&mut self, prompt: Vec<u32>, max_tokens: u32) -> Outcome<Answered> {
        let generate = Generate {
            chain: LOCAL.into(),
            prompts: vec![prompt],
            max_tokens,
            ignore_eos: false,
            chunk: None,
            in_flight: None,
            margins: true,
            recordings: Vec::new(),
            speculation: Speculation::default(),
        };
        self.client.generate(generate).await?.pop().ok_or_else(|| "no answer came".into())
    }
}

fn with_threads(settings: &EngineSettings, threads: u16) -> EngineSettings {
    EngineSettings { threads, threads_batch: threads, ..settings.clone() }
}

/// One session over a route of one engine.
fn one(chain: &str, route: Vec<Place>, positions: u32) -> OpenChain {
    let (chain, codec) = (chain.to_owned(), Codec::F16.to_string());
    OpenChain { chain, model: None, route, codec, positions, sessions: 1, threads: None }
}

/// A stage with the client.
pub(crate) fn own(spec: StageSpec, pace: Option<Pace>) -> Place {
    Place { layers: spec.layers, head: spec.head, tail: spec.tail, at: None, pace }
}

fn remote(hop: &Hop) -> Outcome<Place> {
    let Hop::Remote(stage) = hop else { return Err("a peer is not with the client".into()) };
    let at = At {
        peer: stage.address.peer.to_string(),
        addresses: stage.address.addresses.clone(),
        grant: HEXLOWER.encode(&stage.grant),
    };
    let StageSpec { layers, head, tail, .. } = stage.spec;
    Ok(Place { layers, head, tail, at: Some(at), pace: None })
}
