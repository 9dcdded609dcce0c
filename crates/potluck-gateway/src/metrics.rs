//! What is counted, under vLLM's names where it has one: its boards and autoscalers work unchanged.

use std::{collections::BTreeMap, fmt, sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, MetricEncoder, text::encode},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::answer::Ended;

/// Seconds to the first token.
const FIRST_TOKEN_BUCKETS: [f64; 15] =
    [0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 80.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finish {
    finished_reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Http {
    handler: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Path {
    path: &'static str,
}

/// How the connection to a peer runs at present.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeerPath {
    /// What kind of path it is: `direct`, say.
    pub kind: &'static str,
    /// Its round trip.
    pub rtt: Duration,
    /// Packets that were lost, of all that were sent: 0 to 1.
    pub loss: f64,
}

/// Connections to the peers that a gateway's answers come from.
pub trait Paths: fmt::Debug + Send + Sync + 'static {
    /// Those that stand, each peer once.
    fn paths(&self) -> Vec<PeerPath>;
}

/// The connections, looked at whenever they are asked for. Which peer is which is nobody's business who may only ask.
#[derive(Debug)]
struct PathsNow(Box<dyn Paths>);

impl Collector for PathsNow {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut kinds: BTreeMap<&str, (i64, f64, f64)> = BTreeMap::new();
        for PeerPath { kind, rtt, loss } in self.0.paths() {
            let (count, slowest, worst) = kinds.entry(kind).or_default();
            (*count, *slowest, *worst) = (*count + 1, slowest.max(rtt.as_secs_f64()), worst.max(loss));
        }
        let (peers, rtt, loss) = (Family::<Path, Gauge>::default(), OfPaths::default(), OfPaths::default());
        for (path, (count, slowest, worst)) in kinds {
            peers.get_or_create(&Path { path }).set(count);
            rtt.get_or_create(&Path { path }).set(slowest);
            loss.get_or_create(&Path { path }).set(worst);
        }
        let mut one = |name, help, metric: &dyn Fn(MetricEncoder<'_>) -> fmt::Result, kind| {
            metric(encoder.encode_descriptor(name, help, None, kind)?)
        };
        let gauge = MetricType::Gauge;
        one("potluck_path_peers", "Peers that are connected, by path", &|to| peers.encode(to), gauge)?;
        one("potluck_path_rtt_seconds", "Longest round trip to one of them", &|to| rtt.encode(to), gauge)?;
        one("potluck_path_loss_ratio", "Largest share of packets lost to one of them", &|to| loss.encode(to), gauge)
    }
}

/// A figure of the connections of each kind.
type OfPaths = Family<Path, Gauge<f64, AtomicU64>>;

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    resumed: Counter,
    repaired: Counter,
    running: Gauge,
    waiting: Gauge,
    prompt_tokens: Counter,
    reused_tokens: Counter,
    generated_tokens: Counter,
    finished: Family<Finish, Counter>,
    first_token: Histogram,
    requests: Family<Http, Counter>,
    lent_running: Gauge,
    lent_waiting: Gauge,
}

impl Metrics {
    pub(crate) fn new(paths: Option<Box<dyn Paths>>) -> Self {
        let mut registry = Registry::default();
        let metrics = (
            Gauge::default(),
            Gauge::default(),
            Counter::default(),
            Counter::default(),
            Counter::default(),
            Family::default(),
            Histogram::new(FIRST_TOKEN_BUCKETS),
            Family::default(),
        );
        let (running, waiting, prompt_tokens, reused_tokens, generated_tokens, finished, first_token, requests) =
            metrics;
        registry.register("vllm:num_requests_running", "Requests that a slot is at work on", running.clone());
        registry.register("vllm:num_requests_waiting", "Requests that wait for a slot", waiting.clone());
        registry.register("vllm:prompt_tokens", "Prompt tokens of the answers", prompt_tokens.clone());
        registry.register("vllm:prompt_tokens_cached", "Prompt tokens that caches held already", reused_tokens.clone());
        registry.register("vllm:generation_tokens", "Tokens of the answers", generated_tokens.clone());
        registry.register("vllm:request_success", "Answers, by why they ended", finished.clone());
        registry.register(
            "vllm:time_to_first_token_seconds",
            "From the first step to the first token",
            first_token.clone(),
        );
        let (lent_running, lent_waiting) = (Gauge::default(), Gauge::default());
        let what = "Requests under way for models that others lend";
        registry.register("potluck_lent_requests_running", what, lent_running.clone());
        let what = "Requests that wait their turn for models that others lend";
        registry.register("potluck_lent_requests_waiting", what, lent_waiting.clone());
        if let Some(paths) = paths {
            registry.register_collector(Box::new(PathsNow(paths)));
        }
        let (resumed, repaired) = (Counter::default(), Counter::default());
        registry.register("potluck_routes_lost", "Routes that were lost under an answer that went on", resumed.clone());
        let help = "Repairs of routes under an answer: others took the places of lost peers";
        registry.register("potluck_peers_replaced", help, repaired.clone());
        registry.register("http_requests", "Responses, by handler and status", requests.clone());
        Self {
            registry,
            resumed,
            repaired,
            running,
            waiting,
            prompt_tokens,
            reused_tokens,
            generated_tokens,
            finished,
            first_token,
            requests,
            lent_running,
            lent_waiting,
        }
    }

    pub(crate) fn running(&self, change: i64) {
        self.running.inc_by(change);
    }

    pub(crate) fn waiting(&self, requests: usize) {
        self.waiting.set(requests as i64);
    }

    pub(crate) fn lent(&self, running: usize, waiting: usize) {
        self.lent_running.set(running as i64);
        self.lent_waiting.set(waiting as i64);
    }

    /// Counts an answer of the gateway's own.
    pub(crate) fn answered(&self, ended: &Ended) {
        if ended.told.is_some() {
            return;
        }
        let outcome = &ended.outcome;
        use potluck_chain::sample::FinishReason::{Cancel, Length, Stop};
        let finished_reason = match outcome.finish_reason {
            Stop => "stop",
            Length => "length",
            Cancel => "abort",
        };
        self.finished.get_or_create(&Finish { finished_reason }).inc();
        self.prompt_tokens.inc_by(outcome.prompt_tokens as u64);
        self.reused_tokens.inc_by(outcome.reused_tokens as u64);
        self.generated_tokens.inc_by(outcome.completion_tokens as u64);
        self.resumed.inc_by(outcome.resumed as u64);
        self.repaired.inc_by(outcome.repairs.len() as u64);
        if outcome.completion_tokens > 0 {
            self.first_token.observe(outcome.ttft_s);
        }
    }

    pub(crate) fn responded(&self, handler: &'static str, status: u16) {
        self.requests.get_or_create(&Http { handler, status }).inc();
    }

    /// In Prometheus' text form.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
