//! One direction of a link, without IO: what happens to a packet, and when it arrives.
//!
//! ```
//! use std::time::Duration;
//! use potluck_netem::link::{Link, Profile};
//! let mut link = Link::new(Profile { rate: Some(8_000), delay: Duration::from_millis(20), ..Profile::default() }, 1);
//! link.push(Duration::ZERO, vec![0; 100]);
//! // 100 bytes take 100 ms at a kilobyte a second, and 20 ms to get there.
//! assert_eq!(link.next(), Some(Duration::from_millis(120)));
//! assert_eq!(link.poll(Duration::from_millis(119)), None);
//! assert_eq!(link.poll(Duration::from_millis(120)), Some(vec![0; 100]));
//! ```
//! Time is what the caller says, counted from any moment; it never runs backwards. Chance comes from the seed: the same calls
//! with the same seed do the same.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

/// Bytes that one direction holds in all, on their way or waiting. A packet beyond it finds no room.
pub const FLIGHT_BYTES_MAX: usize = 64 << 20;

/// Nanoseconds in a second.
const SECOND: u128 = 1_000_000_000;

/// What one direction of a link does to packets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// Time on the way, after the last bit was sent.
    pub delay: Duration,
    /// By how much the delay is more or less than that, at most. Packets may overtake each other by it.
    pub jitter: Duration,
    /// How much of a packet's jitter is that of the one before: 0 none of it, near 1 almost all, which makes it small and slow.
    pub correlation: f64,
    /// Share of packets that are lost on the way: they take their time to send, and do not arrive.
    pub loss: f64,
    /// Bits a second. None: sent at once.
    pub rate: Option<u64>,
    /// Bytes that wait to be sent, the one included that is being sent. A packet beyond it finds no room.
    pub queue_bytes: usize,
}

impl Default for Profile {
    /// A link that does nothing.
    fn default() -> Self {
        let (delay, jitter) = (Duration::ZERO, Duration::ZERO);
        Self { delay, jitter, correlation: 0.0, loss: 0.0, rate: None, queue_bytes: 256 << 10 }
    }
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It will arrive.
    Arrives,
    /// It is sent, and lost.
    Lost,
    /// There was no room to wait.
    NoRoom,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Link {
    profile: Profile,
    chance: fastrand::Rng,
    now: Duration,
    /// Since when it sends without a pause, and how many bits since.
    busy_since: Duration,
    busy_bits: u128,
    /// When each packet that waits will have been sent, and its bytes.
    waiting: VecDeque<(Duration, usize)>,
    waiting_bytes: usize,
    /// What is on the way: by arrival, then by order.
    flying: BinaryHeap<Reverse<(Duration, u64, Vec<u8>)>>,
    flying_bytes: usize,
    sequence: u64,
    /// Of the latest packet, as a share: -1 to 1.
    jitter: f64,
}

impl Link {
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
            flying: BinaryHeap::new(),
            flying_bytes: 0,
            sequence: 0,
            jitter: 0.0,
        }
    }

    /// A packet is given to it.
    pub fn push(&mut self, now: Duration, packet: Vec<u8>) -> Fate {
        self.advance(now);
        let bytes = packet.len();
        let waits = self.profile.rate.is_some();
        if waits && self.waiting_bytes + bytes > self.profile.queue_bytes
            || self.flying_bytes + bytes > FLIGHT_BYTES_MAX
        {
            return Fate::NoRoom;
        }
        let sent = self.send(bytes);
        let (lost, delay) = (self.chance.f64() < self.profile.loss, self.delay());
        if lost {
            return Fate::Lost;
        }
        self.flying_bytes += bytes;
        self.flying.push(Reverse((sent + delay, self.sequence, packet)));
        self.sequence += 1;
        Fate::Arrives
    }

    /// A packet that has arrived by then, the earliest first.
    pub fn poll(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.advance(now);
        if self.next()? > self.now {
            return None;
        }
        let Reverse((_, _, packet)) = self.flying.pop()?;
        self.flying_bytes -= packet.len();
        Some(packet)
    }

    /// When the next packet arrives.
    pub fn next(&self) -> Option<Duration> {
        self.flying.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Bytes that wait to be sent.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
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

    fn delay(&mut self) -> Duration {
        let Profile { delay, jitter, correlation, .. } = self.profile;
        let fresh = self.chance.f64() * 2.0 - 1.0;
        self.jitter = correlation * self.jitter + (1.0 - correlation) * fresh;
        let moved = jitter.mul_f64(self.jitter.abs().min(1.0));
        if self.jitter < 0.0 { delay.saturating_sub(moved) } else { delay + moved }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Pushes packets, each so long after the one before; all that arrive, when and which, and the fates.
    fn through(link: &mut Link, packets: &[(u64, usize)]) -> (Vec<(Duration, usize, usize)>, Vec<Fate>) {
        let (mut now, mut arrived, mut fates) = (Duration::ZERO, Vec::new(), Vec::new());
        let take = |link: &mut Link, until: Option<Duration>, arrived: &mut Vec<_>| {
            while let Some(at) = link.next().filter(|at| until.is_none_or(|until| *at <= until)) {
                let packet = link.poll(at).unwrap();
                arrived.push((at, u32::from_le_bytes(packet[..4].try_into().unwrap()) as usize, packet.len()));
            }
        };
        for (number, &(after, bytes)) in packets.iter().enumerate() {
            now += Duration::from_micros(after);
            take(link, Some(now), &mut arrived);
            let mut packet = vec![0; bytes];
            packet[..4].copy_from_slice(&(number as u32).to_le_bytes());
            fates.push(link.push(now, packet));
        }
        take(link, None, &mut arrived);
        (arrived, fates)
    }

    fn packets() -> impl Strategy<Value = Vec<(u64, usize)>> {
        prop::collection::vec((0..3_000_u64, 4..1_500_usize), 1..200)
    }

    fn profile() -> impl Strategy<Value = Profile> {
        let rate = prop::option::of(1_000..1_000_000_000_u64);
        (0..200_u64, 0..50_u64, 0.0..1.0, 0.0..0.5, rate, 4_000..100_000_usize).prop_map(
            |(delay, jitter, correlation, loss, rate, queue_bytes)| {
                let (delay, jitter) = (delay as u32 * MS, jitter as u32 * MS);
                Profile { delay, jitter, correlation, loss, rate, queue_bytes }
            },
        )
    }

    proptest! {
        #[test]
        fn nothing_is_lost_where_there_is_room(packets in packets(), profile in profile(), seed: u64) {
            let profile = Profile { loss: 0.0, queue_bytes: FLIGHT_BYTES_MAX, ..profile };
            let (mut arrived, fates) = through(&mut Link::new(profile, seed), &packets);
            prop_assert!(fates.iter().all(|fate| *fate == Fate::Arrives));
            arrived.sort_by_key(|(_, number, _)| *number);
            let came: Vec<_> = arrived.iter().map(|(_, number, bytes)| (*number, *bytes)).collect();
            let sent: Vec<_> = packets.iter().enumerate().map(|(number, (_, bytes))| (number, *bytes)).collect();
            prop_assert_eq!(came, sent);
        }

        #[test]
        fn order_is_kept_without_jitter(packets in packets(), profile in profile(), seed: u64) {
            let profile = Profile { jitter: Duration::ZERO, ..profile };
            let (arrived, fates) = through(&mut Link::new(profile, seed), &packets);
            let came: Vec<_> = arrived.iter().map(|(_, number, _)| *number).collect();
            let sent: Vec<_> = (0..packets.len()).filter(|&number| fates[number] == Fate::Arrives).collect();
            prop_assert_eq!(came, sent);
        }

        #[test]
        fn the_rate_is_kept_to_the_byte(packets in packets(), rate in 1_000..1_000_000_000_u64, delay in 0..200_u32) {
            let profile = Profile { rate: Some(rate), delay: delay * MS, queue_bytes: FLIGHT_BYTES_MAX, ..Profile::default() };
            let (arrived, _) = through(&mut Link::new(profile, 1), &packets);
            // Whoever counts in fractions finds the same moments, to the nanosecond that they are rounded up to.
            let (mut pushed, mut free) = (0_u128, 0_u128);
            let rate = u128::from(rate);
            for ((after, bytes), (at, _, _)) in packets.iter().zip(arrived) {
                pushed += u128::from(*after) * 1_000;
                // In nanoseconds times the rate, which has no fractions.
                free = free.max(pushed * rate) + *bytes as u128 * 8 * SECOND;
                let at = (at - delay * MS).as_nanos() * rate;
                prop_assert!(at >= free && at - free < 2 * rate, "{at} {free}");
            }
        }

        #[test]
        fn a_queue_holds_what_it_says_and_no_more(packets in packets(), rate in 10_000..10_000_000_u64, room in 1_500..20_000_usize) {
            let profile = Profile { rate: Some(rate), queue_bytes: room, ..Profile::default() };
            let mut link = Link::new(profile, 1);
            let mut now = Duration::ZERO;
            for (after, bytes) in packets {
                now += Duration::from_micros(after);
                while link.poll(now).is_some() {}
                let before = link.waiting_bytes();
                let fits = before + bytes <= room;
                prop_assert_eq!(link.push(now, vec![0; bytes]), if fits { Fate::Arrives } else { Fate::NoRoom });
                prop_assert_eq!(link.waiting_bytes(), if fits { before + bytes } else { before });
            }
            // All of it is gone when it has arrived.
            while let Some(at) = link.next() {
                link.poll(at);
            }
            prop_assert_eq!(link.waiting_bytes(), 0);
        }

        #[test]
        fn the_same_seed_does_the_same(packets in packets(), profile in profile(), seed: u64) {
            let run = || through(&mut Link::new(profile, seed), &packets);
            prop_assert_eq!(run(), run());
        }
    }

    #[test]
    fn as_many_are_lost_as_it_says() {
        let lost = |loss, seed| {
            let (_, fates) =
                through(&mut Link::new(Profile { loss, ..Profile::default() }, seed), &[(10, 100); 10_000]);
            fates.into_iter().map(|fate| fate == Fate::Lost).collect::<Vec<_>>()
        };
        for seed in 0..10 {
            let share = lost(0.03, seed).iter().filter(|lost| **lost).count();
            assert!((200..400).contains(&share), "{share} of 10000");
        }
        assert_ne!(lost(0.03, 1), lost(0.03, 2), "chance comes from the seed");
        assert!(lost(1.0, 1).iter().all(|lost| *lost));
    }

    #[test]
    fn jitter_stays_within_its_bound_and_follows_itself() {
        let delays = |correlation| {
            let profile = Profile { delay: 50 * MS, jitter: 10 * MS, correlation, ..Profile::default() };
            let (mut arrived, _) = through(&mut Link::new(profile, 7), &[(100_000, 100); 5_000]);
            arrived.sort_by_key(|(_, number, _)| *number);
            let late = arrived.iter().map(|(at, number, _)| *at - 100 * MS * (*number as u32 + 1));
            let late: Vec<f64> = late.map(|late| late.as_secs_f64() * 1e3).collect();
            assert!(late.iter().all(|ms| (39.9..60.1).contains(ms)));
            let mean = late.iter().sum::<f64>() / late.len() as f64;
            assert!((49.0..51.0).contains(&mean), "{mean}");
            let variance: f64 = late.iter().map(|ms| (ms - mean).powi(2)).sum();
            late.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum::<f64>() / variance
        };
        assert!(delays(0.0).abs() < 0.1, "{}", delays(0.0));
        assert!((delays(0.8) - 0.8).abs() < 0.1, "{}", delays(0.8));
    }

    #[test]
    fn a_lost_packet_takes_its_time_to_send() {
        let profile = Profile { rate: Some(8_000), loss: 1.0, ..Profile::default() };
        let mut link = Link::new(profile, 1);
        assert_eq!(link.push(Duration::ZERO, vec![0; 100]), Fate::Lost);
        assert_eq!((link.waiting_bytes(), link.next()), (100, None));
        assert_eq!(link.poll(100 * MS), None);
        assert_eq!(link.waiting_bytes(), 0);
    }
}
