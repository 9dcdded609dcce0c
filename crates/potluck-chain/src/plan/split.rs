//! A model over a given number of equal machines.

use potluck_core::{LayerRange, RangeError};

/// Why a model cannot be split so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// The user: fewer stages are possible. Hint: `--peers`.
    #[error("{layers} layers can be cut at {cuts} places: {most} stages at most, {parts} were asked for", most = cuts + 1)]
    TooMany {
        /// Layers of the model.
        layers: u32,
        /// Places where a cut is legal.
        cuts: usize,
        /// Stages asked for.
        parts: usize,
    },
    /// The caller: no layers, or too many.
    #[error(transparent)]
    Range(#[from] RangeError),
}

/// Splits `layers` layers into `parts` stages whose lengths are as equal as the legal cuts allow.
///
/// `cuts`: the boundaries where the model may be cut (`c`: between layers `c - 1` and `c`). Among equally even splits
/// the one with the longer stages first, as [`LayerRange::split`] does.
/// # Errors
/// `TooMany` where there are fewer legal cuts than needed; `Range` where there are no layers or no parts.
pub fn split_evenly(layers: u32, parts: usize, cuts: &[u32]) -> Result<Vec<LayerRange>, SplitError> {
    let all = LayerRange::new(0, layers)?;
    let mut bounds: Vec<u32> = cuts.iter().copied().filter(|&cut| cut > 0 && cut < layers).collect();
    bounds.sort_unstable();
    bounds.dedup();
    if parts == 0 {
        return Err(RangeError::Parts { layers, parts }.into());
    }
    if parts > bounds.len() + 1 {
        return Err(SplitError::TooMany { layers, cuts: bounds.len(), parts });
    }
    bounds.push(layers);
    let ends = most_even(&bounds, parts);
    let starts = [all.start()].into_iter().chain(ends.iter().copied());
    Ok(starts.zip(ends.iter().copied()).map(|(start, end)| LayerRange::new(start, end)).collect::<Result<_, _>>()?)
}

/// The `parts` ends, out of the ascending `bounds`, with the smallest sum of squared lengths; the last is the last.
fn most_even(bounds: &[u32], parts: usize) -> Vec<u32> {
    let square = |from: u32, to: u32| u64::from(to - from).pow(2);
    // `rows[p][b]`: the least sum with `p + 1` parts that end at `bounds[b]`, and where the part before ends.
    let mut rows: Vec<Vec<Option<(u64, usize)>>> = vec![bounds.iter().map(|&b| Some((square(0, b), 0))).collect()];
    for part in 1..parts {
        let before = &rows[part - 1];
        let best = |b: usize| {
            // The latest of equals: longer parts first.
            (0..b)
                .filter_map(|a| Some((before[a]?.0 + square(bounds[a], bounds[b]), a)))
                .min_by_key(|&(sum, a)| (sum, b - a))
        };
        rows.push((0..bounds.len()).map(best).collect());
    }
    let mut at = bounds.len() - 1;
    let mut ends = vec![bounds[at]];
    for row in rows.iter().skip(1).rev() {
        let Some((_, before)) = row[at] else { break };
        at = before;
        ends.push(bounds[at]);
    }
    ends.reverse();
    ends
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(layers: u32, parts: usize, cuts: &[u32]) -> String {
        match split_evenly(layers, parts, cuts) {
            Ok(ranges) => ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn cuts_fall_where_they_are_legal() {
        assert_eq!(text(30, 3, &(1..30).collect::<Vec<_>>()), "0..10 10..20 20..30");
        assert_eq!(text(26, 3, &[6, 12, 18, 24]), "0..12 12..18 18..26");
        assert_eq!(text(4, 1, &[]), "0..4");
        assert_eq!(text(4, 2, &[0, 4, 9]), "4 layers can be cut at 0 places: 1 stages at most, 2 were asked for");
        assert!(split_evenly(0, 1, &[]).is_err() && split_evenly(4, 0, &[2]).is_err());
    }

    proptest! {
        #[test]
        fn with_every_cut_legal_it_is_the_even_split(layers in 1u32..80, parts in 1usize..20) {
            let cuts: Vec<u32> = (1..layers).collect();
            let expected = LayerRange::new(0, layers).unwrap().split(parts);
            prop_assert_eq!(split_evenly(layers, parts, &cuts).ok(), expected.ok());
        }

        #[test]
        fn no_other_choice_of_cuts_is_more_even(layers in 2u32..12, mask in any::<u16>(), parts in 1usize..5) {
            let cuts: Vec<u32> = (1..layers).filter(|c| mask >> c & 1 == 1).collect();
            let sum = |ends: &[u32]| -> u64 {
                [0].iter().chain(ends).zip(ends).map(|(a, b)| u64::from(b - a).pow(2)).sum()
            };
            let chosen = (0u32..1 << cuts.len()).filter(|m| m.count_ones() as usize == parts - 1);
            let all = chosen.map(|m| (0..cuts.len()).filter(|i| m >> i & 1 == 1).map(|i| cuts[i]).chain([layers]).collect::<Vec<_>>());
            let best = all.map(|ends| sum(&ends)).min();
            let got = split_evenly(layers, parts, &cuts).ok();
            prop_assert_eq!(got.map(|ranges| sum(&ranges.iter().map(|r| r.end()).collect::<Vec<_>>())), best);
        }
    }
}
