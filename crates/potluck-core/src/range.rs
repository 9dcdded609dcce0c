//! Layer ranges: half open, never empty.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bounds::LAYERS_MAX;

/// A layer range `start..end`, half open, in the model's own numbering. Never empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u32, u32)", into = "(u32, u32)")]
pub struct LayerRange {
    start: u32,
    end: u32,
}

/// The caller or the peer: these are not the bounds of a layer range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// Empty, reversed, or longer than a model can be.
    #[error("{start}..{end} is no layer range: it must hold at least one layer and end at {LAYERS_MAX} or before")]
    Bounds {
        /// First layer.
        start: u32,
        /// One past the last layer.
        end: u32,
    },
    /// More parts than layers, or none.
    #[error("{layers} layers cannot be split into {parts} parts")]
    Parts {
        /// Layers in the range.
        layers: u32,
        /// Parts asked for.
        parts: usize,
    },
}

impl LayerRange {
    /// The range `start..end`.
    ///
    /// # Errors
    /// `Bounds` where it would be empty or ends beyond [`LAYERS_MAX`].
    pub fn new(start: u32, end: u32) -> Result<Self, RangeError> {
        if start < end && end <= LAYERS_MAX { Ok(Self { start, end }) } else { Err(RangeError::Bounds { start, end }) }
    }

    /// First layer.
    pub fn start(self) -> u32 {
        self.start
    }

    /// One past the last layer.
    pub fn end(self) -> u32 {
        self.end
    }

    /// How many layers; at least one.
    pub fn count(self) -> u32 {
        self.end - self.start
    }

    /// True if `layer` lies in the range.
    pub fn contains(self, layer: u32) -> bool {
        (self.start..self.end).contains(&layer)
    }

    /// Cuts the range into `parts` contiguous ranges whose lengths differ by at most one, longer ones first.
    ///
    /// # Errors
    /// `Parts` where `parts` is zero or more than the layers.
    pub fn split(self, parts: usize) -> Result<Vec<Self>, RangeError> {
        let layers = self.count();
        let error = RangeError::Parts { layers, parts };
        let parts = u32::try_from(parts).map_err(|_| error)?;
        if parts == 0 || parts > layers {
            return Err(error);
        }
        let mut start = self.start;
        Ok((0..parts)
            .map(|part| {
                let end = start + layers / parts + u32::from(part < layers % parts);
                let range = Self { start, end };
                start = end;
                range
            })
            .collect())
    }
}

impl TryFrom<(u32, u32)> for LayerRange {
    type Error = RangeError;

    fn try_from((start, end): (u32, u32)) -> Result<Self, RangeError> {
        Self::new(start, end)
    }
}

impl From<LayerRange> for (u32, u32) {
    fn from(range: LayerRange) -> Self {
        (range.start, range.end)
    }
}

impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Debug for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_split_covers_each_layer_once(layers in 1u32..200, parts in 1usize..64) {
            let all = LayerRange::new(0, layers).unwrap();
            match all.split(parts) {
                Ok(ranges) => {
                    let covered: Vec<u32> = ranges.iter().flat_map(|r| r.start()..r.end()).collect();
                    proptest::prop_assert_eq!(covered, (0..layers).collect::<Vec<_>>());
                    let lengths = ranges.iter().map(|r| r.count());
                    proptest::prop_assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
                }
                Err(_) => proptest::prop_assert!(parts as u32 > layers),
            }
        }
    }

    #[test]
    fn empty_and_reversed_ranges_do_not_exist() {
        assert!(LayerRange::new(3, 3).is_err());
        assert!(LayerRange::new(4, 3).is_err());
        assert!(LayerRange::new(0, LAYERS_MAX + 1).is_err());
        assert!(postcard::from_bytes::<LayerRange>(&[3, 3]).is_err(), "not even from the wire");
    }
}
