//! A scale of fixed marks, and where a value lies between two of them.

/// Where a value lies: by `above` (0 to 1) on the way from mark `below` to mark `below + 1`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Place {
    pub(super) below: usize,
    pub(super) above: f64,
}

impl Place {
    /// The place of `value` on `marks` (ascending, at least two). What lies outside is put at the nearest end.
    pub(super) fn of(value: f64, marks: &[f64]) -> Self {
        let last = marks.len().saturating_sub(2);
        let below = marks.partition_point(|mark| *mark <= value).saturating_sub(1).min(last);
        let (low, high) = (marks[below], marks[below + 1]);
        Self { below, above: ((value - low) / (high - low)).clamp(0.0, 1.0) }
    }

    /// The two marks with their weights, which add up to 1.
    pub(super) fn shares(self) -> [(usize, f64); 2] {
        [(self.below, 1.0 - self.above), (self.below + 1, self.above)]
    }

    /// The value at this place of a line through `values`, one at each mark.
    pub(super) fn on(self, values: &[f64]) -> f64 {
        self.shares().iter().map(|(mark, share)| values[*mark] * share).sum()
    }
}

/// Makes `values` ascending: neighbours that are out of order become their weighted mean (pool adjacent violators).
pub(super) fn ascending(values: &mut [f64], weights: &[f64]) {
    // Blocks of equal value: mean, weight, number of values.
    let mut blocks: Vec<(f64, f64, usize)> = Vec::with_capacity(values.len());
    for (value, weight) in values.iter().zip(weights) {
        let mut block = (*value, *weight, 1);
        while let Some(last) = blocks.pop_if(|last| last.0 > block.0) {
            let weight = last.1 + block.1;
            block = ((last.0 * last.1 + block.0 * block.1) / weight, weight, last.2 + block.2);
        }
        blocks.push(block);
    }
    let pooled = blocks.iter().flat_map(|(mean, _, count)| std::iter::repeat_n(*mean, *count));
    values.iter_mut().zip(pooled).for_each(|(value, pooled)| *value = pooled);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_lies_between_its_marks() {
        let marks = [1.0, 2.0, 4.0];
        assert_eq!(Place::of(3.0, &marks).on(&[0.0, 10.0, 30.0]), 20.0);
        assert_eq!(Place::of(1.0, &marks).on(&[5.0, 10.0, 30.0]), 5.0);
        assert_eq!(Place::of(0.0, &marks).on(&[5.0, 10.0, 30.0]), 5.0, "below the first");
        assert_eq!(Place::of(9.0, &marks).on(&[5.0, 10.0, 30.0]), 30.0, "beyond the last");
        assert_eq!(Place::of(2.0, &marks), Place { below: 1, above: 0.0 });
    }

    #[test]
    fn what_is_out_of_order_is_pooled() {
        let mut values = [1.0, 5.0, 2.0, 2.0, 9.0];
        ascending(&mut values, &[1.0, 1.0, 1.0, 2.0, 1.0]);
        assert_eq!(values, [1.0, 2.75, 2.75, 2.75, 9.0]);
    }
}
