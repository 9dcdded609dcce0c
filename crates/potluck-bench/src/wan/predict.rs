//! What the planner predicts of a chain, from the stages' times and the lines that its bound is made of.

use potluck_chain::plan::{Here, LayerFacts, Link, ModelFacts, Speed, Who, Wish, placed};
use potluck_core::{LayerRange, ModelId};
use potluck_wire::Codec;

use super::{net::Setting, pace::Pace};
use crate::Outcome;

/// Tokens a second of one session, a token a traversal: own ends, and peers between them.
///
/// The planner knows a stage by the bytes that it reads, and a machine by its time for a byte. So each stage is told as
/// a layer with a byte for each nanosecond that it was measured to take.
pub(crate) fn rate(setting: &Setting, paces: &[Pace], codec: Codec) -> Outcome<f64> {
    let layer =
        |pace: &Pace| LayerFacts { weight_bytes: (pace.seconds(1, 0) * 1e9) as u64, cache_bytes_per_position: 0 };
    let stages = paces.len() as u32;
    let model = ModelFacts {
        model: ModelId::from_bytes([0; 32]),
        layers: paces.iter().map(layer).collect(),
        head_bytes: 0,
        tail_bytes: 0,
        tied: false,
        width: paces.first().map_or(0, |pace| pace.width),
        cuts: (1..stages).collect(),
    };
    let speed = Speed { decode_us_per_byte: 1e-3, prefill_us_per_byte: 1e-3, measured: true };
    let link = Link { rtt_us: setting.rtt_ms * 1e3, bytes_per_second: setting.mbit * 1e6 / 8.0 };
    let here = Here { memory_bytes: u64::MAX, speed, link };
    let mut route = Vec::with_capacity(paces.len());
    for at in 0..stages {
        let who = if at == 0 || at + 1 == stages { Who::Own } else { Who::Started(at as u16) };
        route.push((who, LayerRange::new(at, at + 1)?));
    }
    let wish = Wish {
        positions: 1,
        chunk: 1,
        codec,
        preference: None,
        may_load: true,
        hide_layers: 0,
        trusted_layers: 0,
        own_sessions: 1,
    };
    Ok(placed(&model, &here, &route, &wish)?.decode_tokens_per_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prediction_is_delays_bytes_and_stages() {
        let pace = |seconds: f64| Pace {
            answering: vec![(1, seconds)],
            silent: vec![(1, seconds)],
            width: 100,
            vocabulary: 1,
            context: 4_096,
            caches: 1,
        };
        let paces = [pace(0.001), pace(0.002), pace(0.001)];
        let setting = Setting { rtt_ms: 100.0, mbit: 1e9, peers: 1, ..Setting::default() };
        let predicted = rate(&setting, &paces, Codec::F16).unwrap();
        assert!((predicted - 1.0 / 0.104).abs() < 1e-3, "{predicted}");
        // A row of 200 bytes and its header on each of two lines.
        let slow = rate(&Setting { mbit: 0.16, ..setting }, &paces, Codec::F16).unwrap();
        assert!(slow < 1.0 / 0.124, "{slow}");
    }
}
