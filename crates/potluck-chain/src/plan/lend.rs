//! Which layers a machine should lend, where its owner leaves the choice to it.

use std::collections::BTreeMap;

use potluck_core::LayerRange;

use super::ModelFacts;

/// The layers of this model that help most and fit into `memory` bytes, with caches for `positions` positions in all; none
/// where not even one layer does.
///
/// `offered`: what others serve. First what nobody serves, from where the first gap begins, so that what is left is one gap
/// again; where there is none, the range that the fewest serve, exactly as they serve it: then either may take a route.
pub fn lend(model: &ModelFacts, offered: &[LayerRange], positions: u64, memory: u64) -> Option<LayerRange> {
    let layers = model.layers.len() as u32;
    let served = |layer: u32| offered.iter().any(|range| range.contains(layer));
    let Some(start) = (0..layers).find(|&layer| !served(layer)) else {
        let mut holders: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        offered.iter().for_each(|range| *holders.entry((range.start(), range.end())).or_default() += 1);
        let mut ranges: Vec<_> = holders.into_iter().collect();
        // Of those that equally few serve, the longest that fits.
        ranges.sort_by_key(|&((start, end), holders)| (holders, u32::MAX - (end - start)));
        let known = ranges.into_iter().filter_map(|((start, end), _)| LayerRange::new(start, end).ok());
        let mut known = known.filter(|range| range.end() <= layers);
        return known.find(|range| lent_bytes(model, *range, positions) <= memory);
    };
    let gap = (start..layers).take_while(|&layer| !served(layer)).count() as u32;
    let legal = |end: u32| end == layers || model.cuts.contains(&end);
    let mut ranges = (start + 1..=start + gap).rev().filter(|end| legal(*end));
    ranges.find_map(|end| LayerRange::new(start, end).ok().filter(|it| lent_bytes(model, *it, positions) <= memory))
}

/// Bytes of these layers of the model, with caches for `positions` positions in all. Layers that it does not have weigh nothing.
pub fn lent_bytes(model: &ModelFacts, range: LayerRange, positions: u64) -> u64 {
    let (start, end) = (range.start(), range.end());
    let layers = model.layers.get(start as usize..end as usize).unwrap_or_default();
    // A stranger's model may say anything of itself.
    let layer_bytes = layers
        .iter()
        .map(|layer| layer.weight_bytes.saturating_add(layer.cache_bytes_per_position.saturating_mul(positions)));
    let (head, tail) = (start == 0, end as usize == model.layers.len());
    let ends = match (head, tail) {
        (true, true) if model.tied => model.head_bytes.max(model.tail_bytes),
        _ => (u64::from(head) * model.head_bytes).saturating_add(u64::from(tail) * model.tail_bytes),
    };
    layer_bytes.fold(ends, u64::saturating_add)
}

#[cfg(test)]
pub(super) mod tests {
    use potluck_core::ModelId;

    use super::{super::LayerFacts, *};

    /// Eight equal layers, and a table at each end.
    pub(in crate::plan) fn model(cuts: &[u32]) -> ModelFacts {
        let layer = LayerFacts { weight_bytes: 100, cache_bytes_per_position: 1 };
        ModelFacts {
            model: ModelId::from_bytes([7; 32]),
            layers: vec![layer; 8],
            head_bytes: 50,
            tail_bytes: 70,
            tied: false,
            width: 8,
            cuts: cuts.to_vec(),
        }
    }

    fn chosen(cuts: &[u32], offered: &[(u32, u32)], memory: u64) -> Option<(u32, u32)> {
        let offered: Vec<_> = offered.iter().map(|&(start, end)| LayerRange::new(start, end).unwrap()).collect();
        lend(&model(cuts), &offered, 10, memory).map(|range| (range.start(), range.end()))
    }

    pub(in crate::plan) const ANYWHERE: [u32; 7] = [1, 2, 3, 4, 5, 6, 7];

    #[test]
    fn the_first_gap_is_filled_as_far_as_memory_goes() {
        assert_eq!(chosen(&ANYWHERE, &[], 10_000), Some((0, 8)), "all of it where it fits");
        assert_eq!(chosen(&ANYWHERE, &[], 8 * 110 + 119), Some((0, 7)), "the tail's matrix counts");
        assert_eq!(chosen(&ANYWHERE, &[(0, 3)], 10_000), Some((3, 8)));
        assert_eq!(chosen(&ANYWHERE, &[(0, 3)], 220), Some((3, 5)), "and the next one goes on from there");
        assert_eq!(chosen(&ANYWHERE, &[(0, 3), (6, 8)], 10_000), Some((3, 6)));
        assert_eq!(chosen(&ANYWHERE, &[(0, 3)], 109), None, "not even one layer fits");
        assert_eq!(chosen(&[4], &[], 7 * 110), Some((0, 4)), "only where the model may be cut");
        assert_eq!(chosen(&[], &[], 7 * 110), None);
    }

    #[test]
    fn where_there_is_no_gap_the_rarest_range_gets_another_holder() {
        assert_eq!(chosen(&ANYWHERE, &[(0, 4), (4, 8), (0, 4)], 10_000), Some((4, 8)));
        assert_eq!(chosen(&ANYWHERE, &[(0, 2), (2, 8)], 300), Some((0, 2)), "the longest that fits");
        assert_eq!(chosen(&ANYWHERE, &[(0, 99)], 10_000), None, "a range of another model's length is nobody's");
    }
}
