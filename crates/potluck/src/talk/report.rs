//! What came of an answer: over whom it went, and how fast.

use potluck_chain::plan::Sees;
use potluck_client::{DraftCounts, Outcome};
use potluck_core::LayerRange;
use potluck_wire::Codec;
use serde::Serialize;
use serde_json::Value;

use super::{AnyChain, Talk};
use crate::speeds::{self, By};

/// One stage of the route that an answer took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RouteStage {
    /// The peer's id.
    pub(crate) peer: String,
    /// Its layers, half open.
    pub(crate) layers: [u32; 2],
    /// How it is reached: `self`, `loopback`, `direct` or `relay`.
    pub(crate) path: &'static str,
    /// What whoever runs it can read of the conversation.
    pub(crate) sees: Sees,
    /// Milliseconds there and back, from the client.
    pub(crate) rtt_ms: f64,
    /// The id of the peer that stands by for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) standby: Option<String>,
}

impl RouteStage {
    /// A stage on this machine itself.
    pub(crate) fn own(layers: LayerRange) -> Self {
        let layers = [layers.start(), layers.end()];
        Self { peer: "self".into(), layers, path: "self", sees: Sees::Own, rtt_ms: 0.0, standby: None }
    }
}

impl Talk {
    /// The route, for `--json`.
    pub(crate) fn route_json(&self) -> Value {
        serde_json::to_value(self.route()).unwrap_or_default()
    }

    /// How hidden states travel, for `--json`; null where they do not.
    pub(crate) fn codec_json(&self) -> Value {
        self.session.chain().codec().map(|codec| codec.to_string()).into()
    }

    /// The route as it is now.
    pub(crate) fn route(&self) -> Vec<RouteStage> {
        self.session.chain().route()
    }

    /// Keeps how fast this machine was, where it answered alone: the next plan is the better for it.
    pub(crate) fn remember_speed(&self, outcome: &Outcome) {
        // What was lost on the way is nobody's speed.
        let alone = matches!(self.session.chain(), AnyChain::Local(..)) && outcome.resumed == 0;
        let (decode, prefill) = (outcome.decode_tokens_per_s, outcome.prefill_tokens_per_s);
        if alone && outcome.drafts.drafted == 0 && decode > 0.0 && prefill > 0.0 {
            let us = (1e6 / decode, 1e6 / prefill);
            if let Err(failure) = speeds::remember(&self.home, &self.entry, &self.settings, By::Answer, us) {
                tracing::info!(%failure.message, "the speed was not kept");
            }
        }
    }

    /// The route and the rates, for people.
    pub(crate) fn report(&self, outcome: &Outcome) -> String {
        format!("\n{}\n{}", self.show_route(), rates(outcome))
    }

    /// The route, for people.
    pub(crate) fn show_route(&self) -> String {
        let stage = |stage: RouteStage| {
            let [from, to] = stage.layers;
            let peer: String = stage.peer.chars().take(10).collect();
            match stage.path {
                "self" => format!("  {from}..{to}  this machine"),
                path => {
                    let by =
                        stage.standby.map(|peer| format!("  {} stands by", peer.chars().take(10).collect::<String>()));
                    let by = by.unwrap_or_default();
                    format!("  {from}..{to}  {peer}  {path} {:.2} ms  {}{by}", stage.rtt_ms, stage.sees.words())
                }
            }
        };
        let stages: Vec<_> = self.route().into_iter().map(stage).collect();
        let verdict = if self.verdict.is_empty() { String::new() } else { format!("\n  {}", self.verdict) };
        // As ever, unless something else was said or proven.
        let other = self.session.chain().codec().filter(|codec| *codec != Codec::F16);
        let travel = other.map(|codec| format!("\n  hidden states travel as {codec}"));
        format!("route\n{}{}{verdict}", stages.join("\n"), travel.unwrap_or_default())
    }
}

/// How fast an answer was.
pub(crate) fn rates(outcome: &Outcome) -> String {
    let hop = match outcome.bytes_per_position {
        0.0 => String::new(),
        bytes => format!(", {bytes:.0} bytes a token on the wire"),
    };
    let drafts = match outcome.drafts {
        DraftCounts { drafted: 0, .. } => String::new(),
        DraftCounts { drafted, accepted, .. } => format!(", {accepted} of {drafted} guesses right"),
    };
    let resumed = match outcome.resumed {
        0 => String::new(),
        times => format!("\na route was lost, and the answer went on over another: {times} times"),
    };
    let repaired = match &outcome.repairs[..] {
        [] => String::new(),
        repairs => format!(
            "\nother peers took the places of lost ones, and the answer went on: {} times, the longest pause {:.1} s",
            repairs.len(),
            outcome.longest_pause_s
        ),
    };
    format!(
        "{} tokens at {:.1} tokens/s, the first after {:.2} s ({} prompt tokens at {:.0} tokens/s){hop}{drafts}{resumed}{repaired}",
        outcome.completion_tokens,
        outcome.decode_tokens_per_s,
        outcome.ttft_s,
        outcome.prompt_tokens,
        outcome.prefill_tokens_per_s,
    )
}
