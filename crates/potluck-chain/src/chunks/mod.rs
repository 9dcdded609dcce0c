//! How large the chunks of a prompt should be, so that all stages and links of a route work at once.
//!
//! Small chunks fill the pipeline soon; large ones pay less often for what a step costs whatever its size. Where `s` are the
//! stages' and links' seconds a position, `f` and `b` the fixed cost and the seconds a position of the slowest of them, and `n`
//! the positions, `n / c * f` falls and `c * (sum(s) - b)` grows, so that the best chunk is about `sqrt(n * f / (sum(s) - b))`.
//! [`best`] looks for it in [`Pipeline::seconds`], which plays the whole prefill through.
//!
//! What it needs to know of a route is learned in [`RouteTimes`].

mod times;

use std::{cmp::Reverse, collections::VecDeque, ops::RangeInclusive};

use potluck_core::bounds::STEP_POSITIONS_MAX;

pub use self::times::{CHUNK_FIRST, CHUNK_LEAST, Cuts, Place, RouteTimes};
use crate::fit::Fit;

/// Positions of a prompt in flight at most, so that what waits at its slowest peer is bounded, however many steps it is in:
/// four steps of the largest size.
pub const PREFILL_POSITIONS_IN_FLIGHT: usize = 4 * STEP_POSITIONS_MAX;

/// Steps of a prompt in flight at most, unless a request says otherwise. A long route with long ways wants more of them than
/// one hop has credit for ([`potluck_wire::HOP_FRAMES_MAX`]): they are on several.
pub const PREFILL_STEPS_IN_FLIGHT: usize = 32;

/// Rounds that are played through, each of as many chunks as may be unanswered, and the least number of chunks. What comes
/// between the first ones and the last goes at the pace of the slowest part.
const ROUNDS: usize = 3;
const PLAYED: usize = 48;

/// Sizes that are tried differ by this factor at most, where they are not neighbours.
const STRIDE: f64 = 1.06;

/// Up to so many chunks, sizes that make them even are tried, too: a little less, and there is one more, with next to nothing.
const EVEN: usize = 24;

/// A stage of a route.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageCost {
    /// Where it is. Stages of one machine share its cores: two that compute at once take twice as long.
    pub machine: usize,
    /// What a step costs there.
    pub step: Fit,
}

/// The way to a stage, or from the last one back to the client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkCost {
    /// Bytes of a frame beside its positions.
    pub bytes_per_step: f64,
    /// Bytes for each position.
    pub bytes_per_position: f64,
    /// Bytes a second; infinite within a machine.
    pub bytes_per_second: f64,
    /// Seconds one way, beside the time that sending takes.
    pub delay: f64,
}

impl LinkCost {
    /// Within one machine.
    pub const NONE: Self =
        Self { bytes_per_step: 0.0, bytes_per_position: 0.0, bytes_per_second: f64::INFINITY, delay: 0.0 };

    fn step(&self) -> Fit {
        let seconds = |bytes: f64| if bytes > 0.0 { bytes / self.bytes_per_second } else { 0.0 };
        Fit { fixed: seconds(self.bytes_per_step), per_row: seconds(self.bytes_per_position) }
    }
}

/// A route as a prefill sees it: steps go down it one after the other, and each is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// Each stage with the way to it, in the order of the route.
    pub stages: Vec<(LinkCost, StageCost)>,
    /// Steps that the client has unanswered at most: the next one follows an answer. At least 1.
    pub in_flight: usize,
    /// Positions that these have at most, where that is more than one step.
    pub positions_in_flight: usize,
    /// Seconds from the last stage back to the client, with the answer's own time.
    pub back: f64,
}

/// A chunk size, and what it is expected to give.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Positions of a chunk: 1 to [`STEP_POSITIONS_MAX`].
    pub chunk: usize,
    /// Seconds from the first chunk's leaving the client to the last one's answer.
    pub seconds: f64,
}

/// What has one step at a time: a link, or a stage.
#[derive(Debug, Clone, Copy)]
struct Server {
    /// Servers with the same number share its time.
    resource: usize,
    step: Fit,
    /// Seconds from the end of a step here to its arrival at the next.
    delay: f64,
}

/// The chunk size of these with which so many positions are evaluated soonest; of equal ones, the largest. One chunk that is
/// smaller than all of them has all positions where they are so few.
pub fn best(pipeline: &Pipeline, positions: usize, within: RangeInclusive<usize>) -> Choice {
    let most = positions.min(*within.end()).clamp(1, STEP_POSITIONS_MAX);
    let least = (*within.start()).clamp(1, most);
    let smaller = |size: &usize| Some(((*size as f64 / STRIDE).ceil() as usize).min(size - 1));
    let smaller = |size: &usize| smaller(size).filter(|size| *size >= least);
    let mut sizes: Vec<_> = std::iter::successors(Some(most), smaller).collect();
    let chunks = positions.div_ceil(most).max(1);
    let even = (chunks..=EVEN).map(|chunks| positions.div_ceil(chunks).max(1));
    sizes.extend(even.filter(|size| *size >= least));
    sizes.sort_unstable_by_key(|size| Reverse(*size));
    sizes.dedup();
    let mut choice = Choice { chunk: most, seconds: f64::INFINITY };
    for chunk in sizes {
        let seconds = pipeline.seconds(positions, chunk);
        if seconds < choice.seconds {
            choice = Choice { chunk, seconds };
        }
    }
    choice
}

impl Pipeline {
    /// Chunks of that size that are in flight at most.
    pub fn window(&self, chunk: usize) -> usize {
        self.in_flight.min(self.positions_in_flight / chunk.max(1)).max(1)
    }

    /// Seconds from the first chunk's leaving the client to the last one's answer, for so many positions in chunks of that size.
    ///
    /// Links and stages take chunks in order, one at a time; what computes at once on one machine shares its time evenly. A
    /// chunk that is done goes on at once: credit between neighbours is for more chunks than the client has unanswered.
    pub fn seconds(&self, positions: usize, chunk: usize) -> f64 {
        let (chunk, positions) = (chunk.max(1), positions.max(1));
        let (chunks, last) = (positions.div_ceil(chunk), (positions - 1) % chunk + 1);
        let servers = self.servers();
        let window = self.window(chunk);
        // Whole rounds are left out: within one, answers need not come evenly.
        let most = PLAYED.max(ROUNDS * window);
        let left_out = chunks.saturating_sub(most).div_ceil(window) * window;
        let played = chunks.saturating_sub(left_out).max(1);
        let sizes: Vec<_> = (1..=played).map(|number| if number < played { chunk } else { last }).collect();
        let paces = servers.iter().map(|one| {
            let own = servers.iter().filter(|server| server.resource == one.resource);
            own.map(|server| server.step.seconds(chunk)).sum::<f64>()
        });
        let round: f64 = servers.iter().map(|server| server.step.seconds(chunk) + server.delay).sum();
        let pace = paces.fold((round + self.back) / window as f64, f64::max);
        play(&servers, &sizes, window, self.back) + (chunks - played) as f64 * pace
    }

    /// Link and stage in turn. Machines have their numbers, links numbers above them.
    fn servers(&self) -> Vec<Server> {
        let machines = self.stages.iter().map(|(_, stage)| stage.machine + 1).max().unwrap_or_default();
        let both = self.stages.iter().enumerate().flat_map(|(at, (link, stage))| {
            let way = Server { resource: machines + at, step: link.step(), delay: link.delay };
            [way, Server { resource: stage.machine, step: stage.step, delay: 0.0 }]
        });
        both.collect()
    }
}

/// A server at work.
#[derive(Debug, Default)]
struct Work {
    /// When those that are on their way to it arrive, and those that wait: in order, for nobody overtakes.
    coming: VecDeque<(f64, usize)>,
    /// The chunk in hand, and the seconds that it still takes where nobody else has the resource.
    hand: Option<(usize, f64)>,
}

/// Plays chunks of those sizes through; when the last one is answered, in seconds.
fn play(servers: &[Server], sizes: &[usize], window: usize, back: f64) -> f64 {
    let mut works: Vec<Work> = servers.iter().map(|_| Work::default()).collect();
    let Some(first) = works.first_mut() else { return back };
    first.coming = (0..sizes.len().min(window)).map(|number| (0.0, number)).collect();
    let (mut now, mut end) = (0.0, 0.0);
    let mut busy = vec![0_usize; servers.iter().map(|server| server.resource + 1).max().unwrap_or_default()];
    loop {
        busy.fill(0);
        let mut next = f64::INFINITY;
        for (server, work) in servers.iter().zip(&mut works) {
            match work.coming.front() {
                Some(&(at, number)) if work.hand.is_none() && at <= now => {
                    work.coming.pop_front();
                    work.hand = Some((number, server.step.seconds(sizes[number])));
                }
                // Whoever has one in hand looks for the next when it is done.
                Some(&(at, _)) if work.hand.is_none() => next = next.min(at),
                _ => {}
            }
            busy[server.resource] += usize::from(work.hand.is_some());
        }
        let left = |server: &Server, work: &Work| work.hand.map(|(_, left)| left * busy[server.resource] as f64);
        let done =
            servers.iter().zip(&works).filter_map(|(server, work)| left(server, work)).fold(f64::INFINITY, f64::min);
        let next = next.min(now + done);
        if next.is_infinite() {
            return end;
        }
        for at in 0..works.len() {
            let share = (next - now) / busy[servers[at].resource].max(1) as f64;
            let Some((number, left)) = works[at].hand else { continue };
            // The one that was waited for is done, whatever its seconds are rounded to.
            let ready = left * busy[servers[at].resource] as f64 <= next - now + f64::EPSILON * next;
            works[at].hand = if ready { None } else { Some((number, left - share)) };
            if ready {
                let arrives = next + servers[at].delay;
                match works.get_mut(at + 1) {
                    Some(following) => following.coming.push_back((arrives, number)),
                    None => {
                        end = arrives + back;
                        let entering = number + window;
                        works[0].coming.extend((entering < sizes.len()).then_some((end, entering)));
                    }
                }
            }
        }
        now = next;
    }
}

#[cfg(test)]
mod tests;
