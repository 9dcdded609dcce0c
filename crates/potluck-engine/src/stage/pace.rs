//! How many threads a step gets: fewer while somebody else computes on the same cores.
//!
//! ggml's threads wait for each other at a barrier after each operation, and spin there. Where another program takes a core, each
//! barrier waits for the thread that lost it: a token takes ten times as long, and more, though most of the machine is free.
//! With half as many threads there is a core to spare, and the token takes twice as long at most.

/// A step so many times slower than the best of late was held up at its barriers: half the threads would have been faster.
const HELD_UP: f64 = 4.0;

/// So was one that took so many times what half the threads take: alone they are at least as fast.
const WORSE_THAN_HALF: f64 = 2.0;

/// So many of them in a row, and the threads are halved: one alone may be a hiccup.
const IN_A_ROW: u8 = 2;

/// How fast, a step, the best of late is forgotten, and what half the threads took: steps get slower as their context grows.
const FORGET: f64 = 1.02;
const FORGET_HALF: f64 = 1.002;

/// How much of a step with half the threads enters what they take.
const LEARN_HALF: f64 = 0.25;

/// Steps after which all threads are tried again; doubled each time that they are held up at once, up to the second number.
const TRY_AGAIN: (u32, u32) = (32, 1_024);

/// Decides from the times of single positions, all that it knows.
#[derive(Debug)]
pub(super) struct Pace {
    full: u16,
    halved: bool,
    /// Seconds of the fastest step of late with all threads.
    best: f64,
    /// Seconds that half the threads took.
    half: f64,
    in_a_row: u8,
    patience: u32,
    /// Steps until all threads are tried again.
    left: u32,
}

impl Pace {
    /// All threads at all times.
    pub(super) fn constant() -> Self {
        // Of one there is no half.
        Self::new(1, f64::INFINITY)
    }

    /// Begins with all threads. `half`: seconds of a step with half of them, so that it shows also where others compute from
    /// the first step on.
    pub(super) fn new(full: u16, half: f64) -> Self {
        Self { full, halved: false, best: f64::INFINITY, half, in_a_row: 0, patience: TRY_AGAIN.0, left: 0 }
    }

    /// True while half the threads are used.
    pub(super) fn is_halved(&self) -> bool {
        self.halved
    }

    /// A step of one position took so many seconds. True if the number of threads is to be changed.
    pub(super) fn took(&mut self, seconds: f64) -> bool {
        if self.full < 2 {
            return false;
        }
        if self.halved {
            self.half = if self.half.is_finite() { self.half + (seconds - self.half) * LEARN_HALF } else { seconds };
            self.left = self.left.saturating_sub(1);
            self.halved = self.left > 0;
            return !self.halved;
        }
        self.half *= FORGET_HALF;
        if seconds <= self.best * HELD_UP && seconds <= self.half * WORSE_THAN_HALF {
            self.in_a_row = 0;
            self.best = seconds.min(self.best * FORGET);
            // Once they have run well for a while, the next hold-up is a new one.
            self.left = self.left.saturating_add(1);
            if self.left >= TRY_AGAIN.0 {
                self.patience = TRY_AGAIN.0;
            }
            return false;
        }
        self.in_a_row += 1;
        // Tried again and held up at once: that the others are still there is no news.
        let needed = if self.patience > TRY_AGAIN.0 { 1 } else { IN_A_ROW };
        if self.in_a_row < needed {
            return false;
        }
        // When all are tried again, what half of them take by then is what they are held against.
        (self.halved, self.in_a_row, self.left, self.best) = (true, 0, self.patience, f64::INFINITY);
        self.patience = (self.patience * 2).min(TRY_AGAIN.1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: f64 = 0.014;

    /// Steps with all threads and with half of them, where `busy` says when others compute.
    fn run(pace: &mut Pace, steps: usize, busy: impl Fn(usize) -> bool) -> (usize, usize) {
        let mut used = (0, 0);
        for step in 0..steps {
            let (seconds, count) = match (pace.is_halved(), busy(step)) {
                (true, _) => (HALF, &mut used.1),
                (false, true) => (0.080, &mut used.0),
                (false, false) => (0.008, &mut used.0),
            };
            *count += 1;
            pace.took(seconds);
        }
        used
    }

    #[test]
    fn a_constant_pace_keeps_all_threads_whoever_computes() {
        assert_eq!(run(&mut Pace::constant(), 500, |_| true), (500, 0));
    }

    #[test]
    fn alone_all_threads_are_used_and_a_hiccup_changes_nothing() {
        let mut pace = Pace::new(2, HALF);
        assert_eq!(run(&mut pace, 1_000, |step| step % 50 == 49), (1_000, 0));
        // A context that grows makes steps slower, and is no hold-up.
        let mut pace = Pace::new(2, HALF);
        assert!((0..2_000).all(|step| !pace.took(0.008 * (1.0 + f64::from(step) / 500.0))));
        // A long prompt makes them slower at once: that may be taken for one, and is found out.
        run(&mut pace, 10, |_| false);
        let halved: usize = (0..1_000)
            .filter(|_| {
                let halved = pace.is_halved();
                pace.took(if halved { 0.14 } else { 0.08 });
                halved
            })
            .count();
        assert!(halved <= 32, "{halved} steps with half the threads, for nothing");
    }

    #[test]
    fn beside_others_half_of_them_and_all_again_when_they_are_gone() {
        let mut pace = Pace::new(2, HALF);
        let (all, half) = run(&mut pace, 500, |_| true);
        assert!(all <= 7, "{all} steps of 500 were held up");
        assert_eq!(all + half, 500);
        let (all, half) = run(&mut pace, 2_000, |_| false);
        assert!(half < 600 && all > 1_400, "{half} steps with half the threads after the others had gone");
        assert!(!pace.is_halved());
    }

    #[test]
    fn one_thread_stays_one() {
        assert_eq!(run(&mut Pace::new(1, HALF), 100, |_| true), (100, 0));
    }
}
