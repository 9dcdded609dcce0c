//! Accounts: what a peer says that it did for a session, and how long it took.

use std::ops::Sub;

use serde::{Deserialize, Serialize};

/// What a stage did for one session since the session was opened there: the peer's own word, by its own clock. Times are
/// microseconds, summed over the session's steps.
///
/// The difference of two accounts is what came between them:
/// ```
/// use potluck_core::Account;
/// let before = Account { steps: 3, positions: 515, ..Account::default() };
/// let after = Account { steps: 5, positions: 517, ..before };
/// assert_eq!((after - before).positions, 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Account {
    /// Steps whose output has left.
    pub steps: u64,
    /// Positions that were computed for them.
    pub positions: u64,
    /// From a step's arrival until its batch began.
    pub queue_us: u64,
    /// What the engine computed, for the batches that the steps were in: company in a batch counts in full.
    pub compute_us: u64,
    /// From the batch's beginning until its result was back, less what the engine computed: the way to the engine.
    pub handover_us: u64,
    /// Decoding what arrived and encoding what left.
    pub codec_us: u64,
    /// Bytes of the frames that arrived with steps.
    pub bytes_in: u64,
    /// Bytes of the frames that left with their outputs.
    pub bytes_out: u64,
    /// Microseconds to the next peer of the route and back, as the transport has measured of late; none where the client
    /// is next, or nothing was measured. Not a sum.
    pub next_rtt_us: Option<u32>,
}

impl Account {
    /// Everything that takes time here: what is left of an answer's time was spent on the way, or at the client.
    pub fn busy_us(&self) -> u64 {
        let parts = [self.queue_us, self.compute_us, self.handover_us, self.codec_us];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

impl Sub for Account {
    type Output = Self;

    /// What came after `earlier`. A peer that counts backwards gets zeros: its word is shown, never relied on.
    fn sub(self, earlier: Self) -> Self {
        Self {
            steps: self.steps.saturating_sub(earlier.steps),
            positions: self.positions.saturating_sub(earlier.positions),
            queue_us: self.queue_us.saturating_sub(earlier.queue_us),
            compute_us: self.compute_us.saturating_sub(earlier.compute_us),
            handover_us: self.handover_us.saturating_sub(earlier.handover_us),
            codec_us: self.codec_us.saturating_sub(earlier.codec_us),
            bytes_in: self.bytes_in.saturating_sub(earlier.bytes_in),
            bytes_out: self.bytes_out.saturating_sub(earlier.bytes_out),
            next_rtt_us: self.next_rtt_us,
        }
    }
}
