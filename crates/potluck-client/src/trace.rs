//! Where an answer's time went: what each stage did, and what was spent elsewhere.

use std::time::{Duration, Instant};

use potluck_core::{Account, LayerRange, PeerId};
use serde::Serialize;

/// What one stage of a route did for a session.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageAccount {
    /// The peer's id, or `self`.
    pub peer: String,
    /// Its layers, half open.
    pub layers: [u32; 2],
    /// What it did.
    #[serde(flatten)]
    pub account: Account,
}

impl StageAccount {
    /// Of that peer; none: of this machine.
    pub fn new(peer: Option<PeerId>, layers: LayerRange, account: Account) -> Self {
        let peer = peer.map_or_else(|| "self".into(), |peer| peer.to_string());
        Self { peer, layers: [layers.start(), layers.end()], account }
    }
}

/// Where an answer's time went, where the request asked for it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trace {
    /// Until the prompt's last step was answered. Several steps are in flight, so stages work at the same time.
    pub prefill: Phase,
    /// From then on: a step at a time, or several where drafts follow what they rest on.
    pub decode: Phase,
}

/// A part of an answer's time.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Phase {
    /// Seconds that it took.
    pub seconds: f64,
    /// Seconds of these in which the client chose tokens.
    pub client_s: f64,
    /// Steps of the answer that left while another was under way, so that stages worked at the same time. A prompt's are not counted.
    pub overlapping: u64,
    /// What each stage did, in the route's order. Peers speak for themselves: it explains, it proves nothing.
    pub stages: Vec<StageAccount>,
}

impl Phase {
    /// Seconds that neither a stage nor the client accounts for: the way between them. Of no meaning where stages worked at
    /// the same time.
    pub fn elsewhere_s(&self) -> f64 {
        (self.seconds - self.busy_s()).max(0.0)
    }

    /// Seconds that the stages and the client account for: more than passed, where they worked at the same time.
    pub fn busy_s(&self) -> f64 {
        let stages: u64 = self.stages.iter().map(|stage| stage.account.busy_us()).fold(0, u64::saturating_add);
        self.client_s + stages as f64 / 1e6
    }
}

/// A trace in the making.
#[derive(Debug)]
pub(crate) struct Tracing {
    before: Vec<StageAccount>,
    prefilled: Option<(Phase, Vec<StageAccount>, Instant)>,
    client: Duration,
    overlapping: u64,
}

impl Tracing {
    /// The stages' accounts before the first step.
    pub(crate) fn new(before: Vec<StageAccount>) -> Self {
        Self { before, prefilled: None, client: Duration::ZERO, overlapping: 0 }
    }

    /// The prompt took so long, and left these accounts.
    pub(crate) fn prefilled(&mut self, seconds: f64, accounts: Vec<StageAccount>) {
        let phase = Phase { seconds, stages: difference(&accounts, &self.before), ..Phase::default() };
        self.prefilled = Some((phase, accounts, Instant::now()));
    }

    /// The client took so long to choose a token.
    pub(crate) fn chose(&mut self, time: Duration) {
        self.client += time;
    }

    /// A step left while another was under way.
    pub(crate) fn overlaps(&mut self) {
        self.overlapping += 1;
    }

    /// When decoding began, once it has.
    pub(crate) fn decoding_since(&self) -> Option<Instant> {
        self.prefilled.as_ref().map(|(.., since)| *since)
    }

    /// Decoding took so long, and left these accounts.
    pub(crate) fn finish(self, seconds: f64, accounts: &[StageAccount]) -> Option<Trace> {
        let (prefill, before, _) = self.prefilled?;
        let stages = difference(accounts, &before);
        let (client_s, overlapping) = (self.client.as_secs_f64(), self.overlapping);
        Some(Trace { prefill, decode: Phase { seconds, client_s, overlapping, stages } })
    }
}

fn difference(after: &[StageAccount], before: &[StageAccount]) -> Vec<StageAccount> {
    let between = |(after, before): (&StageAccount, &StageAccount)| StageAccount {
        account: after.account - before.account,
        ..after.clone()
    };
    after.iter().zip(before).map(between).collect()
}
