//! Massive channels in 24 bits; the rest rotated, and in blocks of 32 codes of 8, 6 or 4 bits.
//!
//! What of a massive channel its 24 bits do not hold stays in the row, so that every channel has the precision of the rest. After the
//! rotation values look like noise of one strength, and codes stand for the middle of as many equal steps: code `q`
//! of a block whose step is `s` means `(q + 1/2) * s`, so that none of the `2^bits` codes is idle.
//!
//! A step is a sixteenth of an octave wide at most above what its block needs, and takes a byte: its place under the largest
//! octave of the row. That byte costs a quarter of what an f16 does, and spends it on blocks half as long.

use super::{
    Fault, hadamard, massive,
    massive::Massive,
    pack,
    pack::BLOCK,
    step::{INVERSE_STEPS, ROUND, STEPS, TINY, absmax, exponent_of, power, sixteenths},
};

/// Added to the exponent of the largest step of a row to make its byte. A byte of 0 is a row of zeros.
const EXPONENT_BIAS: i32 = 96;

/// Bounds of that byte: what a single value of [`TINY`] needs with 8 bits when the largest piece has spread it, and what a piece that
/// is f32's largest number everywhere needs with 4 bits where the signs make all of it one coefficient.
const EXPONENT_BYTES: std::ops::RangeInclusive<u8> = 20..=226;

/// Code of the smallest step in the largest octave of a row: the row's largest step is there.
const OCTAVE_MIN: u8 = 240;

/// Exponent that a row's largest value is brought to before it is rotated: half way between f32's ends for what follows.
const TOP: i32 = 10;

/// Bytes of a row of `width` values.
pub(super) const fn row_bytes(bits: u32, width: usize) -> usize {
    let blocks = (width / BLOCK).saturating_mul(1 + pack::bytes(bits, BLOCK));
    let rest = width % BLOCK;
    let rest = if rest > 0 { 1 + pack::bytes(bits, rest) } else { 0 };
    blocks.saturating_add(rest + 1 + massive::row_bytes(width))
}

/// Appends a finite row; `rest` is room for as many values.
pub(super) fn encode<const BITS: u32>(row: &[f32], rest: &mut [f32], out: &mut Vec<u8>) {
    let massive = Massive::of(row);
    rest.copy_from_slice(row);
    massive.values().for_each(|(channel, value)| rest[channel] -= value);
    let max = absmax(rest);
    if max < TINY {
        out.push(0);
        massive.encode(out);
        out.resize(out.len() + row_bytes(BITS, row.len()) - 1 - massive::row_bytes(row.len()), 0);
        return;
    }
    let brought = TOP - exponent_of(max);
    let mut largest = 0.0f32;
    hadamard::pieces(rest, |piece, log| {
        turn(piece, power(brought - (log + 1) / 2));
        hadamard::transform(piece);
        largest = largest.max(absmax(piece));
    });
    let octave = sixteenths(needed::<BITS>(largest)).div_euclid(16);
    out.push((octave - brought + EXPONENT_BIAS) as u8);
    massive.encode(out);
    let (blocks, last) = rest.as_chunks::<BLOCK>();
    for block in blocks {
        encode_block::<BITS>(block, BLOCK, octave, out);
    }
    if !last.is_empty() {
        let mut block = [0.0; BLOCK];
        block[..last.len()].copy_from_slice(last);
        encode_block::<BITS>(&block, last.len(), octave, out);
    }
}

/// Flips signs, and multiplies by a power of two.
fn turn(piece: &mut [f32], scale: f32) {
    for (value, sign) in piece.iter_mut().zip(&hadamard::SIGNS) {
        *value = f32::from_bits(value.to_bits() ^ sign) * scale;
    }
}

/// The step that a block with this largest magnitude needs: half of its codes reach it, less what later roundings may add.
fn needed<const BITS: u32>(largest: f32) -> f32 {
    largest * (1.0 / (1u32 << (BITS - 1)) as f32 * (1.0 + 1.0 / 524_288.0))
}

#[inline(always)]
fn encode_block<const BITS: u32>(values: &[f32; BLOCK], count: usize, octave: i32, out: &mut Vec<u8>) {
    let largest = absmax(values);
    if largest == 0.0 {
        out.resize(out.len() + 1 + pack::bytes(BITS, count), 0);
        return;
    }
    let step = (sixteenths(needed::<BITS>(largest)) - 16 * octave + i32::from(OCTAVE_MIN)).max(1) as u8;
    let inverse = INVERSE_STEPS[usize::from(step)] * power(-octave);
    let mut codes: [u8; BLOCK] = std::array::from_fn(|at| (values[at] * inverse - 0.5 + ROUND).to_bits() as u8);
    codes[count..].fill(0);
    out.push(step);
    out.extend_from_slice(&pack::pack::<BITS>(&codes, count)[..pack::bytes(BITS, count)]);
}

/// Fills `row` from its bytes.
pub(super) fn decode<const BITS: u32>(encoded: &[u8], row: &mut [f32]) -> Result<(), Fault> {
    let Some((&exponent, encoded)) = encoded.split_first() else { return Ok(()) };
    let (channels, encoded) = encoded.split_at(massive::row_bytes(row.len()));
    let massive = Massive::decode(channels, row.len())?;
    if exponent == 0 {
        if encoded.iter().any(|byte| *byte != 0) {
            return Err(Fault::Twin("a row of zeros has codes"));
        }
        row.fill(0.0);
        massive.values().for_each(|(channel, value)| row[channel] = value);
        return Ok(());
    }
    if !EXPONENT_BYTES.contains(&exponent) {
        return Err(Fault::Twin("a row's power of two is none that is sent"));
    }
    // Half of the power before the rotation, the rest after it: neither is near the ends of f32.
    let exponent = i32::from(exponent) - EXPONENT_BIAS;
    let before = power(exponent / 2);
    let (blocks, last) = row.as_chunks_mut::<BLOCK>();
    let (encoded, encoded_last) = encoded.split_at(blocks.len() * (1 + pack::bytes(BITS, BLOCK)));
    let mut largest = 0;
    for (block, encoded) in blocks.iter_mut().zip(encoded.chunks_exact(1 + pack::bytes(BITS, BLOCK))) {
        largest = largest.max(encoded[0]);
        *block = decode_block::<BITS>(encoded, BLOCK, before)?;
    }
    if !last.is_empty() {
        largest = largest.max(encoded_last[0]);
        last.copy_from_slice(&decode_block::<BITS>(encoded_last, last.len(), before)?[..last.len()]);
    }
    if largest < OCTAVE_MIN {
        return Err(Fault::Twin("a row's power of two is not its largest step's"));
    }
    hadamard::pieces(row, |piece, log| {
        hadamard::transform(piece);
        turn(piece, power(exponent - exponent / 2 - log / 2));
    });
    massive.values().for_each(|(channel, value)| row[channel] += value);
    // Beside f32's largest number what was rounded up may have gone beyond it.
    if exponent > 100 {
        row.iter_mut().for_each(|value| *value = value.clamp(f32::MIN, f32::MAX));
    }
    Ok(())
}

#[inline(always)]
fn decode_block<const BITS: u32>(encoded: &[u8], count: usize, scale: f32) -> Result<[f32; BLOCK], Fault> {
    let codes = pack::unpack::<BITS>(&encoded[1..], count);
    if codes[count..].iter().any(|code| *code != 0) || encoded[0] == 0 && codes != [0; BLOCK] {
        return Err(Fault::Twin("a block's codes do not fit its step"));
    }
    if encoded[0] == 0 {
        return Ok([0.0; BLOCK]);
    }
    // Counted from the lowest code, -half, on.
    let half = 1u8 << (BITS - 1);
    let codes = codes.map(|code| code ^ half);
    let (low, high) = codes[..count].iter().fold((u8::MAX, 0), |(low, high), code| (low.min(*code), high.max(*code)));
    if encoded[0] > 1 && low > half - 1 - far_min::<BITS>() && high < half + far_min::<BITS>() {
        return Err(Fault::Twin("a block's codes do not fit its step"));
    }
    let step = STEPS[usize::from(encoded[0])] * scale;
    Ok(codes.map(|code| (f32::from(code) - (f32::from(half) - 0.5)) * step))
}

/// How many codes the farthest one of a block is from the middle, at least: a step is less than `2^(1/16)` times what its block needs.
const fn far_min<const BITS: u32>() -> u8 {
    match BITS {
        8 => 122,
        6 => 30,
        _ => 7,
    }
}
