//! What one direction of a link does to packets.

use std::time::Duration;

/// What one direction of a link does to packets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// Time on the way, after the last bit was sent.
    pub delay: Duration,
    /// By how much the delay is more or less than that, at most. It keeps packets in order: one that would overtake arrives
    /// with the one before it, as from a queue. (Packets that overtake by mere jitter look like losses to TCP and QUIC.)
    pub jitter: Duration,
    /// How long the delay takes to become another: it moves evenly from one value to the next, drawn that long apart. Packets
    /// sent closer than that have nearly the same delay, however many there are. Zero: each packet has its own.
    pub jitter_lasts: Duration,
    /// Share of packets that are lost on the way, each by itself: they take their time to send, and do not arrive.
    pub loss: f64,
    /// Losses that come together, beside those.
    pub bursts: Option<Bursts>,
    /// Share of packets that are held back, so that later ones overtake them. (netem's `reorder` sends the share at once
    /// instead, ahead of the delay: such packets would be faster than light, and a round trip's minimum with them.)
    pub reorder: f64,
    /// How long they are held back.
    pub reorder_by: Duration,
    /// Bits a second. None: sent at once.
    pub rate: Option<u64>,
    /// Bytes that wait to be sent, the one included that is being sent. A packet beyond it finds no room.
    pub queue_bytes: usize,
}

impl Default for Profile {
    /// A link that does nothing.
    fn default() -> Self {
        let none = Duration::ZERO;
        Self {
            delay: none,
            jitter: none,
            jitter_lasts: none,
            loss: 0.0,
            bursts: None,
            reorder: 0.0,
            reorder_by: none,
            rate: None,
            queue_bytes: 256 << 10,
        }
    }
}

impl Profile {
    /// Share of packets that are lost by chance, in the long run.
    pub fn mean_loss(&self) -> f64 {
        let Some(bursts) = self.bursts else { return self.loss };
        let bad = bursts.share();
        self.loss * (1.0 - bad) + bursts.loss * bad
    }
}

/// Losses that come together: a link that is good or bad, and may change before each packet.
///
/// Source: E. N. Gilbert, "Capacity of a Burst-Noise Channel", Bell System Technical Journal 39 (1960); E. O. Elliott, 42 (1963).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bursts {
    /// Probability that a good link is bad from the next packet on.
    pub begin: f64,
    /// Probability that a bad link is good from the next packet on: one over the mean length of a bad time, in packets.
    pub end: f64,
    /// Share of packets that are lost while it is bad.
    pub loss: f64,
}

impl Bursts {
    /// Bursts in which everything is lost: that share of all packets, in bursts of that many on average.
    ///
    /// # Panics
    /// Where the share is not below 1, or the length below one packet.
    pub fn of(share: f64, packets: f64) -> Self {
        assert!((0.0..1.0).contains(&share) && packets >= 1.0, "{share} in bursts of {packets} packets");
        let end = 1.0 / packets;
        Self { begin: (end * share / (1.0 - share)).min(1.0), end, loss: 1.0 }
    }

    /// Share of packets that meet a bad link.
    fn share(&self) -> f64 {
        let both = self.begin + self.end;
        if both > 0.0 { self.begin / both } else { 0.0 }
    }
}
