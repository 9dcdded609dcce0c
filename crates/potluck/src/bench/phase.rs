//! Where the time of a token went, or of a prompt: the accounts of an answer's trace, as parts that add up to the whole.

use potluck_client::{Phase, StageAccount};
use serde::Serialize;

/// Milliseconds of a step, on the average, and what they were spent on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Times {
    /// Steps that were averaged.
    pub(crate) steps: u64,
    /// From one step's leaving to the next one's.
    pub(crate) ms: f64,
    /// At each stage, in the route's order. Peers speak for themselves.
    pub(crate) stages: Vec<StageTime>,
    /// At the client: choosing the token.
    pub(crate) choosing_ms: f64,
    /// On the way between, and whatever else nobody accounts for: the rest.
    pub(crate) way_ms: f64,
}

/// Milliseconds and bytes of a step at one stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct StageTime {
    /// The peer's id, or `self`.
    pub(crate) peer: String,
    /// Its layers, half open.
    pub(crate) layers: [u32; 2],
    /// Waiting for its turn.
    pub(crate) queue_ms: f64,
    /// The engine's arithmetic.
    pub(crate) compute_ms: f64,
    /// The way to the engine's process and back.
    pub(crate) handover_ms: f64,
    /// Decoding what came and encoding what left.
    pub(crate) codec_ms: f64,
    /// Bytes of its frame that came.
    pub(crate) bytes_in: f64,
    /// Bytes of the frame that left.
    pub(crate) bytes_out: f64,
    /// Milliseconds to the next peer and back, where the transport has measured them.
    pub(crate) next_rtt_ms: Option<f64>,
}

impl Times {
    /// What a step of this phase took on the average; none where there was none.
    pub(crate) fn of(phase: &Phase) -> Option<Self> {
        let steps = phase.stages.iter().map(|stage| stage.account.steps).max().filter(|&steps| steps > 0)?;
        let each = |seconds: f64| seconds * 1e3 / steps as f64;
        Some(Self {
            steps,
            ms: each(phase.seconds),
            stages: phase.stages.iter().map(|stage| StageTime::of(stage, steps)).collect(),
            choosing_ms: each(phase.client_s),
            way_ms: each(phase.elsewhere_s()),
        })
    }
}

impl StageTime {
    fn of(stage: &StageAccount, steps: u64) -> Self {
        let StageAccount { peer, layers, account } = stage;
        let each = |sum: u64| sum as f64 / steps as f64;
        let ms = |us: u64| each(us) / 1e3;
        Self {
            peer: peer.clone(),
            layers: *layers,
            queue_ms: ms(account.queue_us),
            compute_ms: ms(account.compute_us),
            handover_ms: ms(account.handover_us),
            codec_ms: ms(account.codec_us),
            bytes_in: each(account.bytes_in),
            bytes_out: each(account.bytes_out),
            next_rtt_ms: account.next_rtt_us.map(|us| f64::from(us) / 1e3),
        }
    }

    /// True if it is on the client's machine.
    pub(crate) fn is_own(&self) -> bool {
        self.peer == "self"
    }

    /// Milliseconds from its arrival to its leaving.
    pub(crate) fn ms(&self) -> f64 {
        self.queue_ms + self.compute_ms + self.handover_ms + self.codec_ms
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::Account;

    use super::*;

    #[test]
    fn parts_add_up_to_the_whole() {
        let stage = |compute_us| StageAccount {
            peer: "ab".repeat(32),
            layers: [0, 10],
            account: Account {
                steps: 10,
                positions: 10,
                queue_us: 100,
                compute_us,
                handover_us: 200,
                codec_us: 300,
                bytes_in: 1_000,
                bytes_out: 2_000,
                next_rtt_us: Some(500),
            },
        };
        let phase = Phase { seconds: 0.1, client_s: 0.004, overlapping: 0, stages: vec![stage(20_000), stage(50_000)] };
        let times = Times::of(&phase).unwrap();
        let parts: f64 = times.stages.iter().map(StageTime::ms).sum();
        assert!((parts + times.choosing_ms + times.way_ms - times.ms).abs() < 1e-9, "{times:?}");
        assert!((times.ms - 10.0).abs() < 1e-9 && (times.way_ms - 2.48).abs() < 1e-9, "{times:?}");
        let first = &times.stages[0];
        assert!((first.compute_ms - 2.0).abs() < 1e-9 && (first.bytes_out - 200.0).abs() < 1e-9, "{first:?}");
        assert_eq!(first.next_rtt_ms, Some(0.5));
        assert_eq!(Times::of(&Phase::default()), None, "nothing was decoded");
    }
}
