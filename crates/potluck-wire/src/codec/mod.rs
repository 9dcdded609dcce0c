//! How hidden states, and at the head tokens, become bytes.
//!
//! A codec turns a position, a row of values, into a number of bytes that follows from its width alone, so that lengths say
//! nothing of values. What it makes of a row is the same on every machine, bit for bit: each is a fixed sequence of IEEE operations,
//! rounded to nearest with ties to even, none of them fused. Decoders take the bytes of anybody: they refuse what no encoder
//! makes, as far as that shows, and what they return is finite.

mod dyn8;
mod f16;
mod hadamard;
#[cfg(test)]
mod low_tests;
mod massive;
mod mixed;
mod pack;
mod q8;
#[cfg(test)]
mod reference;
mod set;
mod step;
#[cfg(test)]
mod tests;

use std::cell::RefCell;

use potluck_core::bounds::HIDDEN_WIDTH_MAX;
use serde::{Deserialize, Serialize};
pub use set::CodecSet;

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
    /// Blocks of 32 as int8 with a bf16 step each: 1.06 bytes a value.
    Q8,
    /// Blocks of 64 in a dynamic map of 8 bits with a bf16 scale each: 1.03 bytes a value.
    Dyn8,
    /// The four largest channels in 24 bits; the rest rotated, and in blocks of 32 as int8 with a step of a byte each: 1.04
    /// bytes a value at a width of 2,048.
    Mixed8,
    /// As `Mixed8`, with 6 bits a code: 0.79 bytes a value.
    Mixed6,
    /// As `Mixed8`, with 4 bits a code: 0.54 bytes a value.
    Mixed4,
}

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
    /// Bytes that no encoder makes: most often a second encoding of the same values.
    #[error("position {position} of the step: {what}")]
    NotCanonical {
        /// Counted from the step's start.
        position: usize,
        /// What gives it away.
        what: &'static str,
    },
}

thread_local! {
    /// Where `mixed*` rotate a row: room that is kept from call to call, and holds zeros between them.
    static ROTATED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What is wrong with a position's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    NotFinite,
    Scale(u8),
    Twin(&'static str),
}

impl Fault {
    fn at(self, position: usize) -> CodecError {
        match self {
            Self::NotFinite => CodecError::NotFinite { position },
            Self::Scale(exponent) => CodecError::Scale { position, exponent },
            Self::Twin(what) => CodecError::NotCanonical { position, what },
        }
    }
}

impl Codec {
    /// All that this build knows.
    pub const ALL: [Self; 8] =
        [Self::Tokens, Self::F32, Self::F16, Self::Q8, Self::Dyn8, Self::Mixed8, Self::Mixed6, Self::Mixed4];

    /// Its number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tokens => 0,
            Self::F32 => 1,
            Self::F16 => 2,
            Self::Q8 => 3,
            Self::Dyn8 => 4,
            Self::Mixed8 => 5,
            Self::Mixed6 => 6,
            Self::Mixed4 => 7,
        }
    }

    /// The codec of that number.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn from_number(number: u8) -> Result<Self, CodecError> {
        Self::ALL.into_iter().find(|c| c.number() == number).ok_or(CodecError::Unknown(number))
    }

    /// Bytes of `positions` positions, `width` values each. Never more than `f32` takes.
    pub const fn bytes(self, positions: usize, width: usize) -> usize {
        positions.saturating_mul(match self {
            Self::Tokens => size_of::<u32>(),
            Self::F32 => width.saturating_mul(size_of::<f32>()),
            Self::F16 => f16::row_bytes(width),
            Self::Q8 => q8::row_bytes(width),
            Self::Dyn8 => dyn8::row_bytes(width),
            Self::Mixed8 => mixed::row_bytes(8, width),
            Self::Mixed6 => mixed::row_bytes(6, width),
            Self::Mixed4 => mixed::row_bytes(4, width),
        })
    }

    /// Encodes `hidden`, row-major `[positions, width]`, appending [`Codec::bytes`] bytes to `out`; nothing where it fails.
    ///
    /// `f16` rounds to nearest, ties to even; a position whose largest magnitude exceeds 65,504 is divided by the
    /// smallest power of two that brings it below, so that finite input never becomes infinite. The codecs of 8 bits and below
    /// move a value by half a step of its block (`mixed*`: in the rotated row), and by 2^-64 where it is nearly zero.
    /// # Errors
    /// `NotFinite` at a NaN or infinity; `Length` where the values are not whole rows, or for `Tokens`, and for `mixed*` where a
    /// row has more than [`HIDDEN_WIDTH_MAX`] values.
    pub fn encode(self, hidden: &[f32], width: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let positions = hidden.len().checked_div(width).unwrap_or(0);
        if self == Self::Tokens || positions * width != hidden.len() || positions == 0 || width > self.width_max() {
            let (expected, got) = (positions * width * 4, hidden.len() * 4);
            return Err(CodecError::Length { codec: self, positions, expected, got });
        }
        let before = out.len();
        out.reserve(self.bytes(positions, width));
        let mut rest = ROTATED.take();
        rest.resize(if self.is_mixed() { width } else { 0 }, 0.0);
        for (position, row) in hidden.chunks_exact(width).enumerate() {
            let Some(max) = largest(row) else {
                out.truncate(before);
                return Err(CodecError::NotFinite { position });
            };
            match self {
                Self::Tokens | Self::F32 => out.extend(row.iter().flat_map(|value| value.to_le_bytes())),
                Self::F16 => f16::encode(row, max, out),
                Self::Q8 => q8::encode(row, out),
                Self::Dyn8 => dyn8::encode(row, out),
                Self::Mixed8 => mixed::encode::<8>(row, &mut rest, out),
                Self::Mixed6 => mixed::encode::<6>(row, &mut rest, out),
                Self::Mixed4 => mixed::encode::<4>(row, &mut rest, out),
            }
        }
        // It outlives the session whose values these were.
        rest.fill(0.0);
        ROTATED.set(rest);
        Ok(())
    }

    /// Decodes `bytes` of `positions` positions into `[positions, width]` values. The bytes may come from anybody.
    ///
    /// # Errors
    /// As [`Codec::decode_into`].
    pub fn decode(self, bytes: &[u8], positions: usize, width: usize) -> Result<Vec<f32>, CodecError> {
        self.check_length(bytes, positions, width)?;
        let mut hidden = vec![0.0; positions * width];
        self.decode_into(bytes, width, &mut hidden)?;
        Ok(hidden)
    }

    /// As [`Codec::decode`], into `hidden`, whose room is used again: nothing is allocated where it has enough of it.
    ///
    /// # Errors
    /// As [`Codec::decode_into`]. Room is made only once the length is known to be right.
    pub fn decode_over(
        self,
        bytes: &[u8],
        positions: usize,
        width: usize,
        hidden: &mut Vec<f32>,
    ) -> Result<(), CodecError> {
        self.check_length(bytes, positions, width)?;
        hidden.resize(positions * width, 0.0);
        self.decode_into(bytes, width, hidden)
    }

    /// Decodes `bytes` into `hidden`, row-major `[positions, width]`, and allocates nothing. The bytes may come from anybody; where
    /// they are refused, what is in `hidden` means nothing.
    ///
    /// # Errors
    /// `Length`; `NotFinite`; `Scale` and `NotCanonical` where a position has another encoding; always `Length` for `Tokens`.
    pub fn decode_into(self, bytes: &[u8], width: usize, hidden: &mut [f32]) -> Result<(), CodecError> {
        let positions = hidden.len().checked_div(width).unwrap_or(0);
        self.check_length(bytes, positions, width)?;
        if positions * width != hidden.len() {
            let (expected, got) = (self.bytes(positions, width), bytes.len());
            return Err(CodecError::Length { codec: self, positions, expected, got });
        }
        let encoded = bytes.chunks_exact(bytes.len() / positions);
        for (position, (row, encoded)) in hidden.chunks_exact_mut(width).zip(encoded).enumerate() {
            let decoded = match self {
                Self::Tokens | Self::F32 => {
                    let values = encoded.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
                    row.iter_mut().zip(values).for_each(|(slot, value)| *slot = value);
                    largest(row).map(|_| ()).ok_or(Fault::NotFinite)
                }
                Self::F16 => f16::decode(encoded, row),
                Self::Q8 => q8::decode(encoded, row),
                Self::Dyn8 => dyn8::decode(encoded, row),
                Self::Mixed8 => mixed::decode::<8>(encoded, row),
                Self::Mixed6 => mixed::decode::<6>(encoded, row),
                Self::Mixed4 => mixed::decode::<4>(encoded, row),
            };
            decoded.map_err(|fault| fault.at(position))?;
        }
        Ok(())
    }

    fn check_length(self, bytes: &[u8], positions: usize, width: usize) -> Result<(), CodecError> {
        let (expected, got) = (self.bytes(positions, width), bytes.len());
        let empty = positions == 0 || width == 0 || width > self.width_max();
        if self == Self::Tokens || got != expected || empty {
            return Err(CodecError::Length { codec: self, positions, expected, got });
        }
        Ok(())
    }

    const fn is_mixed(self) -> bool {
        matches!(self, Self::Mixed8 | Self::Mixed6 | Self::Mixed4)
    }

    /// Values of the widest row: a channel's number has its room, and models are no wider.
    const fn width_max(self) -> usize {
        if self.is_mixed() { HIDDEN_WIDTH_MAX } else { usize::MAX }
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
    Some(step::absmax(row)).filter(|value| value.is_finite())
}
