//! Blocks of 64 values in a dynamic map of 8 bits: a sign, and 127 magnitudes over seven decades, finer the larger they are.
//!
//! The map is that of 8-bit optimisers: its decades below one have 1, 2, 4 ... 64 magnitudes, the midpoints of as many equal
//! parts. Here it is the same for both signs, and divided by its largest magnitude, so that a block's largest value has the last
//! code and a block has one encoding.
//! Source: Dettmers et al., arXiv:2110.02861, section 2.2.

use half::bf16;

use super::{
    Fault,
    q8::decode_step,
    step::{TINY, absmax},
};

/// Values that share a scale.
pub(super) const BLOCK: usize = 64;

/// Bytes of a block's scale, its largest magnitude as a bf16.
const SCALE_BYTES: usize = 2;

/// Decades of the map.
const DECADES: u32 = 7;

/// Code of the largest magnitude, 1.
const CODE_MAX: u8 = 127;

const SIGN: u8 = 0x80;

/// The magnitude of each code without its sign.
const MAGNITUDES: [f32; 128] = magnitudes();

/// What each code stands for. That of a negative zero is never sent.
const VALUES: [f32; 256] = values();

/// Bits of a magnitude that choose its cell: the exponent and seven bits of the mantissa.
const CELL_SHIFT: u32 = 16;

/// The lowest cell: below it every magnitude is nearest to zero.
const CELL_MIN: u32 = 0x3400_0000 >> CELL_SHIFT;

/// The cell of a magnitude that the rounding of a scale left above 1: at most `1 + 2^-7`.
const CELL_MAX: u32 = 0x3f81_0000 >> CELL_SHIFT;

/// The code of the smallest magnitude of each cell. No cell has more than one limit between codes.
const CELLS: [u8; (CELL_MAX - CELL_MIN + 1) as usize] = cells();

/// Bytes of a row of `width` values.
pub(super) const fn row_bytes(width: usize) -> usize {
    width.saturating_add(width.div_ceil(BLOCK).saturating_mul(SCALE_BYTES))
}

/// Appends a row of finite values.
pub(super) fn encode(row: &[f32], out: &mut Vec<u8>) {
    for block in row.chunks(BLOCK) {
        let scale = scale_for(absmax(block));
        let inverse = if scale == bf16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        out.extend_from_slice(&scale.to_le_bytes());
        let mut codes = [0; BLOCK];
        for (code, value) in codes.iter_mut().zip(block) {
            *code = nearest(value * inverse);
        }
        out.extend_from_slice(&codes[..block.len()]);
    }
}

/// The nearest bf16 that is finite; zero for what is as good as zero.
fn scale_for(max: f32) -> bf16 {
    if max < TINY { bf16::ZERO } else { bf16::from_f32(max).min(bf16::MAX) }
}

/// The code whose value is nearest; halfway between two, the one nearer to zero.
fn nearest(value: f32) -> u8 {
    let magnitude = f32::from_bits(value.to_bits() & 0x7fff_ffff);
    let cell = (magnitude.to_bits() >> CELL_SHIFT).clamp(CELL_MIN, CELL_MAX) - CELL_MIN;
    let code = CELLS[cell as usize];
    let code = code + u8::from(code < CODE_MAX && magnitude > limit(code));
    if code == 0 { 0 } else { code | if value < 0.0 { SIGN } else { 0 } }
}

/// Where the next code begins.
const fn limit(code: u8) -> f32 {
    LIMITS[code as usize]
}

const LIMITS: [f32; 127] = {
    let mut limits = [0.0; 127];
    let mut code = 0;
    while code < 127 {
        limits[code] = ((MAGNITUDES[code] as f64 + MAGNITUDES[code + 1] as f64) / 2.0) as f32;
        code += 1;
    }
    limits
};

/// Fills `row` from its bytes.
pub(super) fn decode(encoded: &[u8], row: &mut [f32]) -> Result<(), Fault> {
    for (values, encoded) in row.chunks_mut(BLOCK).zip(encoded.chunks(SCALE_BYTES + BLOCK)) {
        let Some((&scale, codes)) = encoded.split_first_chunk::<SCALE_BYTES>() else { return Ok(()) };
        let scale = decode_step(scale, TINY, f32::MAX)?;
        let largest = codes.iter().fold(0, |max, code| (code & !SIGN).max(max));
        if largest != if scale == 0.0 { 0 } else { CODE_MAX } {
            return Err(Fault::Twin("a block's largest code does not fit its scale"));
        }
        if codes.contains(&SIGN) {
            return Err(Fault::Twin("a zero has a sign"));
        }
        for (value, code) in values.iter_mut().zip(codes) {
            *value = VALUES[usize::from(*code)] * scale;
        }
    }
    Ok(())
}

const fn magnitudes() -> [f32; 128] {
    let mut magnitudes = [0.0; 128];
    let largest = 1.0 - 0.9 / 128.0;
    let mut at = 1;
    let mut decade = 0;
    while decade < DECADES {
        let parts = 1u32 << decade;
        let mut unit = 1.0;
        let mut below = decade + 1;
        while below < DECADES {
            unit *= 10.0;
            below += 1;
        }
        let mut part = 0;
        while part < parts {
            let middle = 0.1 + 0.9 * (2 * part + 1) as f64 / (2 * parts) as f64;
            magnitudes[at] = (middle / unit / largest) as f32;
            at += 1;
            part += 1;
        }
        decade += 1;
    }
    magnitudes
}

const fn values() -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 128 {
        values[code] = MAGNITUDES[code];
        values[code + 128] = -MAGNITUDES[code];
        code += 1;
    }
    values
}

const fn cells() -> [u8; (CELL_MAX - CELL_MIN + 1) as usize] {
    let mut cells = [0; (CELL_MAX - CELL_MIN + 1) as usize];
    let mut code = 0;
    let mut cell = 0;
    while cell < cells.len() {
        let lowest = f32::from_bits((CELL_MIN + cell as u32) << CELL_SHIFT);
        let mut limits = 0;
        while code < CODE_MAX && lowest > LIMITS[code as usize] {
            code += 1;
            limits += 1;
        }
        // What began below this cell's lowest value began in the cell before.
        assert!(limits <= 1, "a cell has one limit at most");
        cells[cell] = code;
        cell += 1;
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_that_of_the_paper() {
        assert_eq!((MAGNITUDES[0], MAGNITUDES[127]), (0.0, 1.0));
        assert!(MAGNITUDES.is_sorted_by(|a, b| a < b));
        let top = 1.0 - 0.9 / 128.0;
        for (code, magnitude) in [(1, 0.55e-6), (2, 0.325e-5), (3, 0.775e-5), (63, 0.098_593_75), (64, 0.107_031_25)] {
            let magnitude = (magnitude / top) as f32;
            assert!((MAGNITUDES[code] / magnitude - 1.0).abs() < 1e-6, "{code}: {} {magnitude}", MAGNITUDES[code]);
        }
    }

    #[test]
    fn the_nearest_is_found() {
        let mut values: Vec<f32> = (0..60_000).map(|at| f32::from_bits(0x3300_0000 + at * 3_491)).collect();
        values.extend(LIMITS.iter().flat_map(|limit| [limit.next_down(), *limit, limit.next_up()]));
        for value in values.into_iter().filter(|value| *value <= 1.0078) {
            let distance = |code: u8| (f64::from(VALUES[usize::from(code)]) - f64::from(value)).abs();
            let best = (0..128).map(distance).fold(f64::MAX, f64::min);
            // The limits are rounded to f32, so that a value just beside one may be as near to both.
            assert!(distance(nearest(value)) <= best + f64::from(value) * 3e-7, "{value}");
            assert_eq!(nearest(-value), if nearest(value) == 0 { 0 } else { nearest(value) | SIGN }, "{value}");
        }
    }
}
