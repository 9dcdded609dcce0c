//! Whether a stage had better wait a moment: sessions that share a batch come back one after the other, and the first would
//! run alone, with all the others behind it.
//!
//! A batch has a cost of its own, whoever is in it, and llama.cpp runs a batch in one piece only where its caches are
//! neighbours: one that misses some falls apart. So a stage that is idle waits for a session that it answered just now and that
//! will be back soon, as far as its last return tells. It does so for an eighth of the last batch's time at most, and for nobody who
//! is late: where the way back is long, through other peers, it never waits.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use potluck_core::SessionKey;

/// A stage waits for no longer than its last batch's time divided by this.
const SHARE: u32 = 8;

/// What is added to the time that a session took last: a quarter of it, and this.
const GRACE: Duration = Duration::from_micros(250);

/// A session that takes part in batches of short steps.
#[derive(Debug, Clone, Copy, Default)]
struct Member {
    /// When its last step was answered; none: it has come back since.
    answered: Option<Instant>,
    /// How long it took to come back, last time.
    away: Option<Duration>,
}

/// Who may be back soon. Knows no clock.
#[derive(Debug, Default)]
pub(crate) struct Company {
    members: BTreeMap<SessionKey, Member>,
    /// What the last batch took.
    cost: Duration,
    /// When the stage began to wait.
    waits_since: Option<Instant>,
    held_until: Option<Instant>,
}

impl Company {
    /// A session is over.
    pub(crate) fn forget(&mut self, session: SessionKey) {
        self.members.remove(&session);
    }

    /// A session's next step is here.
    pub(crate) fn came(&mut self, session: SessionKey, now: Instant) {
        let member = self.members.entry(session).or_default();
        if let Some(answered) = member.answered.take() {
            member.away = Some(now.saturating_duration_since(answered));
        }
    }

    /// A batch of short steps ended, after so long, of sessions that have no further step here. One that has ended meanwhile is
    /// not taken up again.
    pub(crate) fn ran(&mut self, sessions: impl Iterator<Item = SessionKey>, now: Instant, cost: Duration) {
        self.cost = cost;
        for session in sessions {
            if let Some(member) = self.members.get_mut(&session) {
                member.answered = Some(now);
            }
        }
    }

    /// A batch began: nobody is waited for any longer.
    pub(crate) fn begun(&mut self) {
        (self.waits_since, self.held_until) = (None, None);
    }

    /// True if somebody is worth waiting for at this instant, while others wait already.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let limit = *self.waits_since.get_or_insert(now) + self.cost / SHARE;
        let due = self.members.values().filter_map(|member| {
            let away = member.away?;
            Some(member.answered? + away + away / 4 + GRACE)
        });
        self.held_until = due.filter(|due| *due > now && *due <= limit).max();
        self.held_until.is_some()
    }

    /// Until when.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        self.held_until
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test is its own driver")]
mod tests {
    use potluck_core::{PeerId, SessionId};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn key(n: u8) -> SessionKey {
        SessionKey { client: PeerId::from_bytes([n; 32]), id: SessionId::from_bytes([n; 16]) }
    }

    /// Two sessions that were answered together after 40 ms, and came back after so long.
    fn company(first: Duration, second: Duration) -> (Company, Instant) {
        let mut company = Company::default();
        let now = Instant::now();
        [1, 2].into_iter().for_each(|n| company.came(key(n), now));
        company.ran([key(1), key(2)].into_iter(), now, 40 * MS);
        assert!(!company.is_due(now + MS), "how long they take is not known yet");
        company.came(key(1), now + first);
        company.came(key(2), now + second);
        company.begun();
        (company, now + second)
    }

    #[test]
    fn who_will_be_back_soon_is_waited_for_until_then_and_no_longer() {
        let (mut company, now) = company(MS, 2 * MS);
        let answered = now + 40 * MS;
        company.ran([key(1), key(2)].into_iter(), answered, 40 * MS);
        company.came(key(1), answered + MS);
        assert!(company.is_due(answered + MS));
        let until = company.held_until().unwrap();
        assert!(until > answered + 2 * MS && until < answered + 3 * MS);
        assert!(!company.is_due(until), "it is late");
        assert_eq!(company.held_until(), None);

        company.begun();
        company.ran([key(1), key(2)].into_iter(), answered, 40 * MS);
        company.came(key(1), answered + MS);
        assert!(company.is_due(answered + MS));
        company.came(key(2), answered + 2 * MS);
        assert!(!company.is_due(answered + 2 * MS), "all are here");
    }

    #[test]
    fn who_has_a_long_way_or_has_left_is_not_waited_for() {
        let (mut company, now) = company(MS, 9 * MS);
        company.ran([key(1), key(2)].into_iter(), now, 40 * MS);
        company.came(key(1), now + MS);
        assert!(!company.is_due(now + MS), "an eighth of 40 ms is not enough");
        // From there on it is, though nobody waits so long again and again.
        assert!(!company.is_due(now + 5 * MS));
        company.begun();
        assert!(company.is_due(now + 8 * MS), "for another that came in the meantime");
        company.forget(key(2));
        assert!(!company.is_due(now + 8 * MS));
        company.ran([key(2)].into_iter(), now + 9 * MS, MS);
        assert_eq!(company.members.len(), 1, "its last step does not bring it back");
    }
}
