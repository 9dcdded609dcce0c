//! One direction of a link, without IO: what happens to a packet, and when it arrives.
//!
//! ```
//! use std::time::Duration;
//! use potluck_netem::link::{Fate, Link, Profile};
//! let delay = Duration::from_millis(20);
//! let mut link = Link::new(Profile { rate: Some(8_000), delay, ..Profile::default() }, 1);
//! // 100 bytes take 100 ms at a kilobyte a second, and 20 ms to get there.
//! let at = Duration::from_millis(120);
//! assert_eq!(link.push(Duration::ZERO, "a packet", 100), Fate::Arrives { at });
//! assert_eq!(link.next(), Some(at));
//! assert_eq!(link.poll(at - Duration::from_nanos(1)), None);
//! assert_eq!(link.poll(at), Some("a packet"));
//! ```
//! What a packet is, is the caller's: bytes on a wire, a frame in a simulator. Time is what the caller says, counted from any
//! moment; it never runs backwards. Chance comes from the seed: the same calls with the same seed do the same.

mod hub;
mod line;
mod profile;
#[cfg(test)]
mod tests;

pub use {
    hub::{Hub, HubStats, LineStats},
    line::{Line, UnknownLine},
    profile::{Bursts, Profile},
};

use std::{collections::VecDeque, time::Duration};

/// Bytes that one direction holds in all, on their way or waiting. A packet beyond it finds no room.
pub const FLIGHT_BYTES_MAX: usize = 64 << 20;

/// Nanoseconds in a second.
const SECOND: u128 = 1_000_000_000;

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It will arrive.
    Arrives {
        /// Then.
        at: Duration,
    },
    /// It is sent, and lost.
    Lost,
    /// There was no room to wait.
    NoRoom,
}

/// One direction of a link, and the packets `T` that are on it.
#[derive(Debug)]
pub struct Link<T> {
    profile: Profile,
    chance: fastrand::Rng,
    now: Duration,
    /// Since when it sends without a pause, and how many bits since.
    busy_since: Duration,
    busy_bits: u128,
    /// When each packet that waits will have been sent, and its bytes.
    waiting: VecDeque<(Duration, usize)>,
    waiting_bytes: usize,
    /// What is on the way, by arrival: in order, and what is held back.
    flying: [VecDeque<Flying<T>>; 2],
    flying_bytes: usize,
    wander: Wander,
    /// Whether it is in a burst of losses.
    bad: bool,
}

#[derive(Debug)]
struct Flying<T> {
    at: Duration,
    bytes: usize,
    packet: T,
}

/// The delay's way from one value to the next, as shares of the jitter.
#[derive(Debug, Default)]
struct Wander {
    /// How many times the jitter's time has passed, and one more.
    leg: u128,
    from: f64,
    to: f64,
}

impl Wander {
    fn at(&mut self, sent: Duration, lasts: Duration, chance: &mut fastrand::Rng) -> f64 {
        let mut fresh = || chance.f64() * 2.0 - 1.0;
        if lasts.is_zero() {
            return fresh();
        }
        let (sent, lasts) = (sent.as_nanos(), lasts.as_nanos());
        let leg = sent / lasts + 1;
        if leg != self.leg {
            self.from = if leg == self.leg + 1 && self.leg > 0 { self.to } else { fresh() };
            self.to = fresh();
            self.leg = leg;
        }
        self.from + (self.to - self.from) * ((sent % lasts) as f64 / lasts as f64)
    }
}

impl<T> Link<T> {
    /// A link that nothing is on.
    pub fn new(profile: Profile, seed: u64) -> Self {
        Self {
            profile,
            chance: fastrand::Rng::with_seed(seed),
            now: Duration::ZERO,
            busy_since: Duration::ZERO,
            busy_bits: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            flying: [VecDeque::new(), VecDeque::new()],
            flying_bytes: 0,
            wander: Wander::default(),
            bad: false,
        }
    }

    /// A packet of so many bytes is given to it.
    pub fn push(&mut self, now: Duration, packet: T, bytes: usize) -> Fate {
        self.advance(now);
        let waits = self.profile.rate.is_some();
        if waits && self.waiting_bytes + bytes > self.profile.queue_bytes
            || self.flying_bytes + bytes > FLIGHT_BYTES_MAX
        {
            return Fate::NoRoom;
        }
        let sent = self.send(bytes);
        let (lost, delay, held) = (self.loses(), self.delay(sent), self.happens(self.profile.reorder));
        if lost {
            return Fate::Lost;
        }
        let at = sent + delay + if held { self.profile.reorder_by } else { Duration::ZERO };
        let flying = &mut self.flying[usize::from(held)];
        // Those that are held back keep their order among themselves.
        let at = flying.back().map_or(at, |before| at.max(before.at));
        flying.push_back(Flying { at, bytes, packet });
        self.flying_bytes += bytes;
        Fate::Arrives { at }
    }

    /// A packet that has arrived by then, the earliest first.
    pub fn poll(&mut self, now: Duration) -> Option<T> {
        self.advance(now);
        let (which, at) = self.earliest()?;
        if at > self.now {
            return None;
        }
        let Flying { bytes, packet, .. } = self.flying[which].pop_front()?;
        self.flying_bytes -= bytes;
        Some(packet)
    }

    /// When the next packet arrives.
    pub fn next(&self) -> Option<Duration> {
        self.earliest().map(|(_, at)| at)
    }

    /// Bytes that wait to be sent.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Of the two rows, the one whose first packet arrives first. What was held back yields.
    fn earliest(&self) -> Option<(usize, Duration)> {
        let first = |which: usize| self.flying[which].front().map(|flying| (which, flying.at));
        match (first(0), first(1)) {
            (Some(in_order), Some(held)) => Some(if held.1 < in_order.1 { held } else { in_order }),
            (in_order, held) => in_order.or(held),
        }
    }

    fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
        while let Some(&(_, bytes)) = self.waiting.front().filter(|(sent, _)| *sent <= self.now) {
            self.waiting.pop_front();
            self.waiting_bytes -= bytes;
        }
    }

    /// When its last bit is sent. Counted from when the link last had nothing to do, so that nothing is rounded twice.
    fn send(&mut self, bytes: usize) -> Duration {
        let Some(rate) = self.profile.rate else { return self.now };
        if self.waiting.is_empty() {
            (self.busy_since, self.busy_bits) = (self.now, 0);
        }
        self.busy_bits += bytes as u128 * 8;
        let takes = (self.busy_bits * SECOND).div_ceil(u128::from(rate.max(1)));
        let sent = self.busy_since + Duration::from_nanos(takes as u64);
        self.waiting.push_back((sent, bytes));
        self.waiting_bytes += bytes;
        sent
    }

    fn loses(&mut self) -> bool {
        let mut loss = self.profile.loss;
        if let Some(bursts) = self.profile.bursts {
            if self.happens(if self.bad { bursts.end } else { bursts.begin }) {
                self.bad = !self.bad;
            }
            loss = if self.bad { bursts.loss } else { loss };
        }
        self.happens(loss)
    }

    fn delay(&mut self, sent: Duration) -> Duration {
        let Profile { delay, jitter, jitter_lasts, .. } = self.profile;
        if jitter.is_zero() {
            return delay;
        }
        let share = self.wander.at(sent, jitter_lasts, &mut self.chance);
        let moved = jitter.mul_f64(share.abs().min(1.0));
        if share < 0.0 { delay.saturating_sub(moved) } else { delay + moved }
    }

    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.chance.f64() < probability
    }
}
