//! What is used of grants that say how many bytes a day.

use std::collections::BTreeMap;

use crate::{GrantError, GrantId, Scope};

/// Links that are counted in a day. What rests on a further one is refused until the day is over.
const COUNTED_MAX: usize = 65_536;

const DAY_SECONDS: u64 = 24 * 3_600;

/// Counts bytes by link and UTC day: what was handed on from a link counts for it, too.
#[derive(Debug, Default)]
pub struct ByteMeter {
    day: u64,
    used: BTreeMap<GrantId, u64>,
}

impl ByteMeter {
    /// Counts so many bytes at `now` (UTC seconds), for every link of the grant that sets a limit: all of them, or none.
    ///
    /// # Errors
    /// `BytesSpent` where they are more than is left of the day; `TooMany` where so many links are not counted.
    pub fn charge(&mut self, scope: &Scope, bytes: u64, now: u64) -> Result<(), GrantError> {
        let budgets = scope.byte_budgets();
        if budgets.is_empty() {
            return Ok(());
        }
        // A clock that is set back gives nobody a second day.
        if now / DAY_SECONDS > self.day {
            (self.day, self.used) = (now / DAY_SECONDS, BTreeMap::new());
        }
        for budget in budgets {
            let used = self.used.get(&budget.link).copied().unwrap_or(0);
            if used.saturating_add(bytes) > budget.bytes_per_day {
                return Err(GrantError::BytesSpent { link: budget.link, bytes_per_day: budget.bytes_per_day });
            }
        }
        let new = budgets.iter().filter(|budget| !self.used.contains_key(&budget.link)).count();
        if self.used.len() + new > COUNTED_MAX {
            return Err(GrantError::TooMany);
        }
        for budget in budgets {
            *self.used.entry(budget.link).or_default() += bytes;
        }
        Ok(())
    }
}
