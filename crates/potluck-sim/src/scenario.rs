//! What a run consists of, and what came of it.

use std::{collections::BTreeMap, time::Duration};

use potluck_netem::link::{FLIGHT_BYTES_MAX, Profile};
use serde::{Deserialize, Serialize};

/// How often each kind of fault strikes. All zero: a calm network.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Peers killed for good.
    pub kills: usize,
    /// Peers killed that are back within five seconds, and remember nothing.
    pub restarts: usize,
    /// Peers that leave with a word, go within eight seconds, and are back later.
    pub drains: usize,
    /// Engines lost (and restarted a second later).
    pub engine_losses: usize,
    /// Peers that stand still for up to eight seconds: after three, others take them for lost.
    pub freezes: usize,
    /// Peers that stand still for less than three seconds, which nobody notices.
    pub naps: usize,
    /// Peers that compute up to fifty times slower for up to eight seconds.
    pub slows: usize,
    /// Streams cut.
    pub cuts: usize,
    /// Peers whose connections break several times, one shortly after the other.
    pub flaps: usize,
    /// Times of up to eight seconds in which nothing passes between somebody and another, or anybody: either way, or one.
    pub partitions: usize,
    /// Times of up to eight seconds in which a client reaches nobody.
    pub outages: usize,
    /// Clients that are gone, without a word.
    pub leaves: usize,
    /// Seconds that a peer's clock is wrong by, at most.
    pub skew_s: u32,
    /// Probability that a step or an answer is delivered twice.
    pub twins: f64,
    /// Probability that a step or an answer is left out.
    pub drops: f64,
    /// Probability that a step or an answer changes places with the frame before it.
    pub swaps: f64,
    /// Probability that a bit of a frame's length, kind or header flips.
    pub flips: f64,
}

/// What each direction of a stream is like. Streams lose nothing and keep their order: see [`Faults`] for what does not.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Line {
    /// Time on the way.
    pub delay_ms: u64,
    /// By how much it is more or less, at most.
    pub jitter_ms: u64,
    /// How long it takes to become another.
    pub jitter_lasts_ms: u64,
    /// Bits a second. None: sent at once.
    pub rate: Option<u64>,
}

impl Line {
    /// A line that takes that long at most, and often much less.
    pub const fn up_to(longest_ms: u64) -> Self {
        Self { delay_ms: longest_ms.div_ceil(2), jitter_ms: longest_ms / 2, jitter_lasts_ms: 0, rate: None }
    }

    pub(crate) fn profile(self) -> Profile {
        Profile {
            delay: Duration::from_millis(self.delay_ms),
            jitter: Duration::from_millis(self.jitter_ms),
            jitter_lasts: Duration::from_millis(self.jitter_lasts_ms),
            rate: self.rate,
            // A stream has credit, and what gets lost under it is sent again: its links have room for all.
            queue_bytes: FLIGHT_BYTES_MAX,
            ..Profile::default()
        }
    }
}

/// One run: its seed decides everything else. As JSON it can be kept, shared and run again (`make sim SCENARIO=FILE`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Repeats the run.
    pub seed: u64,
    /// Peers, each with one stage; more than one may have the same.
    pub peers: usize,
    /// Stages that the model is cut into.
    pub stages: usize,
    /// Layers of the model.
    pub layers: u32,
    /// Sessions, all at once.
    pub sessions: usize,
    /// How often at most a user comes back with a session of the same name once one has ended.
    pub returns: u32,
    /// Caches of each stage: fewer than sessions, and some are refused.
    pub caches: u16,
    /// When the first session may start; all do within the second that follows. Faults strike in the first eight.
    pub start_ms: u64,
    /// Hours over which all of it is spread instead, each with a quiet end: then nobody may hold anything.
    #[serde(default)]
    pub hours: u32,
    /// What each direction of a stream is like.
    pub line: Line,
    /// Whether sessions outlive the peers that they lose, for as long as others can take their places.
    pub recovers: bool,
    /// Whether what is sent again goes step by step, or may be merged; none: by chance.
    pub exact: Option<bool>,
    /// Tokens of the longest answers.
    pub longest: usize,
    /// Whether some peers compute for a part of the time alone, as their owners want it.
    #[serde(default)]
    pub shares: bool,
    /// Whether users put sessions aside, and take them up again.
    #[serde(default)]
    pub parks: bool,
    /// Whether peers stand by for those of a session.
    pub standbys: bool,
    /// Whether users send guesses at what follows, several steps at a time.
    pub drafts: bool,
    /// Whether it is a promise that no session that was under way is lost.
    pub survives: bool,
    /// What goes wrong.
    pub faults: Faults,
}

/// Scenarios that a seed decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anything goes wrong, and sessions end where they lose a peer.
    Storm,
    /// Anything goes wrong, and sessions recover where they can.
    Recovery,
    /// What goes wrong leaves somebody to take each place: no session that is under way may be lost.
    Weather,
    /// Hundreds of peers, and a thousand sessions or more, in such weather.
    Crowd,
    /// Twenty-four hours, in which something happens every twenty seconds.
    Day,
}

impl Kind {
    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// All of them.
    pub const ALL: [Self; 5] = [Self::Storm, Self::Recovery, Self::Weather, Self::Crowd, Self::Day];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Storm => "storm",
            Self::Recovery => "recovery",
            Self::Weather => "weather",
            Self::Crowd => "crowd",
            Self::Day => "day",
        }
    }

    /// The scenario of a seed.
    pub fn scenario(self, seed: u64) -> Scenario {
        match self {
            Self::Storm => Scenario::stormy(seed),
            Self::Recovery => {
                let (drafts, standbys) = (seed.is_multiple_of(2), seed.is_multiple_of(3));
                Scenario { recovers: true, drafts, standbys, ..Scenario::stormy(seed) }
            }
            Self::Weather => Scenario::weather(seed),
            Self::Crowd => Scenario::crowd(seed),
            Self::Day => Scenario::day(seed),
        }
    }
}

impl Scenario {
    /// A chain of three peers, four sessions, and nothing that goes wrong.
    pub fn calm(seed: u64) -> Self {
        Self {
            seed,
            peers: 3,
            stages: 3,
            layers: 6,
            sessions: 4,
            returns: 0,
            caches: 4,
            start_ms: 0,
            hours: 0,
            line: Line::up_to(20),
            recovers: false,
            exact: None,
            longest: 24,
            shares: false,
            parks: false,
            standbys: false,
            drafts: false,
            survives: false,
            faults: Faults::default(),
        }
    }

    /// Sizes, delays and faults drawn from the seed.
    pub fn stormy(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x57);
        let stages = rng.usize(1..=6);
        let mut some = |max: usize| if rng.bool() { rng.usize(0..=max) } else { 0 };
        let (kills, restarts, engine_losses, freezes) = (some(2), some(2), some(2), some(3));
        let (slows, cuts, flaps, partitions, leaves) = (some(2), some(3), some(1), some(2), some(2));
        let naps = some(2);
        let skew_s = some(40_000) as u32;
        let mut rare = || if rng.bool() { rng.f64() * 0.02 } else { 0.0 };
        let (twins, drops, swaps, flips) = (rare(), rare(), rare(), rare());
        let outages = if rng.bool() { rng.usize(0..=2) } else { 0 };
        let line = Line {
            rate: if rng.bool() { Some(rng.u64(20_000..=2_000_000)) } else { None },
            jitter_lasts_ms: if rng.bool() { rng.u64(..=100) } else { 0 },
            ..Line::up_to(rng.u64(1..=200))
        };
        let faults = Faults {
            kills,
            restarts,
            engine_losses,
            drains: usize::from(fastrand::Rng::with_seed(seed ^ 0xd4a2).u8(..3) == 0),
            freezes,
            naps,
            slows,
            cuts,
            flaps,
            partitions,
            outages,
            leaves,
            skew_s,
            twins,
            drops,
            swaps,
            flips,
        };
        Self {
            peers: stages * rng.usize(1..=2),
            stages,
            layers: stages as u32 * rng.u32(1..=3),
            sessions: rng.usize(1..=8),
            returns: rng.u32(..=3),
            caches: rng.u16(2..=8),
            line,
            shares: shares(seed),
            parks: parks(seed),
            faults,
            ..Self::calm(seed)
        }
    }

    /// What a swarm in which each stage has another peer is to live with: faults that pass, and one peer that is lost for good.
    pub fn weather(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x3ea7);
        // Drawn apart: what the other seeds meant, they mean.
        let drains = || usize::from(fastrand::Rng::with_seed(seed ^ 0xd4a1).u8(..3) == 0);
        let stages = rng.usize(1..=5);
        let mut some = |max: usize| if rng.bool() { rng.usize(0..=max) } else { 0 };
        let faults = Faults {
            kills: some(1),
            restarts: some(1),
            drains: drains(),
            engine_losses: some(2),
            freezes: some(2),
            slows: some(1),
            cuts: some(3),
            flaps: some(1),
            partitions: some(2),
            outages: some(2),
            skew_s: some(40_000) as u32,
            ..Faults::default()
        };
        let sessions = rng.usize(1..=6);
        // Now and then nothing happens but that one peer leaves.
        let faults = if seed % 8 == 3 { Faults { drains: 1, ..Faults::default() } } else { faults };
        Self {
            peers: stages * rng.usize(2..=3),
            stages,
            layers: stages as u32 * rng.u32(1..=3),
            sessions,
            // Whoever comes anew finds a place beside what is still held for those who are gone, and beside who stands by.
            caches: 4 * sessions as u16,
            // Slow enough that sessions are under way when something happens.
            line: Line::up_to(rng.u64(30..=200)),
            recovers: true,
            longest: if rng.bool() { 24 } else { 120 },
            shares: shares(seed),
            parks: parks(seed),
            standbys: rng.bool(),
            drafts: rng.bool(),
            survives: true,
            faults,
            ..Self::calm(seed)
        }
    }

    /// Two hundred peers, a thousand sessions, and something that goes wrong all the time.
    pub fn crowd(seed: u64) -> Self {
        let (peers, sessions) = (200, 1_000);
        let faults = Faults {
            kills: 8,
            restarts: 16,
            drains: 16,
            engine_losses: 16,
            freezes: 16,
            slows: 8,
            cuts: 64,
            flaps: 4,
            partitions: 16,
            outages: 32,
            leaves: 64,
            skew_s: 40_000,
            ..Faults::default()
        };
        let line = Line::up_to(120);
        let (drafts, standbys) = (seed.is_multiple_of(2), seed.is_multiple_of(3));
        let (stages, layers, caches) = (4, 8, 64);
        let (recovers, survives) = (true, true);
        let shape = Self { peers, stages, layers, sessions, caches, line, ..Self::calm(seed) };
        Self { recovers, survives, drafts, shares: shares(seed), parks: parks(seed), standbys, faults, ..shape }
    }
}

impl Scenario {
    /// A day of a dozen peers, with sessions and faults all the time but for the end of each hour.
    pub fn day(seed: u64) -> Self {
        let faults = Faults {
            restarts: 600,
            drains: 300,
            engine_losses: 600,
            freezes: 300,
            slows: 150,
            cuts: 600,
            flaps: 60,
            partitions: 300,
            outages: 150,
            leaves: 150,
            ..Faults::default()
        };
        let (peers, stages, layers, sessions, caches, hours) = (12, 4, 8, 6_000, 64, 24);
        let line = Line::up_to(300);
        let shape = Self { peers, stages, layers, sessions, caches, hours, line, ..Self::calm(seed) };
        Self { recovers: true, drafts: true, standbys: true, longest: 120, faults, ..shape }
    }
}

/// Drawn apart, as a third of all seeds: what the others meant, they mean.
fn shares(seed: u64) -> bool {
    fastrand::Rng::with_seed(seed ^ 0x5a4e).u8(..3) == 0
}

fn parks(seed: u64) -> bool {
    fastrand::Rng::with_seed(seed ^ 0x9a4c).u8(..3) == 0
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Sessions that did all they wanted.
    pub finished: usize,
    /// Sessions whose client was gone before.
    pub left: usize,
    /// Sessions that ended with an error, by its code.
    pub failed: BTreeMap<&'static str, usize>,
    /// Those of them that had begun to compute, and not with what was kept of another.
    pub failed_under_way: usize,
    /// Tokens delivered; each was the right one.
    pub tokens: usize,
    /// How often a session lost a peer.
    pub losses: usize,
    /// How often other peers took the places of those that a session had lost.
    pub repairs: usize,
    /// How often a peer went on with the session of a client that came back.
    pub returned: usize,
    /// How often a session was put aside, and how often another began with what had been kept of it.
    pub parked: usize,
    /// See `parked`.
    pub taken_up: usize,
    /// How often a peer that was about to go was replaced while it was there, and how many sessions such peers had yet when they went.
    pub handed_over: usize,
    /// See `handed_over`.
    pub left_behind: usize,
    /// Peers that stood by and were ready, and how often one of them took a place.
    pub standbys: usize,
    /// See `standbys`.
    pub promoted: usize,
    /// Steps that peers sent again, and their positions.
    pub replayed: (u64, u64),
    /// Steps that peers in such places had computed when they were asked, of those submitted.
    pub computed_again: u64,
    /// Events processed.
    pub events: usize,
    /// Frames that peers dropped as twins or as late.
    pub stale_frames: u64,
    /// Virtual time that passed.
    pub elapsed: Duration,
}

impl Report {
    /// Sessions that have ended, however.
    pub fn ended(&self) -> usize {
        self.finished + self.left + self.failed.values().sum::<usize>()
    }

    /// Adds another run's.
    pub fn add(&mut self, other: Self) {
        self.finished += other.finished;
        self.left += other.left;
        self.failed_under_way += other.failed_under_way;
        self.tokens += other.tokens;
        self.losses += other.losses;
        self.repairs += other.repairs;
        self.returned += other.returned;
        self.parked += other.parked;
        self.taken_up += other.taken_up;
        self.handed_over += other.handed_over;
        self.left_behind += other.left_behind;
        self.standbys += other.standbys;
        self.promoted += other.promoted;
        self.replayed = (self.replayed.0 + other.replayed.0, self.replayed.1 + other.replayed.1);
        self.computed_again += other.computed_again;
        self.events += other.events;
        self.stale_frames += other.stale_frames;
        self.elapsed += other.elapsed;
        other.failed.into_iter().for_each(|(code, count)| *self.failed.entry(code).or_default() += count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_kept_as_text() {
        for kind in Kind::ALL {
            let scenario = kind.scenario(7);
            let text = serde_json::to_string(&scenario).unwrap();
            assert_eq!(serde_json::from_str::<Scenario>(&text).unwrap(), scenario);
            assert_eq!(Kind::named(kind.name()), Some(kind));
        }
        assert!(serde_json::from_str::<Scenario>("{\"seed\": 7}").is_err());
    }
}
