//! Blocks of 32 values as int8, each with its own step: what ggml calls `Q8_0`, with a bf16 for its f16.
//!
//! ggml's f16 overflows where a block reaches 8.3 million, and grows coarse below 0.008. A bf16 has f32's range, and its eight bits
//! are enough: codes are made with the step as it is sent, so that the rounding of the step costs no precision.
//! Source: blockwise quantisation, Dettmers et al., arXiv:2110.02861, section 2.

use half::bf16;

use super::{
    Fault,
    step::{ROUND, TINY, absmax},
};

/// Values that share a step.
pub(super) const BLOCK: usize = 32;

/// The largest code. What a block's largest value always has, so that a block has one encoding.
const CODE_MAX: u8 = 127;

/// Bytes of a block's step.
const STEP_BYTES: usize = 2;

/// Bytes of a row of `width` values.
pub(super) const fn row_bytes(width: usize) -> usize {
    width.saturating_add(width.div_ceil(BLOCK).saturating_mul(STEP_BYTES))
}

/// Appends a row of finite values.
pub(super) fn encode(row: &[f32], out: &mut Vec<u8>) {
    let (blocks, rest) = row.as_chunks::<BLOCK>();
    for block in blocks {
        let (step, codes) = encode_block(block);
        out.extend_from_slice(&step);
        out.extend_from_slice(&codes);
    }
    if !rest.is_empty() {
        let mut block = [0.0; BLOCK];
        block[..rest.len()].copy_from_slice(rest);
        let (step, codes) = encode_block(&block);
        out.extend_from_slice(&step);
        out.extend_from_slice(&codes[..rest.len()]);
    }
}

fn encode_block(values: &[f32; BLOCK]) -> ([u8; STEP_BYTES], [u8; BLOCK]) {
    let step = step_for(absmax(values) / f32::from(CODE_MAX));
    let inverse = if step == bf16::ZERO { 0.0 } else { 1.0 / step.to_f32() };
    // The lowest byte of the sum is the code in two's complement.
    let codes = std::array::from_fn(|at| (values[at] * inverse + ROUND).to_bits() as u8);
    (step.to_le_bytes(), codes)
}

/// The nearest step. It never rounds to one whose 127-fold is infinite: the largest there is, `f32::MAX / 127`, rounds down.
fn step_for(exact: f32) -> bf16 {
    if exact < TINY { bf16::ZERO } else { bf16::from_f32(exact) }
}

/// Fills `row` from its bytes.
pub(super) fn decode(encoded: &[u8], row: &mut [f32]) -> Result<(), Fault> {
    let (blocks, rest) = row.as_chunks_mut::<BLOCK>();
    let (encoded, last) = encoded.split_at(blocks.len() * (STEP_BYTES + BLOCK));
    for (block, encoded) in blocks.iter_mut().zip(encoded.as_chunks::<{ STEP_BYTES + BLOCK }>().0) {
        decode_block(encoded, block)?;
    }
    if rest.is_empty() { Ok(()) } else { decode_block(last, rest) }
}

#[inline(always)]
fn decode_block(encoded: &[u8], values: &mut [f32]) -> Result<(), Fault> {
    let Some((&step, codes)) = encoded.split_first_chunk::<STEP_BYTES>() else { return Ok(()) };
    let step = decode_step(step, TINY, f32::MAX / f32::from(CODE_MAX))?;
    let largest = codes.iter().fold(0, |max, code| code.cast_signed().unsigned_abs().max(max));
    if largest != if step == 0.0 { 0 } else { CODE_MAX } {
        return Err(Fault::Twin("a block's largest code does not fit its step"));
    }
    for (value, code) in values.iter_mut().zip(codes) {
        *value = f32::from(code.cast_signed()) * step;
    }
    Ok(())
}

/// A block's step, or the value of its largest code: zero, or between `min` and `max`.
pub(super) fn decode_step(bytes: [u8; STEP_BYTES], min: f32, max: f32) -> Result<f32, Fault> {
    let step = bf16::from_le_bytes(bytes).to_f32();
    if step.to_bits() == 0 || step >= min && step <= max {
        return Ok(step);
    }
    Err(if step.is_finite() { Fault::Twin("a block's step is none that is sent") } else { Fault::NotFinite })
}
