//! A hop by itself: stages that compute nothing, frame in to frame out.

use std::{
    io::{BufRead, stdin},
    path::Path,
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use potluck_chain::{Hop, OwnStage, Submission};
use potluck_core::{
    CacheId, Hidden, Input, LayerRange, Logits, ModelId, Output, Rows, SecretKey, Stage, StageCommand, StageError,
    StageReply, StageShape, StageSpec, Step,
};
use potluck_engine::EngineSettings;
use potluck_grant::Gate;
use potluck_net::{
    Bind, Identity, Lan, NetDeadlines, Node, NodeConfig, OwnPort, Session, SessionEvent, StagePort, serve,
};
use potluck_peer::{Peer, PeerConfig};
use potluck_wire::Codec;
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    Outcome,
    peers::{Opening, Order, PeerProcess, Swarm},
    row::{Row, quantile},
};

/// Values in a hidden state: SmolLM2-135M's.
const WIDTH: u32 = 576;
const VOCABULARY: u32 = 64;
const POSITIONS: u32 = 1_024;

/// Longest that one hop may take.
const HOP_MS_MAX: f64 = 0.5;

/// Steps in a round, and rounds.
const STEPS: u32 = 500;
const ROUNDS: usize = 8;

/// Steps that are not measured.
const WARM_UP: u32 = 100;

/// Gives back what it is given.
#[derive(Debug)]
struct Noop(StageShape);

impl Noop {
    fn new(spec: StageSpec) -> Self {
        Self(StageShape {
            spec,
            width: WIDTH,
            vocabulary: VOCABULARY,
            caches: 4,
            context: POSITIONS,
            cache_bytes_per_position: 0,
            weight_bytes: 0,
            exact: false,
        })
    }

    fn pass(&self, step: &mut Step) -> Output {
        let hidden = match std::mem::replace(&mut step.input, Input::Tokens(Vec::new())) {
            Input::Hidden(hidden) => hidden,
            Input::Tokens(tokens) => Hidden(vec![1.5; tokens.len() * WIDTH as usize]),
        };
        match (self.0.spec.tail, step.rows) {
            (false, _) => Output::Hidden(hidden),
            (true, Rows::None) => Output::Logits(Vec::new()),
            (true, _) => Output::Logits(vec![Logits::Top { largest: vec![(1, 0.0)], log_sum_exp: 0.0 }]),
        }
    }
}

impl Stage for Noop {
    fn shape(&self) -> &StageShape {
        &self.0
    }

    fn open(&mut self, _: CacheId, _: u32) -> Result<(), StageError> {
        Ok(())
    }

    fn fork(&mut self, _: CacheId, _: CacheId, _: u32) -> Result<(), StageError> {
        Ok(())
    }

    fn close(&mut self, _: CacheId) {}

    fn forward(&mut self, steps: &mut [Step]) -> Vec<Result<Output, StageError>> {
        steps.iter_mut().map(|step| Ok(self.pass(step))).collect()
    }

    fn row(&mut self, _: CacheId, row: u16) -> Result<Hidden, StageError> {
        Err(StageError::BadInput(format!("row {row} was not kept")))
    }
}

/// Both ends of the way to a stage that runs as a task.
fn run_as_task(mut stage: Noop) -> StagePort {
    let (commands, mut asked) = mpsc::channel::<StageCommand>(64);
    let (answered, replies) = mpsc::channel::<StageReply>(64);
    tokio::spawn(async move {
        while let Some(command) = asked.recv().await {
            if let Some(reply) = command.apply(&mut stage)
                && answered.send(reply).await.is_err()
            {
                return;
            }
        }
    });
    StagePort { commands, replies }
}

/// The process of a peer whose stage computes nothing: reads an order, says where it is, serves until its standard
/// input ends.
pub(crate) async fn peer() -> Outcome<()> {
    let mut line = String::new();
    stdin().lock().read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    let key = HEXLOWER.decode(order.key.as_bytes())?;
    let key = SecretKey::from_bytes(key.as_slice().try_into()?);
    let gate = Gate::new(order.swarm.parse()?);
    let spec = StageSpec {
        model: order.model.parse()?,
        layers: order.part.layers,
        head: order.part.head,
        tail: order.part.tail,
    };
    let stage = Noop::new(spec);
    let config = PeerConfig {
        id: key.peer_id(),
        sessions_per_client: 4,
        idle_max: Duration::from_secs(600),
        open_timeout: Duration::from_secs(10),
    };
    let mut machine = Peer::new(config, gate.clone());
    machine.add_stage(stage.shape().clone());
    let identity = Identity { key, grant: HEXLOWER.decode(order.grant.as_bytes())?, gate };
    let deadlines = NetDeadlines::default();
    let node = Node::bind(NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines }).await?;
    let address = node.address();
    println!("{}", json!({ "id": address.peer.to_string(), "addresses": address.addresses }));
    let serving = serve(node, machine, vec![run_as_task(stage)]);
    let end = tokio::task::spawn_blocking(|| std::io::copy(&mut stdin().lock(), &mut std::io::sink()));
    end.await??;
    serving.stop().await;
    Ok(())
}

/// Own ends and `peers` between them: every frame to and from a peer carries a hidden state.
struct NoopChain {
    session: Session,
    _node: Node,
    _peers: Vec<PeerProcess>,
}

impl NoopChain {
    async fn start(home: &Path, peers: u32, codec: Codec) -> Outcome<Self> {
        let swarm = Swarm::new(home);
        let program = std::env::current_exe()?;
        let stages = peers + 2;
        let (mut route, mut own, mut processes) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..stages {
            let layers = LayerRange::new(at, at + 1)?;
            let (head, tail) = (at == 0, at + 1 == stages);
            let spec = StageSpec { model: ModelId::from_bytes([0; 32]), layers, head, tail };
            if head || tail {
                let StagePort { commands, replies } = run_as_task(Noop::new(spec));
                own.push(OwnPort { hop: at as usize, commands, replies });
                route.push(Hop::Own(OwnStage { spec, cache: CacheId(0) }));
            } else {
                let process = swarm.start(&program, &["noop-peer"], spec, &EngineSettings::default()).await?;
                route.push(process.hop.clone());
                processes.push(process);
            }
        }
        let opening = Opening { positions: POSITIONS, width: WIDTH, vocabulary: VOCABULARY, codec };
        let (node, session) = swarm.open(opening, route, own).await?;
        Ok(Self { session, _node: node, _peers: processes })
    }

    /// Milliseconds from a step's start to its answer, for each of `count` steps of one position.
    async fn steps(&mut self, count: u32) -> Outcome<Vec<f64>> {
        let mut times = Vec::with_capacity(count as usize);
        for position in 0..count {
            let start = Instant::now();
            self.session.submit(Submission::chain(position, vec![1], Rows::Last, 1))?;
            while !matches!(self.session.next().await?, SessionEvent::Answer(_)) {}
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    }
}

/// What one hop takes: there and back through one peer, and what a second peer adds.
pub(crate) async fn time(home: &Path) -> Outcome<Vec<Row>> {
    let mut one = NoopChain::start(home, 1, Codec::F16).await?;
    let mut two = NoopChain::start(home, 2, Codec::F16).await?;
    one.steps(WARM_UP).await?;
    two.steps(WARM_UP).await?;
    let (mut through, mut added, mut worst) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let ones = one.steps(STEPS).await?;
        let p50 = quantile(&ones, 0.5);
        through.push(p50);
        worst.push(quantile(&ones, 0.99));
        added.push(quantile(&two.steps(STEPS).await?, 0.5) - p50);
    }
    let setting = format!("one position of {WIDTH} values, f16, processes on loopback, p50 of {STEPS} steps a round");
    let row = |name: &str, times: &[f64], what: String| {
        let ratios: Vec<f64> = times.iter().map(|time| HOP_MS_MAX / time).collect();
        Row::of(name, &ratios, times, "ms").goal(1.0).setting(format!("{what}; {setting}; bound {HOP_MS_MAX} ms"))
    };
    let p99 = quantile(&worst, 0.5);
    Ok(vec![
        row("hop_there_and_back", &through, format!("client to peer to client, two transfers (p99 {p99:.3} ms)")),
        row("hop_added_by_a_peer", &added, "a route of two peers less a route of one".into()),
    ])
}

/// Bytes of a hop of one position, headers and credit included.
pub(crate) async fn bytes(home: &Path) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, codec) in [("f16", Codec::F16), ("f32", Codec::F32)] {
        let mut chain = NoopChain::start(home, 1, codec).await?;
        chain.steps(WARM_UP).await?;
        let (written, read) = chain.session.bytes();
        chain.steps(STEPS).await?;
        let now = chain.session.bytes();
        let hops = 2.0 * f64::from(STEPS);
        let bytes = (now.0 - written + now.1 - read) as f64 / hops;
        let values = f64::from(WIDTH) * if codec == Codec::F16 { 2.0 } else { 4.0 };
        let setting =
            format!("{WIDTH} values a position, frame header and credit included, QUIC's own not; values ÷ all");
        rows.push(Row::of(&format!("hop_bytes_{name}"), &[values / bytes], &[bytes], "bytes").setting(setting));
    }
    Ok(rows)
}
