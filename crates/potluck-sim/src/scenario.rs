//! What a run consists of, and what came of it.

use std::{collections::BTreeMap, time::Duration};

use potluck_netem::link::Profile;

/// How often each kind of fault strikes. All zero: a calm network.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Faults {
    /// Peers killed during the run.
    pub kills: usize,
    /// Engines lost (and restarted a second later) during the run.
    pub engine_losses: usize,
    /// Peers that stand still for up to five seconds during the run.
    pub freezes: usize,
    /// Streams cut during the run.
    pub cuts: usize,
    /// Probability that a step or an answer is delivered twice.
    pub twins: f64,
    /// Probability that a step or an answer is left out.
    pub drops: f64,
    /// Probability that a step or an answer changes places with the frame before it.
    pub swaps: f64,
    /// Probability that a bit of a frame's length, kind or header flips.
    pub flips: f64,
}

/// One run: its seed decides everything else.
#[derive(Debug, Clone, PartialEq)]
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
    pub start: Duration,
    /// What each direction of a stream is like, on a link of its own. Its losses, reordering and queue have no effect: see `Faults`.
    pub link: Profile,
    /// Whether sessions outlive the peers that they lose, for as long as others can take their places.
    pub recovers: bool,
    /// Whether users send guesses at what follows, several steps at a time.
    pub drafts: bool,
    /// What goes wrong.
    pub faults: Faults,
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
            start: Duration::ZERO,
            link: link(Duration::from_millis(20)),
            recovers: false,
            drafts: false,
            faults: Faults::default(),
        }
    }

    /// Sizes, delays and faults drawn from the seed.
    pub fn stormy(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x57);
        let stages = rng.usize(1..=6);
        let mut some = |max: usize| if rng.bool() { rng.usize(0..=max) } else { 0 };
        let (kills, engine_losses, freezes, cuts) = (some(2), some(2), some(3), some(3));
        let mut rare = || if rng.bool() { rng.f64() * 0.02 } else { 0.0 };
        let (twins, drops, swaps, flips) = (rare(), rare(), rare(), rare());
        let link = link(Duration::from_millis(rng.u64(1..=200)));
        let rate = if rng.bool() { Some(rng.u64(20_000..=2_000_000)) } else { None };
        let jitter_lasts = if rng.bool() { Duration::from_millis(rng.u64(..=100)) } else { Duration::ZERO };
        Self {
            seed,
            peers: stages * rng.usize(1..=2),
            stages,
            layers: stages as u32 * rng.u32(1..=3),
            sessions: rng.usize(1..=8),
            returns: rng.u32(..=3),
            caches: rng.u16(2..=8),
            start: Duration::ZERO,
            link: Profile { rate, jitter_lasts, ..link },
            recovers: false,
            drafts: false,
            faults: Faults { kills, engine_losses, freezes, cuts, twins, drops, swaps, flips },
        }
    }
}

/// A link that takes that long at most, and often much less.
fn link(longest: Duration) -> Profile {
    Profile { delay: longest / 2, jitter: longest / 2, ..Profile::default() }
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Sessions that did all they wanted.
    pub finished: usize,
    /// Sessions that ended with an error, by its code.
    pub failed: BTreeMap<&'static str, usize>,
    /// Those of them whose route had been ready.
    pub failed_under_way: usize,
    /// Tokens delivered; each was the right one.
    pub tokens: usize,
    /// How often other peers took the places of those that a session had lost.
    pub repairs: usize,
    /// Steps that peers in such places had computed when they were asked, of those submitted.
    pub computed_again: u64,
    /// Events processed.
    pub events: usize,
    /// Frames that peers dropped as twins or as late.
    pub stale_frames: u64,
    /// Virtual time that passed.
    pub elapsed: Duration,
}
