//! Which steps may share a batch.
//!
//! With a memory of its own for each sequence, llama.cpp regroups a batch's rows by sequence, and the rows of a captured
//! tensor come out in that order. Only steps of equal length, in ascending order of their sequences, keep their order:
//! nothing else is put together, or a session would end with another's hidden states.

use potluck_core::CacheId;

/// A step that was checked and whose cache ends at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready {
    /// Which step of the call.
    pub(super) index: usize,
    pub(super) cache: CacheId,
    /// llama.cpp's sequence.
    pub(super) slot: u16,
    pub(super) start: u32,
    pub(super) rows: usize,
    /// It shares no batch: what it takes would be multiplied.
    pub(super) alone: bool,
}

/// Splits `ready` into batches of at most `rows_max` rows; each step alone where results must not depend on company.
pub(super) fn groups(mut ready: Vec<Ready>, rows_max: usize, exact: bool) -> Vec<Vec<Ready>> {
    if exact {
        return ready.into_iter().map(|step| vec![step]).collect();
    }
    // Long steps first or last is all one to the engine; short ones first answers those who wait for a token.
    ready.sort_unstable_by_key(|step| (step.rows, step.slot));
    let mut groups: Vec<Vec<Ready>> = Vec::new();
    for step in ready {
        match groups.last_mut() {
            Some(group)
                if !step.alone
                    && !group[0].alone
                    && group[0].rows == step.rows
                    && (group.len() + 1) * step.rows <= rows_max =>
            {
                group.push(step)
            }
            _ => groups.push(vec![step]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(lengths: &[(u16, usize)]) -> Vec<Ready> {
        let step = |(index, &(slot, rows)): (usize, &(u16, usize))| Ready {
            index,
            cache: CacheId(slot),
            slot,
            start: 0,
            rows,
            alone: false,
        };
        lengths.iter().enumerate().map(step).collect()
    }

    fn shape(groups: &[Vec<Ready>]) -> Vec<Vec<(u16, usize)>> {
        groups.iter().map(|group| group.iter().map(|step| (step.slot, step.rows)).collect()).collect()
    }

    #[test]
    fn only_equal_lengths_share_a_batch_and_sequences_ascend() {
        let steps = ready(&[(3, 1), (0, 6), (2, 1), (1, 6), (4, 1)]);
        let batches = groups(steps.clone(), 512, false);
        assert_eq!(shape(&batches), [vec![(2, 1), (3, 1), (4, 1)], vec![(0, 6), (1, 6)]]);
        let mut apart = steps.clone();
        apart[1].alone = true;
        assert_eq!(groups(apart, 512, false).len(), 3, "one that asks for itself");
        assert_eq!(groups(steps, 512, true).len(), 5, "exact: each alone");
    }

    proptest::proptest! {
        #[test]
        fn no_batch_is_too_large_and_no_step_is_lost(lengths in proptest::collection::vec(1usize..=512, 0..40)) {
            let steps: Vec<(u16, usize)> = lengths.iter().enumerate().map(|(i, &rows)| (i as u16, rows)).collect();
            let batches = groups(ready(&steps), 512, false);
            let mut seen: Vec<usize> = batches.iter().flatten().map(|step| step.index).collect();
            seen.sort_unstable();
            proptest::prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in batches {
                proptest::prop_assert!(batch.iter().map(|step| step.rows).sum::<usize>() <= 512);
                proptest::prop_assert!(batch.iter().all(|step| step.rows == batch[0].rows));
                proptest::prop_assert!(batch.is_sorted_by(|a, b| a.slot < b.slot));
            }
        }
    }
}
