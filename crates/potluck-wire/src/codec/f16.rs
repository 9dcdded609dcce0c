//! Rows in half precision, divided by a power of two where their largest value needs it.

use half::{f16, slice::HalfFloatSliceExt as _};

use super::{Fault, largest, step::power};

/// Largest power of two that a row is divided by: enough for any finite f32.
pub(super) const EXPONENT_MAX: u8 = 113;

/// Values that are converted at once.
const BLOCK: usize = 64;

/// Bytes of a row of `width` values: an exponent, and its halves.
pub(super) const fn row_bytes(width: usize) -> usize {
    width.saturating_mul(size_of::<f16>()).saturating_add(1)
}

/// Appends a row whose largest magnitude is `max`.
pub(super) fn encode(row: &[f32], max: f32, out: &mut Vec<u8>) {
    let exponent = exponent_for(max);
    out.push(exponent);
    let scale = power(-i32::from(exponent));
    let mut scaled = [0f32; BLOCK];
    let mut halves = [f16::ZERO; BLOCK];
    let before = out.len();
    out.resize(before + size_of_val(row) / 2, 0);
    for (block, bytes) in row.chunks(BLOCK).zip(out[before..].chunks_mut(2 * BLOCK)) {
        let (scaled, halves) = (&mut scaled[..block.len()], &mut halves[..block.len()]);
        scaled.iter_mut().zip(block).for_each(|(slot, value)| *slot = value * scale);
        halves.convert_from_f32_slice(scaled);
        bytes.as_chunks_mut::<2>().0.iter_mut().zip(halves).for_each(|(slot, half)| *slot = half.to_le_bytes());
    }
}

/// Fills `row` from its bytes.
pub(super) fn decode(encoded: &[u8], row: &mut [f32]) -> Result<(), Fault> {
    let Some((&exponent, values)) = encoded.split_first() else { return Ok(()) };
    if exponent > EXPONENT_MAX {
        return Err(Fault::Scale(exponent));
    }
    let scale = power(exponent.into());
    let mut halves = [f16::ZERO; BLOCK];
    let mut max = 0u16;
    for (block, bytes) in row.chunks_mut(BLOCK).zip(values.chunks(2 * BLOCK)) {
        let halves = &mut halves[..block.len()];
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(*bytes);
            max = max.max(half.to_bits() & 0x7fff);
        }
        halves.convert_to_f32_slice(block);
        block.iter_mut().for_each(|value| *value *= scale);
    }
    if f16::from_bits(max).to_f32().is_infinite() || f16::from_bits(max).is_nan() {
        return Err(Fault::NotFinite);
    }
    // A needed scale leaves its largest value in f16's top binade, or just rounded down from it.
    if exponent > 0 && f16::from_bits(max).to_f32() < 32_752.0 {
        return Err(Fault::Scale(exponent));
    }
    largest(row).map(|_| ()).ok_or(Fault::NotFinite)
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
