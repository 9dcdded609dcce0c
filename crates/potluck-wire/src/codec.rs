//! How hidden states, and at the head tokens, become bytes.

use half::f16;
use half::slice::HalfFloatSliceExt as _;
use serde::{Deserialize, Serialize};

/// How the payload of a step is encoded. Numbers are on the wire and never change meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Codec {
    /// Token ids, `u32` each: what a client sends to a head of the chain.
    Tokens,
    /// Hidden states as they are: 4 bytes a value. For tests of equality.
    F32,
    /// Hidden states in half precision: 2 bytes a value and 1 byte a position, a power of two by which the
    /// position was divided where its largest value would overflow f16 (Gemma 3 reaches 103,772).
    F16,
}

/// Codecs that a peer decodes, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodecSet(pub u32);

/// Whoever sent the payload, or the stage whose values could not be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Not a codec of version 1.
    #[error("codec {0} is not known")]
    Unknown(u8),
    /// The payload has another length than its positions take.
    #[error("{got} bytes for {positions} positions; {codec} takes {expected}")]
    Length {
        /// Which codec.
        codec: Codec,
        /// Positions announced.
        positions: usize,
        /// Bytes that they take.
        expected: usize,
        /// Bytes that came.
        got: usize,
    },
    /// NaN or infinity: a fault to report, not to pass on.
    #[error("position {position} of the step holds a value that is not finite")]
    NotFinite {
        /// Counted from the step's start.
        position: usize,
    },
    /// A second encoding of the same values.
    #[error("position {position} of the step is scaled by 2^{exponent}, which its values do not need")]
    Scale {
        /// Counted from the step's start.
        position: usize,
        /// As sent.
        exponent: u8,
    },
}

/// Largest power of two that the `f16` codec divides by: enough for any finite f32.
const EXPONENT_MAX: u8 = 113;

impl Codec {
    /// All that this build knows.
    pub const ALL: [Self; 3] = [Self::Tokens, Self::F32, Self::F16];

    /// Its number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tokens => 0,
            Self::F32 => 1,
            Self::F16 => 2,
        }
    }

    /// The codec of that number.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn from_number(number: u8) -> Result<Self, CodecError> {
        Self::ALL.into_iter().find(|c| c.number() == number).ok_or(CodecError::Unknown(number))
    }

    /// Bytes of `positions` positions, `width` values each.
    pub const fn bytes(self, positions: usize, width: usize) -> usize {
        match self {
            Self::Tokens => positions * size_of::<u32>(),
            Self::F32 => positions * width * size_of::<f32>(),
            Self::F16 => positions * (1 + width * size_of::<f16>()),
        }
    }

    /// Encodes `hidden`, row-major `[positions, width]`, appending [`Codec::bytes`] bytes to `out`.
    ///
    /// `f16` rounds to nearest, ties to even; a position whose largest magnitude exceeds 65,504 is divided by the
    /// smallest power of two that brings it below, so that finite input never becomes infinite.
    /// # Errors
    /// `NotFinite` at a NaN or infinity; `Length` where the values are not whole rows, or for `Tokens`.
    pub fn encode(self, hidden: &[f32], width: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let positions = hidden.len().checked_div(width).unwrap_or(0);
        if self == Self::Tokens || positions * width != hidden.len() || positions == 0 {
            let (expected, got) = (positions * width * 4, hidden.len() * 4);
            return Err(CodecError::Length { codec: self, positions, expected, got });
        }
        out.reserve(self.bytes(positions, width));
        for (position, row) in hidden.chunks_exact(width).enumerate() {
            let max = largest(row).ok_or(CodecError::NotFinite { position })?;
            match self {
                Self::F32 => row.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
                _ => encode_f16_row(row, exponent_for(max), out),
            }
        }
        Ok(())
    }

    /// Decodes `bytes` of `positions` positions into `[positions, width]` values. The bytes may come from anybody.
    ///
    /// # Errors
    /// `Length`, `NotFinite`, or `Scale` where a position has a second encoding; always `Length` for `Tokens`.
    pub fn decode(self, bytes: &[u8], positions: usize, width: usize) -> Result<Vec<f32>, CodecError> {
        let expected = self.bytes(positions, width);
        if self == Self::Tokens || bytes.len() != expected || positions * width == 0 {
            return Err(CodecError::Length { codec: self, positions, expected, got: bytes.len() });
        }
        let mut hidden = vec![0.0; positions * width];
        let encoded = bytes.chunks_exact(expected / positions);
        for (position, (row, encoded)) in hidden.chunks_exact_mut(width).zip(encoded).enumerate() {
            if self == Self::F32 {
                let values = encoded.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                row.iter_mut().zip(values).for_each(|(slot, value)| *slot = value);
                largest(row).ok_or(CodecError::NotFinite { position })?;
            } else {
                decode_f16_row(encoded, row, position)?;
            }
        }
        Ok(hidden)
    }

    /// Encodes token ids.
    pub fn encode_tokens(tokens: &[u32]) -> Vec<u8> {
        tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
    }

    /// Decodes the ids of `positions` tokens.
    ///
    /// # Errors
    /// `Length`.
    pub fn decode_tokens(bytes: &[u8], positions: usize) -> Result<Vec<u32>, CodecError> {
        let expected = Self::Tokens.bytes(positions, 0);
        if bytes.len() != expected {
            return Err(CodecError::Length { codec: Self::Tokens, positions, expected, got: bytes.len() });
        }
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

/// The largest magnitude of a row; none where a value is not finite.
fn largest(row: &[f32]) -> Option<f32> {
    // Magnitudes of finite floats order as their bits do, and every NaN or infinity lies above them: one integer
    // maximum, which vectorises, answers both questions.
    let bits = row.iter().fold(0u32, |max, value| max.max(value.to_bits() & 0x7fff_ffff));
    Some(f32::from_bits(bits)).filter(|value| value.is_finite())
}

/// The smallest power of two to divide by such that `max` rounds to a finite f16.
fn exponent_for(max: f32) -> u8 {
    let mut exponent = 0;
    let mut scaled = max;
    while f16::from_f32(scaled).is_infinite() {
        scaled *= 0.5;
        exponent += 1;
    }
    exponent
}

fn encode_f16_row(row: &[f32], exponent: u8, out: &mut Vec<u8>) {
    const BLOCK: usize = 64;
    out.push(exponent);
    let scale = (-f32::from(exponent)).exp2();
    let mut scaled = [0f32; BLOCK];
    let mut halves = [f16::ZERO; BLOCK];
    for block in row.chunks(BLOCK) {
        let (scaled, halves) = (&mut scaled[..block.len()], &mut halves[..block.len()]);
        scaled.iter_mut().zip(block).for_each(|(slot, value)| *slot = value * scale);
        halves.convert_from_f32_slice(scaled);
        halves.iter().for_each(|half| out.extend_from_slice(&half.to_le_bytes()));
    }
}

fn decode_f16_row(encoded: &[u8], row: &mut [f32], position: usize) -> Result<(), CodecError> {
    let Some((&exponent, values)) = encoded.split_first() else { return Ok(()) };
    if exponent > EXPONENT_MAX {
        return Err(CodecError::Scale { position, exponent });
    }
    let scale = f32::from(exponent).exp2();
    let mut max = 0u16;
    for (slot, b) in row.iter_mut().zip(values.chunks_exact(2)) {
        let half = f16::from_le_bytes([b[0], b[1]]);
        max = max.max(half.to_bits() & 0x7fff);
        *slot = half.to_f32() * scale;
    }
    if f16::from_bits(max).to_f32().is_infinite() || f16::from_bits(max).is_nan() {
        return Err(CodecError::NotFinite { position });
    }
    // A needed scale leaves its largest value in f16's top binade, or just rounded down from it.
    if exponent > 0 && f16::from_bits(max).to_f32() < 32_752.0 {
        return Err(CodecError::Scale { position, exponent });
    }
    largest(row).map(|_| ()).ok_or(CodecError::NotFinite { position })
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tokens => "tokens",
            Self::F32 => "f32",
            Self::F16 => "f16",
        })
    }
}

impl std::str::FromStr for Codec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            other => Err(format!("no codec `{other}`: choose f16 or f32")),
        }
    }
}

impl CodecSet {
    /// What this build decodes.
    pub fn all() -> Self {
        Codec::ALL.into_iter().collect()
    }

    /// Whether it holds `codec`.
    pub fn contains(self, codec: Codec) -> bool {
        self.0 & (1 << codec.number()) != 0
    }

    /// What both hold.
    pub fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl FromIterator<Codec> for CodecSet {
    fn from_iter<I: IntoIterator<Item = Codec>>(codecs: I) -> Self {
        Self(codecs.into_iter().fold(0, |set, codec| set | 1 << codec.number()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn finite() -> impl Strategy<Value = f32> {
        prop_oneof![any::<f32>().prop_filter("finite", |v| v.is_finite()), -70_000f32..70_000.0, -1f32..1.0]
    }

    proptest! {
        #[test]
        fn f32_is_the_identity(hidden in proptest::collection::vec(finite(), 12)) {
            let mut bytes = Vec::new();
            Codec::F32.encode(&hidden, 4, &mut bytes).unwrap();
            let back = Codec::F32.decode(&bytes, 3, 4).unwrap();
            prop_assert_eq!(back.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), hidden.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        }

        #[test]
        fn f16_stays_finite_and_close(hidden in proptest::collection::vec(finite(), 12)) {
            let mut bytes = Vec::new();
            Codec::F16.encode(&hidden, 4, &mut bytes).unwrap();
            prop_assert_eq!(bytes.len(), Codec::F16.bytes(3, 4));
            let back = Codec::F16.decode(&bytes, 3, 4).unwrap();
            for (row, back) in hidden.chunks(4).zip(back.chunks(4)) {
                let max = row.iter().fold(0f32, |m, v| m.max(v.abs()));
                for (a, b) in row.iter().zip(back) {
                    prop_assert!(b.is_finite());
                    // Half a unit in the last place of f16, or of the scaled smallest normal number.
                    let tolerance = (a.abs() / 2048.0).max(max / 65_504.0 * 6.2e-5).max(6e-8);
                    prop_assert!((a - b).abs() <= tolerance, "{} {}", a, b);
                }
            }
            let mut again = Vec::new();
            Codec::F16.encode(&back, 4, &mut again).unwrap();
            prop_assert_eq!(Codec::F16.decode(&again, 3, 4).unwrap(), back, "a second hop changes nothing");
        }

        #[test]
        fn hostile_payloads(bytes in proptest::collection::vec(any::<u8>(), 0..64), positions in 0usize..8, width in 0usize..8) {
            for codec in Codec::ALL {
                if let Ok(hidden) = codec.decode(&bytes, positions, width) {
                    prop_assert!(hidden.iter().all(|v| v.is_finite()));
                }
            }
            let _ = Codec::decode_tokens(&bytes, positions);
        }
    }

    #[test]
    fn what_is_not_finite_is_refused_both_ways() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for codec in [Codec::F32, Codec::F16] {
                let error = codec.encode(&[0.0, 1.0, 2.0, bad], 2, &mut Vec::new()).unwrap_err();
                assert_eq!(error, CodecError::NotFinite { position: 1 });
            }
            assert!(Codec::F32.decode(&bad.to_le_bytes(), 1, 1).is_err());
            let mut bytes = vec![0];
            bytes.extend(f16::from_f32(bad).to_le_bytes());
            assert!(Codec::F16.decode(&bytes, 1, 1).is_err());
        }
        let overflowing = [EXPONENT_MAX, 0xff, 0x7b];
        assert!(Codec::F16.decode(&overflowing, 1, 1).is_err(), "a finite half times its scale must stay finite");
    }

    #[test]
    fn large_positions_are_scaled_and_only_those() {
        let mut bytes = Vec::new();
        Codec::F16.encode(&[103_772.0, 1.0, 22_569.0, 1.0], 2, &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[5]), (1, 0));
        assert_eq!(Codec::F16.decode(&bytes, 2, 2).unwrap(), [103_744.0, 1.0, 22_576.0, 1.0]);
        bytes[5] = 1;
        assert_eq!(Codec::F16.decode(&bytes, 2, 2), Err(CodecError::Scale { position: 1, exponent: 1 }));
    }

    #[test]
    fn positions_of_no_width_are_refused() {
        for codec in Codec::ALL {
            let bytes = vec![0; codec.bytes(3, 0)];
            assert!(matches!(codec.decode(&bytes, 3, 0), Err(CodecError::Length { .. })), "{codec}");
            assert!(matches!(codec.encode(&[], 0, &mut vec![]), Err(CodecError::Length { .. })), "{codec}");
        }
    }

    #[test]
    fn the_numbers_are_pinned() {
        assert_eq!(Codec::ALL.map(Codec::number), [0, 1, 2]);
        assert_eq!(CodecSet::all(), CodecSet(0b111));
        assert_eq!(Codec::from_number(3), Err(CodecError::Unknown(3)));
    }
}
