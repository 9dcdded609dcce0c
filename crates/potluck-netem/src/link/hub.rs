//! Many lines that meet in one place, without IO: what passes from one to another, and when.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{Fate, Link, Profile};

/// What has become of the packets that entered one direction of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LineStats {
    /// Given to the other end.
    pub delivered: u64,
    /// Bytes of those.
    pub delivered_bytes: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Refused by a full queue.
    pub no_room: u64,
}

/// The same, as it is counted.
#[derive(Debug, Default)]
struct Counters {
    delivered: AtomicU64,
    delivered_bytes: AtomicU64,
    lost: AtomicU64,
    no_room: AtomicU64,
}

impl Counters {
    fn count(&self, fate: Fate) {
        match fate {
            Fate::Arrives { .. } => {}
            Fate::Lost => _ = self.lost.fetch_add(1, Relaxed),
            Fate::NoRoom => _ = self.no_room.fetch_add(1, Relaxed),
        }
    }

    fn deliver(&self, bytes: usize) {
        self.delivered.fetch_add(1, Relaxed);
        self.delivered_bytes.fetch_add(bytes as u64, Relaxed);
    }
}

/// The counts of a [`Hub`], to be read from anywhere.
#[derive(Debug, Clone)]
pub struct HubStats(Arc<[[Counters; 2]]>);

impl HubStats {
    /// Of each line: up, and down.
    pub fn lines(&self) -> Vec<[LineStats; 2]> {
        let read = |counters: &Counters| LineStats {
            delivered: counters.delivered.load(Relaxed),
            delivered_bytes: counters.delivered_bytes.load(Relaxed),
            lost: counters.lost.load(Relaxed),
            no_room: counters.no_room.load(Relaxed),
        };
        self.0.iter().map(|both| both.each_ref().map(read)).collect()
    }

    /// A packet that had arrived was not taken: it counts as lost on the last part of its way.
    pub fn refused(&self, to: usize, bytes: usize) {
        let down = &self.0[to][1];
        down.delivered.fetch_sub(1, Relaxed);
        down.delivered_bytes.fetch_sub(bytes as u64, Relaxed);
        down.lost.fetch_add(1, Relaxed);
    }
}

/// A packet on its way up, where it goes, and its bytes.
#[derive(Debug)]
struct Upwards<T> {
    to: usize,
    packet: T,
    bytes: usize,
}

/// Lines that meet in a place which takes no time. A packet goes up the line of whoever sends it, and down another.
#[derive(Debug)]
pub struct Hub<T> {
    up: Vec<Link<Upwards<T>>>,
    down: Vec<Link<(T, usize)>>,
    /// No packet takes less than that down any line.
    least: Duration,
    counters: HubStats,
}

impl<T> Hub<T> {
    /// Lines as given, each up and down, and nothing on them.
    pub fn new(lines: &[[Profile; 2]], seed: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for both in lines {
            up.push(Link::new(both[0], chance.u64(..)));
            down.push(Link::new(both[1], chance.u64(..)));
        }
        let least = lines.iter().map(|[_, down]| down.delay.saturating_sub(down.jitter)).min().unwrap_or_default();
        Self { up, down, least, counters: HubStats(lines.iter().map(|_| Default::default()).collect()) }
    }

    /// A packet of so many bytes is given to one line, for the other end of another.
    ///
    /// # Panics
    /// Where there are no such lines.
    pub fn push(&mut self, now: Duration, [from, to]: [usize; 2], packet: T, bytes: usize) {
        assert!(to < self.down.len(), "line {to} of {}", self.down.len());
        let fate = self.up[from].push(now, Upwards { to, packet, bytes }, bytes);
        self.counters.0[from][0].count(fate);
    }

    /// A packet that has arrived by then, and at the end of which line: the earliest first.
    pub fn poll(&mut self, now: Duration) -> Option<(usize, T)> {
        loop {
            let first = |(line, at): (usize, Option<Duration>)| at.filter(|at| *at <= now).map(|at| (at, line));
            let up = self.up.iter().map(Link::next).enumerate().filter_map(first).min();
            let down = self.down.iter().map(Link::next).enumerate().filter_map(first).min();
            match (up, down) {
                // What has come up goes on before anything later is done, so that each line sees its packets in time's order.
                (Some((at, line)), down) if down.is_none_or(|(down, _)| at <= down) => self.go_on(at, line),
                (_, Some((at, line))) => {
                    let (packet, bytes) = self.down[line].poll(at)?;
                    self.counters.0[line][1].deliver(bytes);
                    return Some((line, packet));
                }
                _ => return None,
            }
        }
    }

    /// Nothing arrives before, unless more is pushed: poll then. Nothing needs to have arrived even so.
    pub fn next(&self) -> Option<Duration> {
        let up = self.up.iter().filter_map(Link::next).min().map(|at| at + self.least);
        up.into_iter().chain(self.down.iter().filter_map(Link::next)).min()
    }

    /// What becomes of packets, counted as they are pushed and polled.
    pub fn stats(&self) -> HubStats {
        self.counters.clone()
    }

    fn go_on(&mut self, at: Duration, line: usize) {
        let Some(Upwards { to, packet, bytes }) = self.up[line].poll(at) else { return };
        self.counters.0[line][0].deliver(bytes);
        let fate = self.down[to].push(at, (packet, bytes), bytes);
        self.counters.0[to][1].count(fate);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn profile() -> impl Strategy<Value = Profile> {
        let rate = prop::option::of(100_000..1_000_000_000_u64);
        (0..20_u64, 0..10_u64, 0.0..0.2, rate).prop_map(|(delay, jitter, loss, rate)| {
            let [delay, jitter] = [delay, jitter].map(Duration::from_millis);
            Profile { delay, jitter, jitter_lasts: jitter, loss, rate, ..Profile::default() }
        })
    }

    fn both() -> impl Strategy<Value = [Profile; 2]> {
        (profile(), profile()).prop_map(|(up, down)| [up, down])
    }

    proptest! {
        #[test]
        fn whenever_it_is_polled_the_same_arrives(
            lines in prop::collection::vec(both(), 2..5),
            packets in prop::collection::vec((0..2_000_u64, any::<[prop::sample::Index; 2]>(), 40..1_500_usize), 1..100),
            seed: u64,
        ) {
            // Eagerly, every microsecond that matters; and lazily, only when it says so.
            let run = |eager: bool| {
                let (mut hub, mut now, mut arrived) = (Hub::new(&lines, seed), Duration::ZERO, Vec::new());
                for (number, (after, ends, bytes)) in packets.iter().enumerate() {
                    let until = now + Duration::from_micros(*after);
                    while let Some(at) = hub.next().filter(|at| *at <= until) {
                        now = if eager { (now + Duration::from_micros(50)).min(at) } else { at };
                        arrived.extend(std::iter::from_fn(|| hub.poll(now)).map(|arrival| (now, arrival)));
                    }
                    now = until;
                    hub.push(now, ends.map(|end| end.index(lines.len())), number, *bytes);
                }
                while let Some(at) = hub.next() {
                    now = at;
                    arrived.extend(std::iter::from_fn(|| hub.poll(now)).map(|arrival| (now, arrival)));
                }
                let stats = hub.stats().lines();
                let entered: u64 = stats.iter().map(|[up, _]| up.delivered + up.lost + up.no_room).sum();
                let left: u64 = stats.iter().map(|[_, down]| down.delivered + down.lost + down.no_room).sum();
                let passed: u64 = stats.iter().map(|[up, _]| up.delivered).sum();
                assert_eq!((entered, left), (packets.len() as u64, passed));
                assert_eq!(stats.iter().map(|[_, down]| down.delivered).sum::<u64>(), arrived.len() as u64);
                (arrived, stats)
            };
            prop_assert_eq!(run(true), run(false));
        }
    }

    #[test]
    fn two_lines_in_a_row_add_up_and_the_slower_one_decides() {
        let [delay, rate] = [Duration::from_millis(5), Duration::from_millis(10)];
        let line = |rate| [Profile { delay, rate: Some(rate), ..Profile::default() }; 2];
        let mut hub = Hub::new(&[line(80_000), line(40_000)], 1);
        // 100 bytes take 10 ms up the first line, and 20 down the second.
        (0..3).for_each(|number| hub.push(Duration::ZERO, [0, 1], number, 100));
        let mut arrivals = Vec::new();
        while let Some(at) = hub.next() {
            arrivals.extend(hub.poll(at).map(|(line, number)| (line, number, at)));
        }
        let expected = |number: u32| (1, number, rate * (3 + 2 * number) + 2 * delay);
        assert_eq!(arrivals, [0, 1, 2].map(expected));
    }
}
