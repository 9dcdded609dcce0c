//! What the kernel counts of a process: for the reasons behind a ratio.

use std::fs;

/// Nanoseconds of one tick of the processor times in `/proc`: `USER_HZ` is 100 on every Linux.
const TICK_MS: f64 = 10.0;

/// Of one process and all its threads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    /// Times that a thread slept to be woken again.
    pub(crate) sleeps: u64,
    /// Times that a thread was put aside for another.
    pub(crate) preempted: u64,
    /// Milliseconds of processor time.
    pub(crate) cpu_ms: f64,
}

impl Counters {
    /// Of the process now; zeros where the system does not tell.
    pub(crate) fn of(pid: u32) -> Self {
        let mut sum = Self::default();
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return sum };
        for thread in threads.flatten() {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name));
                line.and_then(|line| line.rsplit('\t').next()?.trim().parse().ok()).unwrap_or(0u64)
            };
            sum.sleeps += field("voluntary_ctxt_switches");
            sum.preempted += field("nonvoluntary_ctxt_switches");
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in brackets, may hold spaces: fields are counted from its end.
        let fields: Vec<f64> =
            stat.rsplit(')').next().unwrap_or("").split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
        sum.cpu_ms = fields.get(11..13).map_or(0.0, |times| times.iter().sum::<f64>() * TICK_MS);
        sum
    }

    /// What was added since `before`, for each of `count`.
    pub(crate) fn since(self, before: Self, count: f64) -> String {
        format!(
            "{:.1} sleeps, {:.1} preemptions, {:.2} ms of processor time",
            (self.sleeps - before.sleeps) as f64 / count,
            (self.preempted - before.preempted) as f64 / count,
            (self.cpu_ms - before.cpu_ms) / count
        )
    }
}

/// A process and those that it started.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut members = vec![pid];
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for thread in threads {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        members.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    members
}
