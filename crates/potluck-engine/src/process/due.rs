//! Which replies an engine owes, so that nothing else is believed and nothing is waited for in vain.

use potluck_core::{CacheId, StageCommand, StageError, StageReply};

/// A reply that is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Opened(CacheId),
    Forwarded { batch: u64, steps: usize },
    Row(CacheId, u16),
    Saved(CacheId),
    Restored(CacheId),
    Exported(CacheId),
    Imported(CacheId),
}

impl Due {
    /// What `command` is answered by, if it is answered.
    pub(super) fn of(command: &StageCommand) -> Option<Self> {
        match command {
            StageCommand::Open { cache, .. } => Some(Self::Opened(*cache)),
            StageCommand::Fork { to, .. } => Some(Self::Opened(*to)),
            StageCommand::Close { .. } => None,
            StageCommand::Forward { batch, steps } => Some(Self::Forwarded { batch: *batch, steps: steps.len() }),
            StageCommand::Row { cache, row } => Some(Self::Row(*cache, *row)),
            StageCommand::Save { cache, .. } => Some(Self::Saved(*cache)),
            StageCommand::Restore { cache, .. } => Some(Self::Restored(*cache)),
            StageCommand::Export { cache, .. } => Some(Self::Exported(*cache)),
            StageCommand::Import { cache, .. } => Some(Self::Imported(*cache)),
        }
    }

    /// True if `reply` is the one that is owed.
    pub(super) fn is_paid_by(&self, reply: &StageReply) -> bool {
        match (*self, reply) {
            (Self::Opened(due), StageReply::Opened { cache, .. })
            | (Self::Saved(due), StageReply::Saved { cache, .. })
            | (Self::Restored(due), StageReply::Restored { cache, .. })
            | (Self::Exported(due), StageReply::Exported { cache, .. })
            | (Self::Imported(due), StageReply::Imported { cache, .. }) => due == *cache,
            (Self::Forwarded { batch: due, steps }, StageReply::Forwarded { batch, results, .. }) => {
                due == *batch && steps == results.len()
            }
            (Self::Row(due, due_row), StageReply::Row { cache, row, .. }) => (due, due_row) == (*cache, *row),
            _ => false,
        }
    }

    /// The reply with `error` in every place.
    pub(super) fn failed(self, error: StageError) -> StageReply {
        match self {
            Self::Opened(cache) => StageReply::Opened { cache, result: Err(error) },
            Self::Forwarded { batch, steps } => {
                StageReply::Forwarded { batch, results: vec![Err(error); steps], compute_us: 0 }
            }
            Self::Row(cache, row) => StageReply::Row { cache, row, result: Err(error) },
            Self::Saved(cache) => StageReply::Saved { cache, result: Err(error) },
            Self::Restored(cache) => StageReply::Restored { cache, result: Err(error) },
            Self::Exported(cache) => StageReply::Exported { cache, result: Err(error) },
            Self::Imported(cache) => StageReply::Imported { cache, result: Err(error) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owed_reply_pays() {
        let due = Due::of(&StageCommand::Forward { batch: 4, steps: Vec::new() }).unwrap();
        let lost = due.failed(StageError::Lost("gone".into()));
        assert!(due.is_paid_by(&lost));
        assert!(!Due::Forwarded { batch: 5, steps: 0 }.is_paid_by(&lost), "another batch");
        assert!(!Due::Forwarded { batch: 4, steps: 1 }.is_paid_by(&lost), "a result is missing");
        assert!(!Due::Opened(CacheId(0)).is_paid_by(&lost));
        assert_eq!(Due::of(&StageCommand::Close { cache: CacheId(0) }), None);
    }
}
