//! What a cache holds, given away and taken back: a session is put aside, and taken up later.

use potluck_core::{CacheId, STATE_PART_BYTES_MAX, StageError, StatePart};
use zeroize::Zeroizing;

use super::LlamaStage;

/// Bytes that a state may have beside its cells: which positions they are, and how long each layer's part is.
const STATE_FRAME_BYTES: u64 = 1 << 20;

/// Bytes that one position may have beside its cell.
const STATE_POSITION_BYTES: u64 = 64;

/// A cache's state on its way, one at a time: it is as large as the cache.
pub(super) struct Passing {
    pub(super) cache: CacheId,
    positions: u32,
    total: u64,
    bytes: Zeroizing<Vec<u8>>,
    /// It leaves.
    pub(super) leaves: bool,
}

impl LlamaStage {
    /// See [`Stage::export`](potluck_core::Stage::export).
    pub(super) fn give_state(&mut self, cache: CacheId, offset: u64) -> Result<StatePart, StageError> {
        let given = self.try_give(cache, offset);
        if given.is_err() {
            self.passing.take_if(|passing| passing.cache == cache && passing.leaves);
        }
        given
    }

    fn try_give(&mut self, cache: CacheId, offset: u64) -> Result<StatePart, StageError> {
        let held = self.caches.get(cache)?;
        if offset == 0 {
            let bytes = self.context.saved(held.slot);
            let (positions, total) = (held.held, bytes.len() as u64);
            self.passing = Some(Passing { cache, positions, total, bytes, leaves: true });
        }
        let no_such = || StageError::BadInput(format!("no state of cache {cache:?} is given away at {offset}"));
        let passing = self.passing.as_ref().filter(|passing| passing.cache == cache && passing.leaves);
        let &Passing { positions, total, ref bytes, .. } = passing.ok_or_else(no_such)?;
        let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).filter(|rest| !rest.is_empty());
        let rest = rest.ok_or_else(no_such)?;
        let bytes = rest[..rest.len().min(STATE_PART_BYTES_MAX)].to_vec();
        let part = StatePart { positions, total, offset, bytes };
        if part.is_last() {
            self.passing = None;
        }
        Ok(part)
    }

    /// See [`Stage::import`](potluck_core::Stage::import).
    pub(super) fn take_state(&mut self, cache: CacheId, part: StatePart) -> Result<(), StageError> {
        let taken = self.try_take(cache, &part);
        if taken.is_err() {
            self.passing = None;
        }
        taken
    }

    fn try_take(&mut self, cache: CacheId, part: &StatePart) -> Result<(), StageError> {
        let bad = |why: String| Err(StageError::BadInput(why));
        let into = self.caches.get(cache)?;
        let (slot, limit) = (into.slot, into.limit);
        let &StatePart { positions, total, offset, .. } = part;
        if positions > limit {
            return Err(StageError::ContextFull { end: positions, context: limit });
        }
        let max =
            u64::from(positions) * (self.shape.cache_bytes_per_position + STATE_POSITION_BYTES) + STATE_FRAME_BYTES;
        if total > max || part.bytes.is_empty() || part.bytes.len() > STATE_PART_BYTES_MAX {
            return bad(format!("{} bytes of a state of {total}; {positions} positions have {max}", part.bytes.len()));
        }
        if offset == 0 {
            self.truncate(cache, 0)?;
            self.caches.get_mut(cache)?.kept.clear();
            // No more than the cache itself takes.
            let bytes = Zeroizing::new(Vec::with_capacity(total as usize));
            self.passing = Some(Passing { cache, positions, total, bytes, leaves: false });
        }
        let follows = |passing: &&mut Passing| {
            passing.cache == cache
                && !passing.leaves
                && (passing.positions, passing.total, passing.bytes.len() as u64) == (positions, total, offset)
        };
        let Some(passing) = self.passing.as_mut().filter(follows) else {
            return bad(format!("a part of a state at {offset}, which does not follow"));
        };
        passing.bytes.extend_from_slice(&part.bytes);
        if !part.is_last() {
            return Ok(());
        }
        let Some(Passing { bytes, .. }) = self.passing.take() else { return Ok(()) };
        if self.context.restore(slot, &bytes) && self.context.held(slot) == positions {
            self.caches.get_mut(cache)?.held = positions;
            return Ok(());
        }
        self.context.truncate(slot, 0);
        Err(StageError::Engine("the state is none of this stage's".into()))
    }
}
