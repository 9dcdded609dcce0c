//! What a client knows of a route's times, and how it cuts its prompts for it.
//!
//! What a step costs at each stage is what the stages account for, fitted by [`StepTimes`]; before the first prompt it is what
//! the peers offered. How far they are from each other is what the transport measures, there and here. What the ways take
//! beside that, bytes above all, is what a prompt took longer than the rest explains. Peers speak for themselves: whoever
//! lies has the steps cut badly that it is on, within the same bounds.

use potluck_core::{Account, LayerRange, PeerId, StageSpeed, bounds::STEP_POSITIONS_MAX};

use super::{Choice, LinkCost, PREFILL_POSITIONS_IN_FLIGHT, PREFILL_STEPS_IN_FLIGHT, Pipeline, StageCost, best};
use crate::fit::{Fit, StepTimes};

/// Positions of a chunk at most where nothing is known of a route over several machines: small enough that a few stages have work
/// soon, and no smaller, for on some machines a step costs nearly the same whatever its size.
pub const CHUNK_FIRST: usize = 128;

/// Positions of the chunks in all of its stages' hands together, of which each has a part then.
const FIRST_IN_HAND: usize = 4 * CHUNK_FIRST;

/// Positions of a chunk that a prompt is cut into, at least: engines have other kernels for fewer rows, which say little of
/// what these cost. llama.cpp's take 1.4 times as long for a row of 32 as for one of 24 or of 64 (`bench/results/wan.json`, `stages`).
pub const CHUNK_LEAST: usize = 64;

/// Chunks have a multiple of so many positions: what engines compute at once, where a part of it takes as long as all.
const BLOCK: usize = 16;

/// By how much of its time a prompt may take longer with fewer steps in flight, or with the chunks that the one before had: what
/// waits on the way keeps other sessions' steps waiting, and equal steps give equal answers.
const AS_GOOD: f64 = 1.02;

/// Part that the newest prompt has in what is known of the ways.
const NEWEST: f64 = 0.5;

/// Halvings in the search for what the ways take: to a thousandth of what they may take at most.
const HALVINGS: usize = 10;

/// A stage of a route as a client sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// Whose it is; none: the client's own.
    pub peer: Option<PeerId>,
    /// Its layers.
    pub layers: LayerRange,
    /// On the client's machine: all stages there share its cores.
    pub here: bool,
    /// Seconds from the client there and back, as the transport has measured; 0 where it has not.
    pub rtt_s: f64,
    /// What the peer has offered; none where nothing was measured.
    pub speed: Option<StageSpeed>,
}

/// How a prompt is cut, and how many of its steps are unanswered at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cuts {
    /// Positions of a step: 1 to [`STEP_POSITIONS_MAX`]. The last one has what is left.
    pub chunk: usize,
    /// Steps in flight: at least 1.
    pub in_flight: usize,
}

/// A prompt that was evaluated.
#[derive(Debug, Clone, Copy)]
struct Took {
    positions: usize,
    cuts: Cuts,
    seconds: f64,
}

#[derive(Debug, Clone)]
struct Stage {
    place: Place,
    steps: StepTimes,
    /// What it has accounted for so far.
    told: Account,
}

/// What a client knows of the times of a route. It lasts over the sessions' prompts, and from one session to the next.
#[derive(Debug, Clone, Default)]
pub struct RouteTimes {
    stages: Vec<Stage>,
    /// Seconds that a position takes on each way between machines, beside its delay, as far as known.
    way: Option<f64>,
    /// The last prompt, until the stages have told what it cost them.
    took: Option<Took>,
    /// The smallest chunks that prompts were cut into. What smaller steps cost is not known, whatever a line through larger ones
    /// and single ones says.
    smallest: Option<usize>,
    last: Option<Cuts>,
}

impl Cuts {
    /// Steps of that size, and as many in flight as their positions allow.
    pub fn of(chunk: usize, in_flight: usize) -> Self {
        let chunk = chunk.clamp(1, STEP_POSITIONS_MAX);
        Self { chunk, in_flight: in_flight.min(PREFILL_POSITIONS_IN_FLIGHT / chunk).max(1) }
    }
}

impl Stage {
    fn new(place: Place) -> Self {
        let mut steps = StepTimes::default();
        if let Some(StageSpeed { decode_us, prefill_position_us }) = place.speed {
            steps.observe(1, decode_us as f64 / 1e6);
            steps.observe(STEP_POSITIONS_MAX, STEP_POSITIONS_MAX as f64 * prefill_position_us as f64 / 1e6);
        }
        Self { place, steps, told: Account::default() }
    }
}

impl RouteTimes {
    /// The route is this one now: what is known of stages that it had before is kept.
    pub fn over(&mut self, places: &[Place]) {
        let same = |stage: &Stage, place: &Place| (stage.place.peer, stage.place.layers) == (place.peer, place.layers);
        if self.stages.len() != places.len() || !self.stages.iter().zip(places).all(|(old, new)| same(old, new)) {
            let mut known = std::mem::take(self).stages;
            let mut stage = |place: &Place| match known.iter().position(|old| same(old, place)) {
                Some(at) => known.swap_remove(at),
                None => Stage::new(*place),
            };
            self.stages = places.iter().map(&mut stage).collect();
        }
        self.stages.iter_mut().zip(places).for_each(|(stage, place)| stage.place = *place);
    }

    /// The next accounts are those of a new session.
    pub fn reopened(&mut self) {
        self.stages.iter_mut().for_each(|stage| stage.told = Account::default());
        self.took = None;
    }

    /// What the route's stages say that they did for the session so far. Accounts of another route say nothing.
    pub fn told(&mut self, accounts: &[Account]) {
        if accounts.len() != self.stages.len() {
            return;
        }
        for (stage, account) in self.stages.iter_mut().zip(accounts) {
            let Account { steps, positions, compute_us, handover_us, codec_us, .. } = *account - stage.told;
            stage.told = *account;
            // No step has more: who tells of it errs.
            let rows = positions.checked_div(steps).filter(|rows| *rows <= STEP_POSITIONS_MAX as u64);
            if let Some(rows) = rows {
                let busy = compute_us.saturating_add(handover_us).saturating_add(codec_us);
                stage.steps.observe(rows as usize, busy as f64 / steps as f64 / 1e6);
            }
        }
    }

    /// So many positions were evaluated in steps that were cut like this, in so many seconds from the first step's leaving to the
    /// last one's answer. What of it was on the way is known when the stages have told their part.
    pub fn took(&mut self, positions: usize, cuts: Cuts, seconds: f64) {
        let chunk = cuts.chunk.min(positions);
        self.smallest = Some(self.smallest.map_or(chunk, |smallest| smallest.min(chunk)).max(1));
        // A single step says how long the way is, not how wide.
        self.took = (positions > cuts.chunk && seconds.is_finite()).then_some(Took { positions, cuts, seconds });
    }

    /// How a prompt of so many positions is cut; `most`: the largest steps that may be, and as many in flight.
    pub fn choose(&mut self, positions: usize, most: Cuts) -> Cuts {
        self.look_back();
        let machines = self.machines();
        let others = machines.iter().enumerate().filter(|(at, machine)| at == *machine).count();
        if others <= 1 {
            // Nobody else has anything to do meanwhile.
            return Cuts::of(most.chunk, most.in_flight);
        }
        let Some(pipeline) = self.pipeline(self.way.unwrap_or_default(), most.in_flight) else {
            let first = (FIRST_IN_HAND / others / BLOCK * BLOCK).clamp(CHUNK_LEAST, CHUNK_FIRST);
            return Cuts::of(most.chunk.min(first), most.in_flight);
        };
        let least = (self.smallest.unwrap_or(CHUNK_FIRST) / 2).max(CHUNK_LEAST).min(most.chunk);
        let within = least..=most.chunk;
        let Choice { chunk, seconds } = best(&pipeline, positions, within.clone());
        let takes = |chunk: usize| pipeline.seconds(positions, chunk);
        let whole = [chunk / BLOCK * BLOCK, chunk.next_multiple_of(BLOCK)];
        let whole = whole.into_iter().filter(|chunk| within.contains(chunk));
        let (chunk, seconds) = whole
            .map(|chunk| (chunk, takes(chunk)))
            .min_by(|(_, a), (_, b)| a.total_cmp(b))
            .unwrap_or((chunk, seconds));
        let last = self.last.map(|last| last.chunk).filter(|last| within.contains(last));
        let chunk = last.filter(|last| takes(*last) <= AS_GOOD * seconds).unwrap_or(chunk);
        let seconds = AS_GOOD * takes(chunk);
        let full = pipeline.window(chunk).min(positions.div_ceil(chunk)).max(1);
        let windows = std::iter::successors(Some(1), |window| Some(window + (window / 2).max(1)));
        // How many fill ways of which nothing is known, is not known either.
        let mut windows = windows.take_while(|window| self.way.is_some() && *window < full);
        let enough = windows.find(|&in_flight| {
            let fewer = Pipeline { in_flight, ..pipeline.clone() };
            fewer.seconds(positions, chunk) <= seconds
        });
        let cuts = Cuts { chunk, in_flight: enough.unwrap_or(full) };
        self.last = Some(cuts);
        cuts
    }

    /// What the last prompt took longer than the stages and the delays explain, the ways took.
    fn look_back(&mut self) {
        let Some(Took { positions, cuts, seconds }) = self.took.take() else { return };
        let takes = |way: f64| Some(self.pipeline(way, cuts.in_flight)?.seconds(positions, cuts.chunk));
        let [mut least, mut most] = [0.0, seconds / positions as f64];
        for _ in 0..HALVINGS {
            let middle = (least + most) / 2.0;
            match takes(middle) {
                Some(took) if took < seconds => least = middle,
                Some(_) => most = middle,
                None => return,
            }
        }
        let way = (least + most) / 2.0;
        self.way = Some(self.way.map_or(way, |known| known + (way - known) * NEWEST));
    }

    /// A number for each stage's machine.
    fn machines(&self) -> Vec<usize> {
        let whose = |place: &Place| if place.here { None } else { place.peer };
        let first = |stage: &Stage| self.stages.iter().position(|other| whose(&other.place) == whose(&stage.place));
        self.stages.iter().map(|stage| first(stage).unwrap_or_default()).collect()
    }

    /// None where nothing is known of what a step costs anywhere. Of a stage of which it is not known, it is as at the others,
    /// by the layer.
    fn pipeline(&self, way: f64, in_flight: usize) -> Option<Pipeline> {
        let fits: Vec<_> =
            self.stages.iter().map(|stage| (stage.steps.fit(), f64::from(stage.place.layers.count()))).collect();
        let known = || fits.iter().filter_map(|(fit, layers)| Some(((*fit)?, layers)));
        let layers: f64 = known().map(|(_, layers)| layers).sum();
        let a_layer = |of: fn(Fit) -> f64| known().map(|(fit, _)| of(fit)).sum::<f64>() / layers;
        let usual = (layers > 0.0).then(|| (a_layer(|fit| fit.fixed), a_layer(|fit| fit.per_row)))?;
        let step = |(fit, layers): (Option<Fit>, f64)| {
            fit.unwrap_or(Fit { fixed: usual.0 * layers, per_row: usual.1 * layers })
        };
        let links = (0..self.stages.len()).map(|at| self.link(at, way));
        let costs = self.machines().into_iter().zip(fits.iter().copied().map(step));
        let stages = links.zip(costs.map(|(machine, step)| StageCost { machine, step })).collect();
        let back = self.stages.last().map_or(0.0, |stage| stage.place.rtt_s / 2.0);
        Some(Pipeline { stages, in_flight, positions_in_flight: PREFILL_POSITIONS_IN_FLIGHT, back })
    }

    /// The way to a stage, from the one before it or from the client.
    fn link(&self, at: usize, way: f64) -> LinkCost {
        let this = &self.stages[at];
        let before = at.checked_sub(1).map(|before| &self.stages[before]);
        let is_here = |stage: &Stage| stage.place.here;
        let between = match before {
            Some(before)
                if is_here(before) && is_here(this)
                    || before.place.peer.is_some() && before.place.peer == this.place.peer =>
            {
                return LinkCost::NONE;
            }
            // How far two peers are from each other, the first of them says. Else they are as far as the farther is from here.
            Some(before) => {
                let [from, to] = [before, this].map(|stage| stage.place.rtt_s);
                let told = before.told.next_rtt_us.filter(|_| !is_here(before) && !is_here(this));
                told.map_or(from.max(to), |us| f64::from(us) / 1e6)
            }
            None if is_here(this) => return LinkCost::NONE,
            None => this.place.rtt_s,
        };
        // Tokens take next to nothing.
        let bytes_per_position = if at == 0 { 0.0 } else { way };
        // Seconds instead of bytes: how wide the way is, is not known by itself.
        LinkCost { bytes_per_step: 0.0, bytes_per_position, bytes_per_second: 1.0, delay: between / 2.0 }
    }
}

/// The largest steps, and the most of them, where nothing else is asked for.
impl Default for Cuts {
    fn default() -> Self {
        Self { chunk: STEP_POSITIONS_MAX, in_flight: PREFILL_STEPS_IN_FLIGHT }
    }
}

#[cfg(test)]
mod tests;
