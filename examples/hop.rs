//! What one hop costs: a step enters a peer, its stage does nothing, the step leaves.
//!
//! ```text
//! cargo run --example hop -p potluck-net -- [WIDTH] [STEPS]
//! ```
//! Two routes over peers that each run on a thread of their own, on loopback: one peer, and two. A step's time on the
//! second less its time on the first is one hop, frame in to frame out: read, decode, queue, stage, encode, write, and
//! the way to the next. Prints one JSON line, microseconds.

use std::{
    thread,
    time::{Duration, Instant},
};

use potluck_chain::{Deadlines, Hop, RemoteStage, SessionConfig, Submission};
use potluck_core::{
    CacheId, Hidden, Input, LayerRange, Logits, ModelId, Output, Rows, SecretKey, SessionId, SessionKey, Stage,
    StageCommand, StageError, StageShape, StageSpec, Step,
};
use potluck_grant::{Gate, Root};
use potluck_net::{Bind, Identity, Lan, NetDeadlines, Node, NodeConfig, Session, SessionEvent, StagePort, serve};
use potluck_peer::{Peer, PeerConfig};
use potluck_wire::{Codec, PeerAddress};
use tokio::sync::{mpsc, oneshot};

const FAR: u64 = 4_000_000_000;
const POSITIONS: u32 = 1 << 20;
const WARM_UP: u32 = 200;

type Error = Box<dyn std::error::Error>;

/// Passes on what enters it.
struct NoOp(StageShape);

impl Stage for NoOp {
    fn shape(&self) -> &StageShape {
        &self.0
    }

    fn open(&mut self, _cache: CacheId, _positions: u32) -> Result<(), StageError> {
        Ok(())
    }

    fn fork(&mut self, _from: CacheId, _to: CacheId, _positions: u32) -> Result<(), StageError> {
        Ok(())
    }

    fn close(&mut self, _cache: CacheId) {}

    fn forward(&mut self, steps: &mut [Step]) -> Vec<Result<Output, StageError>> {
        steps.iter_mut().map(|step| Ok(self.pass(step))).collect()
    }

    fn row(&mut self, _cache: CacheId, _row: u16) -> Result<Hidden, StageError> {
        Ok(Hidden(vec![0.0; self.0.vocabulary as usize]))
    }
}

impl NoOp {
    fn pass(&self, step: &mut Step) -> Output {
        let positions = step.positions(self.0.width);
        if self.0.spec.tail {
            return Output::Logits(vec![Logits::Top { largest: vec![(0, 1.0)], log_sum_exp: 1.0 }]);
        }
        match std::mem::replace(&mut step.input, Input::Tokens(vec![])) {
            Input::Hidden(hidden) => Output::Hidden(hidden),
            Input::Tokens(_) => Output::Hidden(Hidden(vec![0.5; positions * self.0.width as usize])),
        }
    }
}

fn shape(layers: LayerRange, total: u32, width: u32) -> StageShape {
    let (head, tail) = (layers.start() == 0, layers.end() == total);
    StageShape {
        spec: StageSpec { model: ModelId::from_bytes([1; 32]), layers, head, tail },
        width,
        vocabulary: 64,
        caches: 2,
        context: POSITIONS,
        cache_bytes_per_position: 0,
        weight_bytes: 0,
        exact: false,
    }
}

async fn node(n: u8) -> Result<Node, Error> {
    let root = Root::from_bytes(&[7; 32]);
    let key = SecretKey::from_bytes(&[n; 32]);
    let grant = root.grant(key.peer_id(), FAR)?.into_bytes();
    let identity = Identity { key, grant, gate: Gate::new(root.public()) };
    Ok(Node::bind(NodeConfig {
        identity,
        bind: Bind::Loopback,
        lan: Lan::Off,
        relay: None,
        deadlines: NetDeadlines::default(),
    })
    .await?)
}

/// A peer on a thread of its own, as a process would be. It stops when the sender is dropped.
fn peer(n: u8, shape: StageShape) -> Result<(PeerAddress, oneshot::Sender<()>), Error> {
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::spawn(move || {
        runtime.block_on(async {
            let Ok(node) = node(n).await else { return };
            let limit = Duration::from_secs(60);
            let config = PeerConfig { id: node.id(), sessions_per_client: 2, idle_max: limit, open_timeout: limit };
            let mut machine = Peer::new(config, node.identity().gate.clone());
            machine.add_stage(shape.clone());
            let _serving = serve(node.clone(), machine, vec![port(NoOp(shape))]);
            let _ = tell.send(node.address());
            let _ = stopped.await;
        });
    });
    Ok((told.recv()?, stop))
}

fn port(mut stage: NoOp) -> StagePort {
    let (commands, mut asked) = mpsc::channel::<StageCommand>(8);
    let (answered, replies) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Some(command) = asked.recv().await {
            if let Some(reply) = command.apply(&mut stage) {
                let _ = answered.send(reply).await;
            }
        }
    });
    StagePort { commands, replies }
}

/// A route over `peers` peers, and the session that is open on it.
struct Route {
    session: Session,
    position: u32,
    _peers: Vec<oneshot::Sender<()>>,
}

impl Route {
    async fn open(client: &Node, peers: u8, width: u32) -> Result<Self, Error> {
        let total = u32::from(peers);
        let mut route = vec![];
        let mut running = vec![];
        for (n, layers) in (0..peers).zip(LayerRange::new(0, total)?.split(peers.into())?) {
            let shape = shape(layers, total, width);
            let spec = shape.spec;
            let (address, stop) = peer(10 * peers + n, shape)?;
            running.push(stop);
            route.push(Hop::Remote(RemoteStage { spec, address, grant: vec![], speed: None }));
        }
        let config = SessionConfig {
            key: SessionKey { client: client.id(), id: SessionId::from_bytes([peers; 16]) },
            epoch: 0,
            positions: POSITIONS,
            width,
            vocabulary: 64,
            codec: Codec::F16,
            codec_otherwise: None,
            route,
            prefix: None,
            pad: false,
            exact: false,
            deadlines: Deadlines::default(),
        };
        let mut session = client.open(config, vec![]).await?;
        session.next().await?;
        let mut route = Self { session, position: 0, _peers: running };
        for _ in 0..WARM_UP {
            route.step().await?;
        }
        Ok(route)
    }

    /// One token down the route, and its answer.
    async fn step(&mut self) -> Result<Duration, Error> {
        let start = Instant::now();
        self.session.submit(Submission::chain(self.position, vec![1], Rows::Last, 1))?;
        self.position += 1;
        loop {
            if let SessionEvent::Answer(_) = self.session.next().await? {
                return Ok(start.elapsed());
            }
        }
    }
}

fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times.get(times.len() * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let width: u32 = arguments.next().map_or(Ok(576), |text| text.parse())?;
    let steps: usize = arguments.next().map_or(Ok(2_000), |text| text.parse())?;
    println!("{}", measure(width, steps).await?);
    Ok(())
}

async fn measure(width: u32, steps: usize) -> Result<String, Error> {
    let client = node(99).await?;
    let (mut one, mut two) = (Route::open(&client, 1, width).await?, Route::open(&client, 2, width).await?);
    let (mut short, mut long) = (vec![], vec![]);
    // Alternating, so that whatever else the machine does meets both.
    for _ in 0..steps {
        short.push(one.step().await?);
        long.push(two.step().await?);
    }
    let (short_p50, short_p99) = (percentile(&mut short, 50), percentile(&mut short, 99));
    let (long_p50, long_p99) = (percentile(&mut long, 50), percentile(&mut long, 99));
    let frame = potluck_wire::HEADER_BYTES + Codec::F16.bytes(1, width as usize);
    Ok(format!(
        "{{\"width\": {width}, \"steps\": {steps}, \"frame_bytes\": {frame}, \"one_peer_p50_us\": {short_p50:.0}, \
         \"one_peer_p99_us\": {short_p99:.0}, \"two_peers_p50_us\": {long_p50:.0}, \"two_peers_p99_us\": {long_p99:.0}, \
         \"hop_p50_us\": {:.0}}}",
        long_p50 - short_p50
    ))
}

/// `make test` runs it, briefly: an example that no longer works is no example.
#[tokio::test]
async fn it_prints_what_it_promises() {
    let line = measure(576, 50).await.unwrap_or_else(|error| panic!("{error}"));
    // A position of 576 values in f16, and its header.
    assert!(line.starts_with("{\"width\": 576, \"steps\": 50, \"frame_bytes\": 1177, "), "{line}");
    let number = |name: &str| {
        let after = line.split(&format!("\"{name}\": ")).nth(1).and_then(|rest| rest.split([',', '}']).next());
        after.and_then(|text| text.parse::<f64>().ok()).unwrap_or_else(|| panic!("no {name} in {line}"))
    };
    assert!(number("one_peer_p50_us") > 0.0 && number("two_peers_p99_us") >= number("two_peers_p50_us"), "{line}");
    assert!(number("hop_p50_us").is_finite(), "{line}");
}
