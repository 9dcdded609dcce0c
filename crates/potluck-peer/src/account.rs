//! What a peer keeps of the work that it did for a session: counts and times, never content.

use std::time::{Duration, Instant};

use potluck_core::{Account, SessionKey};

use crate::{Effect, Peer, StreamId, open::next_peer};

/// A session's account as it grows: times in full, for many are shorter than a microsecond.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) steps: u64,
    pub(crate) positions: u64,
    pub(crate) queue: Duration,
    pub(crate) compute: Duration,
    pub(crate) handover: Duration,
    pub(crate) codec: Duration,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

/// The time within an event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch {
    event: Instant,
    read: Option<fn() -> Instant>,
}

impl Watch {
    pub(crate) fn now(&self) -> Instant {
        self.read.map_or(self.event, |read| read())
    }
}

impl Tally {
    /// A step's batch ran: how long the step had waited, how long the engine was away with it, and computed.
    pub(crate) fn ran(&mut self, positions: u16, waited: Duration, away: Duration, compute: Duration) {
        self.steps += 1;
        self.positions += u64::from(positions);
        self.queue += waited;
        self.compute += compute;
        self.handover += away.saturating_sub(compute);
    }

    fn account(&self) -> Account {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Account {
            steps: self.steps,
            positions: self.positions,
            queue_us: us(self.queue),
            compute_us: us(self.compute),
            handover_us: us(self.handover),
            codec_us: us(self.codec),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            next_rtt_us: None,
        }
    }
}

impl Peer {
    /// What reads the time within an event that came at `event`.
    pub(crate) fn watch(&self, event: Instant) -> Watch {
        Watch { event, read: self.stopwatch }
    }

    /// A client asks what was done for its session.
    pub(crate) fn account_asked(&mut self, stream: StreamId, key: SessionKey) {
        let Some(session) = self.sessions.get(&key) else { return };
        let (account, next) = (session.tally.account(), next_peer(&session.open));
        self.effects.push_back(Effect::Account { stream, account, next });
    }
}
