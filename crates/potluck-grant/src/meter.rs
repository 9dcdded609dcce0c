//! What is used of grants that say how much.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive};

use potluck_core::Defence;

use crate::{GrantError, GrantId, Scope};

/// Links that are counted in a day. What rests on a further one is refused until the day is over.
const COUNTED_MAX: usize = 65_536;

const DAY_SECONDS: u64 = 24 * 3_600;

/// Positions that are noted ahead, so that not every step waits for a disk: what a crash costs a grant. A sixteenth of its limit, within these.
const POSITIONS_AHEAD: RangeInclusive<u64> = 32..=1_024;

/// The same of bytes.
const BYTES_AHEAD: RangeInclusive<u64> = 1 << 20..=1 << 28;

/// Keeps counts over a restart: the day (since 1970), which link, and what counts as used. It returns once that is safe.
pub type Keep = Box<dyn FnMut(u64, GrantId, u64) -> Result<(), String> + Send>;

/// Counts positions by link and UTC day: what was handed on from a link counts for it, too.
#[derive(Default)]
pub struct Meter(Counts);

/// Counts bytes to and from services in the same way.
#[derive(Default)]
pub struct ByteMeter(Counts);

#[derive(Default)]
struct Counts {
    day: u64,
    used: BTreeMap<GrantId, Count>,
    keep: Option<Keep>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    used: u64,
    /// What is kept as used: as much or more.
    noted: u64,
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Meter(day {}, {} links)", self.0.day, self.0.used.len())
    }
}

impl fmt::Debug for ByteMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ByteMeter(day {}, {} links)", self.0.day, self.0.used.len())
    }
}

impl Meter {
    /// One that goes on from what was kept of that day, and keeps what it counts.
    pub fn kept(day: u64, used: impl IntoIterator<Item = (GrantId, u64)>, keep: Keep) -> Self {
        Self(Counts::kept(day, used, keep))
    }

    /// Counts so many positions at `now` (UTC seconds), for every link of the grant that sets a limit: all of them, or none.
    ///
    /// # Errors
    /// `Spent` where they are more than is left of the day; `TooMany` where so many links are not counted; `Uncounted` where they cannot be
    /// kept: what is not counted is not served.
    pub fn charge(&mut self, scope: &Scope, positions: u64, now: u64) -> Result<(), GrantError> {
        let limits = scope.budgets().iter().map(|budget| (budget.link, budget.tokens_per_day));
        let spent = |link, tokens_per_day| GrantError::Spent { link, tokens_per_day };
        self.0.charge(limits, positions, now, &POSITIONS_AHEAD, spent)
    }

    /// Keeps exactly what was used: before an end that is no crash.
    ///
    /// # Errors
    /// `Uncounted`, where some of it cannot be kept; then what was noted ahead counts as used.
    pub fn settle(&mut self) -> Result<(), GrantError> {
        self.0.settle()
    }
}

impl ByteMeter {
    /// One that goes on from what was kept of that day, and keeps what it counts.
    pub fn kept(day: u64, used: impl IntoIterator<Item = (GrantId, u64)>, keep: Keep) -> Self {
        Self(Counts::kept(day, used, keep))
    }

    /// Counts so many bytes at `now` (UTC seconds), for every link of the grant that sets a limit: all of them, or none.
    ///
    /// # Errors
    /// `BytesSpent`, `TooMany` and `Uncounted`, as for [`Meter::charge`].
    pub fn charge(&mut self, scope: &Scope, bytes: u64, now: u64) -> Result<(), GrantError> {
        let limits = scope.byte_budgets().iter().map(|budget| (budget.link, budget.bytes_per_day));
        let spent = |link, bytes_per_day| GrantError::BytesSpent { link, bytes_per_day };
        self.0.charge(limits, bytes, now, &BYTES_AHEAD, spent)
    }
}

impl Counts {
    fn kept(day: u64, used: impl IntoIterator<Item = (GrantId, u64)>, keep: Keep) -> Self {
        let used = used.into_iter().map(|(link, used)| (link, Count { used, noted: used })).collect();
        Self { day, used, keep: Some(keep) }
    }

    fn charge(
        &mut self,
        limits: impl Iterator<Item = (GrantId, u64)> + Clone,
        amount: u64,
        now: u64,
        ahead: &RangeInclusive<u64>,
        spent: impl Fn(GrantId, u64) -> GrantError,
    ) -> Result<(), GrantError> {
        if limits.clone().next().is_none() {
            return Ok(());
        }
        // A clock that is set back gives nobody a second day.
        if now / DAY_SECONDS > self.day {
            (self.day, self.used) = (now / DAY_SECONDS, BTreeMap::new());
        }
        for (link, limit) in limits.clone() {
            let used = self.used.get(&link).map_or(0, |count| count.used);
            if used.saturating_add(amount) > limit && Defence::TokensPerDay.stands() {
                return Err(spent(link, limit));
            }
        }
        let new = limits.clone().filter(|(link, _)| !self.used.contains_key(link)).count();
        if self.used.len() + new > COUNTED_MAX {
            return Err(GrantError::TooMany);
        }
        for (link, limit) in limits.clone() {
            let count = self.used.entry(link).or_default();
            let used = count.used.saturating_add(amount);
            if used > count.noted
                && let Some(keep) = &mut self.keep
            {
                let ahead = (limit / 16).clamp(*ahead.start(), *ahead.end());
                let noted = used.saturating_add(ahead).min(limit);
                keep(self.day, link, noted).map_err(GrantError::Uncounted)?;
                count.noted = noted;
            }
        }
        for (link, _) in limits {
            let count = self.used.entry(link).or_default();
            count.used = count.used.saturating_add(amount);
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), GrantError> {
        let Some(keep) = &mut self.keep else { return Ok(()) };
        for (link, count) in self.used.iter_mut().filter(|(_, count)| count.noted != count.used) {
            keep(self.day, *link, count.used).map_err(GrantError::Uncounted)?;
            count.noted = count.used;
        }
        Ok(())
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        // Where it fails, more counts as used than was: nobody gains by it.
        let _ = self.settle();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use potluck_core::SecretKey;

    use super::*;
    use crate::{Caveats, Gate, Role, Root};

    type Disk = Arc<Mutex<BTreeMap<GrantId, u64>>>;

    const NOW: u64 = 1_900_000_000;

    fn scope(limit: u64) -> Scope {
        let root = Root::from_bytes(&[1; 32]);
        let holder = SecretKey::from_bytes(&[2; 32]).peer_id();
        let caveats = Caveats {
            role: Some(Role::Guest),
            until: Some(NOW * 2),
            tokens_per_day: Some(limit),
            ..Caveats::default()
        };
        let grant = root.grant_as(holder, &caveats).unwrap().into_bytes();
        Gate::new(root.public()).read(&grant).unwrap().scope().clone()
    }

    fn meter(disk: &Disk) -> Meter {
        let kept: Vec<_> = disk.lock().unwrap().iter().map(|(link, used)| (*link, *used)).collect();
        let disk = disk.clone();
        let keep = move |_, link, used| {
            disk.lock().unwrap().insert(link, used);
            Ok(())
        };
        Meter::kept(NOW / DAY_SECONDS, kept, Box::new(keep))
    }

    #[test]
    fn an_end_costs_nothing_and_a_crash_a_little_and_neither_gives_anything() {
        let (disk, scope) = (Disk::default(), scope(1_600));
        let mut first = meter(&disk);
        for _ in 0..10 {
            first.charge(&scope, 40, NOW).unwrap();
        }
        let at_crash = *disk.lock().unwrap().values().next().unwrap();
        assert!((400..=500).contains(&at_crash), "{at_crash}");
        drop(first);
        assert_eq!(disk.lock().unwrap().values().copied().collect::<Vec<_>>(), [400]);
        let mut second = meter(&disk);
        assert!(matches!(second.charge(&scope, 1_201, NOW), Err(GrantError::Spent { .. })));
        second.charge(&scope, 1_200, NOW).unwrap();
        // As if it had been killed: nothing is settled.
        std::mem::forget(second);
        let mut third = meter(&disk);
        assert!(matches!(third.charge(&scope, 1, NOW), Err(GrantError::Spent { .. })));
        assert!(third.charge(&scope, 1, NOW + DAY_SECONDS).is_ok(), "the next day");
    }

    #[test]
    fn what_cannot_be_counted_is_not_served() {
        let full = |_, _, _| Err("the disk is full".to_owned());
        let mut meter = Meter::kept(NOW / DAY_SECONDS, [], Box::new(full));
        assert!(matches!(meter.charge(&scope(100), 1, NOW), Err(GrantError::Uncounted(_))));
    }
}
