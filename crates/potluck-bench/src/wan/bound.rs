//! What no implementation can be faster than, with these stages on these lines.

use potluck_wire::{Codec, HEADER_BYTES};

use super::{net::Setting, pace::Pace};

/// Positions of a prefill step that are tried for the best bound.
const CHUNKS: [u32; 5] = [32, 64, 128, 256, 512];

/// A chain: own ends, and peers between them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound<'a> {
    pub(crate) setting: &'a Setting,
    /// Of each stage, in the route's order.
    pub(crate) paces: &'a [Pace],
    pub(crate) codec: Codec,
    /// Stages share one machine's cores, and only one of them computes at a time.
    pub(crate) shared: bool,
}

impl Bound<'_> {
    fn bytes(&self, rows: u32) -> f64 {
        let width = self.paces.first().map_or(0, |pace| pace.width);
        (HEADER_BYTES + self.codec.bytes(rows as usize, width as usize)) as f64
    }

    fn compute_s(&self, answering: u32, silent: u32) -> f64 {
        self.paces.iter().map(|pace| pace.seconds(answering, silent)).sum()
    }

    /// Seconds of one step of so many rows, all with logits: every line's delay, the bytes at its rate, every stage's
    /// time.
    pub(crate) fn traversal_s(&self, rows: u32) -> f64 {
        let hops = (self.setting.peers + 1) as f64;
        hops * self.setting.one_way_s(self.bytes(rows)) + self.compute_s(rows, 0)
    }

    /// Tokens a second of one session, where every traversal gives one.
    fn rate(&self) -> f64 {
        1.0 / self.traversal_s(1)
    }

    /// Tokens a second of so many sessions at once, where every traversal gives one: `min(n × rate, 1 ÷ slowest)`.
    ///
    /// The slowest is that of the stages and the lines which takes longest for a token: stages that share cores count
    /// together. Sessions may share a batch, so a stage takes for a token what it takes in a batch of the best size up
    /// to n.
    pub(crate) fn rate_of(&self, sessions: u32) -> f64 {
        let in_batch = |pace: &Pace| {
            let each = (1..=sessions).map(|rows| pace.seconds(rows, 0) / f64::from(rows));
            each.fold(f64::INFINITY, f64::min)
        };
        let sending_s = self.setting.sending_s(self.bytes(sessions)) / f64::from(sessions);
        let slowest = self.slowest_of(self.paces.iter().map(in_batch)).max(sending_s);
        (f64::from(sessions) * self.rate()).min(1.0 / slowest)
    }

    /// What stages hold a full pipeline up for: the slowest of them, or all where only one computes at a time.
    fn slowest_of(&self, stages: impl Iterator<Item = f64>) -> f64 {
        if self.shared { stages.sum() } else { stages.fold(0.0, f64::max) }
    }

    /// Seconds to the first token of a prompt: the first chunk through every line and stage, the rest at the slowest of
    /// them. Of the best size of chunk, which is told too.
    pub(crate) fn prefill_s(&self, positions: u32) -> (f64, u32) {
        let times = CHUNKS.iter().map(|&chunk| (self.prefill_in(positions, chunk), chunk));
        times.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default()
    }

    fn prefill_in(&self, positions: u32, chunk: u32) -> f64 {
        let chunk = chunk.min(positions);
        let (chunks, hops) = (f64::from(positions) / f64::from(chunk), (self.setting.peers + 1) as f64);
        let stage_s = self.slowest_of(self.paces.iter().map(|pace| pace.seconds(0, chunk)));
        let slowest = stage_s.max(self.setting.sending_s(self.bytes(chunk)));
        let first = hops * self.setting.one_way_s(self.bytes(chunk)) + self.compute_s(0, chunk);
        // The last chunk's last row wants logits.
        first + (chunks - 1.0) * slowest + self.compute_s(1, 0) - self.compute_s(0, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paces() -> Vec<Pace> {
        let pace = |per_row: f64| Pace {
            answering: vec![(1, per_row), (512, 512.0 * per_row)],
            silent: vec![(1, per_row), (512, 512.0 * per_row)],
            width: 100,
            vocabulary: 1,
            context: 4_096,
            caches: 1,
        };
        vec![pace(0.001), pace(0.002), pace(0.001)]
    }

    #[test]
    fn a_traversal_is_delays_bytes_and_stages() {
        let setting = Setting { rtt_ms: 100.0, mbit: 1e9, peers: 1, ..Setting::default() };
        let paces = paces();
        let bound = Bound { setting: &setting, paces: &paces, codec: Codec::F16, shared: false };
        // Two one-way delays, and four milliseconds of stages.
        assert!((bound.traversal_s(1) - 0.104).abs() < 1e-6);
        assert!((bound.rate_of(1) - 1.0 / 0.104).abs() < 1e-3);
    }

    #[test]
    fn sessions_add_up_until_a_stage_is_busy() {
        let setting = Setting { rtt_ms: 100.0, mbit: 1e9, peers: 1, ..Setting::default() };
        let paces = paces();
        let apart = Bound { setting: &setting, paces: &paces, codec: Codec::F16, shared: false };
        let shared = Bound { shared: true, ..apart };
        assert!((apart.rate_of(8) - 8.0 / 0.104).abs() < 1e-3);
        // The slowest stage takes 2 ms a token, all of them 4.
        assert!((apart.rate_of(100) - 500.0).abs() < 1e-3);
        assert!((shared.rate_of(100) - 250.0).abs() < 1e-3);
        // Two rows take it 2.4 ms, and four of them 8: two are the best batch.
        let mut batching = paces.clone();
        batching[1].answering = vec![(1, 0.002), (2, 0.0024), (4, 0.008)];
        let batching = Bound { paces: &batching, ..apart };
        assert!((batching.rate_of(100) - 1.0 / 0.0012).abs() < 1e-3);
        // A line that takes 10 ms for a row's 200 bytes, and its share of a header.
        let slow = Setting { mbit: 0.16, ..setting };
        let slow = Bound { setting: &slow, ..apart };
        assert!((90.0..100.0).contains(&slow.rate_of(100)), "{}", slow.rate_of(100));
    }

    #[test]
    fn a_prefill_overlaps_only_on_machines_of_their_own() {
        let setting = Setting { rtt_ms: 0.0, mbit: 1e9, peers: 1, ..Setting::default() };
        let paces = paces();
        let apart = Bound { setting: &setting, paces: &paces, codec: Codec::F16, shared: false };
        let shared = Bound { shared: true, ..apart };
        // In chunks of 32, the first takes 32 * 4 ms and the others 32 * 2 ms.
        assert!((apart.prefill_s(1_024).0 - (0.128 + 31.0 * 0.064)).abs() < 1e-3);
        assert_eq!(apart.prefill_s(1_024).1, 32);
        assert!((shared.prefill_s(1_024).0 - 1_024.0 * 0.004).abs() < 1e-3);
    }
}
