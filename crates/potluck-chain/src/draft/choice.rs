//! The arithmetic of a round: what each way of drafting is expected to make, in tokens a second.

use super::{Controller, Rule, TREE_ROWS_MAX};

/// A way of drafting has to promise so much more than plain steps before it is taken: it may err by that much.
pub(super) const GAIN_MIN: f64 = 1.03;

/// Rows that a round may have beyond the first before wider steps were measured, and how fast that grows.
const ROWS_FIRST: usize = 3;
const ROWS_GROWTH: usize = 2;

/// Guesses that one token may have in a tree.
const WIDTH_MAX: usize = 8;

/// Of a window that turns out wrong, the next one waits for the step that a stage is in: half of it on average.
const WAIT_FOR_STAGE: f64 = 0.5;

/// A further window has to be of use so often: stages are others', too, and what is in vain takes their time.
const REACHED_MIN: f64 = 0.2;

/// While nothing is known of windows that follow each other: their distance, of a traversal's time, is at least this.
const INTERVAL_MIN: f64 = 0.25;

/// The lookup's windows are planned to follow each other at least so far apart, of a plain step. Guesses that cost nothing make a window
/// as wide as one likes, and many narrow ones cost whoever carries them more than a few wide ones.
const SPACING_MIN: f64 = 0.08;

/// What a way of drafting promises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Offer {
    /// Tokens a second.
    pub(super) rate: f64,
    /// Drafts of its windows.
    pub(super) window: usize,
    /// What is certain leaves at once, and drafts follow it as they are made.
    pub(super) streams: bool,
}

/// Drafts that a round may have: not far beyond what was measured, and no more than the account can lose.
fn rows_max(controller: &Controller) -> usize {
    let widest = (controller.traversals.widest() * ROWS_GROWTH).clamp(1 + ROWS_FIRST, TREE_ROWS_MAX) - 1;
    let risk = |rows: usize| controller.step(1.0 + rows as f64) - controller.plain_step();
    (1..=widest).take_while(|rows| risk(*rows) <= controller.account.balance()).last().unwrap_or(0)
}

/// Seconds between the answers of two windows of so many rows that follow each other.
pub(super) fn interval(controller: &Controller, rows: f64) -> f64 {
    let traversal = controller.step(rows);
    let believed = (traversal - controller.plain_step()).max(INTERVAL_MIN * traversal);
    let known = if controller.intervals.is_known() { controller.intervals.at(rows) } else { believed };
    known.min(traversal)
}

/// How far apart the lookup's windows of so many rows are planned to be, in seconds.
fn spacing(controller: &Controller, rows: usize) -> f64 {
    interval(controller, rows as f64).max(SPACING_MIN * controller.plain_step())
}

/// Guesses of the lookup that a further window should have, given the probability of each that it is reached from the window before it:
/// those that bring the most tokens for the time that they keep the slowest stage busy.
pub(super) fn lookup_further(controller: &Controller, reached: &[f64]) -> usize {
    let tokens = reached.iter().scan(0.0, |sum, reached| {
        *sum += reached;
        Some(*sum)
    });
    let rates = (1..=rows_max(controller)).zip(tokens).map(|(rows, tokens)| (rows, tokens / spacing(controller, rows)));
    rates.max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(rows, _)| rows)
}

/// The best number of the lookup's guesses to send, given the probability of each that it is reached: in one window,
/// or in several of one size that follow each other.
pub(super) fn lookup(controller: &Controller, reached: &[f64]) -> Option<Offer> {
    let mut best: Option<Offer> = None;
    let mut tokens = 1.0;
    let all: f64 = 1.0 + reached.iter().sum::<f64>();
    for rows in 1..=rows_max(controller).min(reached.len()) {
        tokens += reached[rows - 1];
        let first = controller.step(1.0 + rows as f64);
        let between = spacing(controller, rows);
        // A further window begins with a guess at the token that the one before it ends with.
        let further: f64 = reached.iter().skip(rows).step_by(rows).map(|begun| begun * between).sum();
        let wrong = WAIT_FOR_STAGE * between * (1.0 - reached.last().copied().unwrap_or(0.0));
        let deep = if reached.len() > rows { all / (first + further + wrong) } else { 0.0 };
        let rate = (tokens / first).max(deep);
        if best.is_none_or(|best| best.rate < rate) {
            best = Some(Offer { rate, window: rows, streams: false });
        }
    }
    best
}

/// What drafts of the model make that follow what is certain one window after the other, so that no step waits for them.
pub(super) fn streamed(controller: &Controller) -> Option<Offer> {
    // Whether they come in time is known once one was waited for.
    controller.forward?;
    let hit = controller.first.value.clamp(0.01, 0.99);
    let window = model_window(controller);
    let each = controller.forward_seconds().max(interval(controller, window as f64) / window as f64);
    // So many are under way that are not known yet.
    let depth = (REACHED_MIN.ln() / hit.ln()).floor().clamp(1.0, TREE_ROWS_MAX as f64) as i32;
    let tokens: f64 = (0..=depth).map(|level| hit.powi(level)).sum();
    let first = controller.step(window as f64);
    Some(Offer { rate: tokens / (first + each * (tokens - 1.0)), window, streams: true })
}

/// The rule under which such drafts are made: as long as they are likely to be sent.
pub(super) fn streaming(controller: &Controller, rule: Rule) -> Rule {
    let hit = controller.first.value.clamp(0.05, 0.99);
    Rule { row: REACHED_MIN * hit, forward: 0.0, hit, rows_max: TREE_ROWS_MAX, forwards_max: 0, ..rule }
}

/// The best depth of the draft model's trees, if each level is hit as often as the average one.
pub(super) fn model(controller: &Controller) -> Option<Offer> {
    let hit = controller.hit.value.clamp(0.0, 0.99);
    let forward = controller.forward_seconds() * controller.waited.value;
    let rows_per_level = controller.rows_per_level.value.max(1.0);
    let levels = (rows_max(controller) as f64 / rows_per_level).ceil() as usize;
    let offer = |depth: usize| {
        let tokens: f64 = (0..=depth).map(|level| hit.powi(level as i32)).sum();
        let step = controller.step(1.0 + rows_per_level * depth as f64) + forward * depth as f64;
        // Whoever waits for it or not: a level takes a forward.
        let seconds = step.max(controller.forward_seconds() * depth as f64);
        Offer { rate: tokens / seconds, window: depth, streams: false }
    };
    let affordable = |depth: &usize| forward * *depth as f64 <= controller.account.balance();
    (1..=levels).take_while(affordable).map(offer).max_by(|a, b| a.rate.total_cmp(&b.rate))
}

/// The rule under which a tree grows where tokens are made at `rate`.
pub(super) fn rule(controller: &Controller, rate: f64) -> Rule {
    let rows_max = rows_max(controller);
    let forward = controller.forward_seconds();
    let typical = controller.rows_per_level.value * 4.0;
    Rule {
        row: rate * controller.traversals.per_row(typical),
        forward: rate * forward,
        hit: controller.hit.value.clamp(0.05, 0.99),
        rows_max,
        depth_max: TREE_ROWS_MAX,
        width_max: WIDTH_MAX,
        forwards_max: (controller.account.balance() / forward.max(1e-9)).clamp(1.0, 1e6) as usize,
    }
}

/// Rows that a further window of the draft model should have: as few as keep the slowest stage no busier than need be.
pub(super) fn model_window(controller: &Controller) -> usize {
    const WIDE: f64 = 32.0;
    const SLACK: f64 = 1.3;
    if !controller.intervals.is_known() {
        // Whether a stage cannot follow shows by itself.
        return 1;
    }
    let row = (SLACK * interval(controller, WIDE) / WIDE).max(controller.forward_seconds());
    (1..WIDE as usize).find(|rows| interval(controller, *rows as f64) <= *rows as f64 * row).unwrap_or(WIDE as usize)
}

/// Whether a window of so many rows is worth sending behind others, where its first row is accepted with `reached`.
pub(super) fn another_window(controller: &Controller, reached: f64, rows: usize) -> bool {
    let between = interval(controller, rows as f64);
    let saved = controller.step(rows as f64) - between;
    let risk = WAIT_FOR_STAGE * between;
    reached >= REACHED_MIN && reached * saved > (1.0 - reached) * risk && risk <= controller.account.balance()
}
