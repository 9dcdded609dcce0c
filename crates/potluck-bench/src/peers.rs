//! Peers in processes of their own, and a session over them.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant, SystemTime},
};

use data_encoding::HEXLOWER;
use potluck_chain::{Deadlines, Hop, RemoteStage, SessionConfig, Submission};
use potluck_core::{Logits, Rows, SecretKey, SessionId, SessionKey, StageSpec};
use potluck_engine::EngineSettings;
use potluck_grant::{Caveats, Gate, Role, Root};
use potluck_net::{Bind, Identity, Lan, NetDeadlines, Node, NodeConfig, OwnPort, Session, SessionEvent};
use potluck_wire::{Codec, PeerAddress};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    time::timeout,
};

use crate::{
    Outcome,
    model::Model,
    work::{Contestant, DECODE, PREFILL, Timed, Work, prompt},
};

/// How long a peer may take to load.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Seconds that a grant of a measurement holds.
const GRANT_SECONDS: u64 = 24 * 3_600;

/// What a peer is told on its standard input: the form that `potluck serve --embedded` reads.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) key: String,
    pub(crate) swarm: String,
    pub(crate) grant: String,
    pub(crate) models: std::path::PathBuf,
    pub(crate) model: String,
    #[serde(flatten)]
    pub(crate) part: OrderedPart,
    pub(crate) settings: EngineSettings,
    /// Where it listens; none: on loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bind: Option<SocketAddr>,
    /// Paced, instead of an engine. `potluck` knows nothing of it.
    #[cfg(target_os = "linux")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pace: Option<crate::wan::Pace>,
}

/// Which part of the model a peer serves.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct OrderedPart {
    pub(crate) layers: potluck_core::LayerRange,
    pub(crate) head: bool,
    pub(crate) tail: bool,
}

/// What a peer answers when it serves.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) id: String,
    pub(crate) addresses: Vec<String>,
}

/// A swarm that lasts as long as a measurement.
#[derive(Debug)]
pub(crate) struct Swarm {
    root: Root,
    home: std::path::PathBuf,
    /// Whether grants have a limit that is counted at each step, and never reached.
    counted: bool,
}

/// A peer's process, which ends when its standard input does; killed where it is dropped.
#[derive(Debug)]
pub(crate) struct PeerProcess {
    pub(crate) child: Child,
    _stdin: ChildStdin,
    /// Its place on a route.
    pub(crate) hop: Hop,
}

impl Swarm {
    pub(crate) fn new(home: &Path) -> Self {
        Self { root: Root::generate(), home: home.to_owned(), counted: false }
    }

    /// Whose grants have a limit that is counted at each step, and never reached.
    #[cfg(feature = "undefended")]
    pub(crate) fn counted(home: &Path) -> Self {
        Self { counted: true, ..Self::new(home) }
    }

    /// Starts a process that reads an [`Order`], and waits until it serves.
    pub(crate) async fn start(
        &self,
        program: &Path,
        args: &[&str],
        spec: StageSpec,
        settings: &EngineSettings,
    ) -> Outcome<PeerProcess> {
        let mut command = Command::new(program);
        command.args(args);
        self.start_by(command, self.order(spec, settings)?).await
    }

    /// What a new peer is told, on loopback.
    pub(crate) fn order(&self, spec: StageSpec, settings: &EngineSettings) -> Outcome<Order> {
        let key = new_key()?;
        Ok(Order {
            grant: HEXLOWER.encode(&self.grant(&key)?),
            key: HEXLOWER.encode(&key.to_bytes()),
            swarm: self.root.public().to_string(),
            models: self.models(),
            model: spec.model.to_string(),
            part: OrderedPart { layers: spec.layers, head: spec.head, tail: spec.tail },
            settings: settings.clone(),
            bind: None,
            #[cfg(target_os = "linux")]
            pace: None,
        })
    }

    /// Where the catalogue lies.
    pub(crate) fn models(&self) -> std::path::PathBuf {
        self.home.join("models")
    }

    /// Starts the process by this command, hands it the order, and waits until it serves.
    pub(crate) async fn start_by(&self, mut command: Command, order: Order) -> Outcome<PeerProcess> {
        let OrderedPart { layers, head, tail } = order.part;
        let spec = StageSpec { model: order.model.parse()?, layers, head, tail };
        let grant = HEXLOWER.decode(order.grant.as_bytes())?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a peer has no pipes".into());
        };
        stdin.write_all((serde_json::to_string(&order)? + "\n").as_bytes()).await?;
        stdin.flush().await?;
        let mut line = String::new();
        timeout(READY_TIMEOUT, BufReader::new(stdout).read_line(&mut line)).await??;
        let ready: Ready = serde_json::from_str(&line).map_err(|_| format!("a peer said {line:?}"))?;
        let address = PeerAddress { peer: ready.id.parse()?, addresses: ready.addresses, relay: None };
        Ok(PeerProcess { child, _stdin: stdin, hop: Hop::Remote(RemoteStage { spec, address, grant, speed: None }) })
    }

    /// A client of the swarm, with a session that is ready.
    pub(crate) async fn open(&self, config: Opening, route: Vec<Hop>, own: Vec<OwnPort>) -> Outcome<(Node, Session)> {
        let key = new_key()?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| error.to_string())?;
        let session = SessionConfig {
            key: SessionKey { client: key.peer_id(), id: SessionId::from_bytes(id) },
            epoch: 0,
            positions: config.positions,
            width: config.width,
            vocabulary: config.vocabulary,
            codec: config.codec,
            codec_otherwise: None,
            route,
            prefix: None,
            pad: false,
            exact: false,
            deadlines: Deadlines::default(),
        };
        let identity = Identity { grant: self.grant(&key)?, key, gate: Gate::new(self.root.public()) };
        let deadlines = NetDeadlines::default();
        let node =
            Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines }).await?;
        let mut session = node.open(session, own).await?;
        while !matches!(session.next().await?, SessionEvent::Ready) {}
        Ok((node, session))
    }

    /// What it is called.
    pub(crate) fn id(&self) -> String {
        self.root.public().to_string()
    }

    /// A grant for that key.
    pub(crate) fn grant(&self, key: &SecretKey) -> Outcome<Vec<u8>> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let caveats = Caveats {
            role: Some(Role::Member),
            until: Some(now + GRANT_SECONDS),
            tokens_per_day: self.counted.then_some(1 << 40),
            ..Caveats::default()
        };
        Ok(self.root.grant_as(key.peer_id(), &caveats)?.into_bytes())
    }
}

/// What a session is opened with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opening {
    pub(crate) positions: u32,
    pub(crate) width: u32,
    pub(crate) vocabulary: u32,
    pub(crate) codec: Codec,
}

/// The model over peers on this machine, each with an engine child.
#[derive(Debug)]
pub(crate) struct PeerChain {
    session: Session,
    _node: Node,
    /// The peers, in the order of their layers.
    pub(crate) peers: Vec<PeerProcess>,
}

impl PeerChain {
    /// Starts `stages` peers of the program `potluck` and opens a session over them.
    pub(crate) async fn start(
        potluck: &Path,
        home: &Path,
        model: &Model,
        stages: usize,
        settings: &EngineSettings,
    ) -> Outcome<Self> {
        let swarm = Swarm::new(home);
        Self::start_in(swarm, (potluck, &["serve", "--embedded", "--json"]), model, stages, settings).await
    }

    /// The same in this swarm, of any program that reads such an order.
    pub(crate) async fn start_in(
        swarm: Swarm,
        (program, args): (&Path, &[&str]),
        model: &Model,
        stages: usize,
        settings: &EngineSettings,
    ) -> Outcome<Self> {
        let mut peers = Vec::new();
        for spec in model.split(stages)? {
            peers.push(swarm.start(program, args, spec, settings).await?);
        }
        let opening = Opening {
            positions: settings.context,
            width: model.entry.manifest.width(),
            vocabulary: potluck_model::facts::vocabulary(&model.entry.manifest),
            codec: Codec::F16,
        };
        let route = peers.iter().map(|peer| peer.hop.clone()).collect();
        let (node, session) = swarm.open(opening, route, Vec::new()).await?;
        Ok(Self { session, _node: node, peers })
    }

    /// Runs `tokens` as positions `start..`; the likeliest next token.
    async fn step(&mut self, start: u32, tokens: Vec<u32>) -> Outcome<u32> {
        self.session.submit(Submission::chain(start, tokens, Rows::Last, 1))?;
        loop {
            if let SessionEvent::Answer(answer) = self.session.next().await? {
                return match answer.rows.last() {
                    Some(Logits::Top { largest, .. }) if !largest.is_empty() => Ok(largest[0].0),
                    _ => Err("a step without logits".into()),
                };
            }
        }
    }
}

impl Contestant for PeerChain {
    fn name(&self, _: Work) -> String {
        format!("{} peers", self.peers.len())
    }

    async fn run(&mut self, work: Work) -> Outcome<Timed> {
        self.step(0, prompt()[..8].to_vec()).await?;
        let tokens = prompt();
        let mut token = tokens[0];
        if work == Work::Prefill {
            let start = Instant::now();
            self.step(0, tokens).await?;
            return Ok(Timed::of(vec![start.elapsed().as_secs_f64()], PREFILL));
        }
        let mut steps = Vec::with_capacity(DECODE as usize);
        for position in 0..DECODE {
            let start = Instant::now();
            token = self.step(position, vec![token]).await?;
            steps.push(start.elapsed().as_secs_f64());
        }
        Ok(Timed::of(steps, 1))
    }
}

pub(crate) fn new_key() -> Outcome<SecretKey> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
    Ok(SecretKey::from_bytes(&bytes))
}
