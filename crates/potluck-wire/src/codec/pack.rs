//! Codes of 8, 6 and 4 bits in bytes.
//!
//! Low and high bits are kept apart, so that packing and unpacking are the same few operations on many bytes at once. Of `m` codes,
//! byte `i` of the low halves holds codes `i` and `i + ceil(m / 2)`; byte `i` of the upper pairs of bits (6 bits only) holds codes
//! `i`, `i + ceil(m / 4)` and so on. What is left over is zero.

/// Codes of a block.
pub(super) const BLOCK: usize = 32;

/// Bytes of `count` codes.
pub(super) const fn bytes(bits: u32, count: usize) -> usize {
    match bits {
        8 => count,
        6 => count.div_ceil(2) + count.div_ceil(4),
        _ => count.div_ceil(2),
    }
}

/// Packs `count` codes in two's complement; codes beyond them are zero. Only the first [`bytes`] of the result count.
#[inline(always)]
pub(super) fn pack<const BITS: u32>(codes: &[u8; BLOCK], count: usize) -> [u8; BLOCK] {
    if BITS == 8 {
        return *codes;
    }
    let mut packed = [0; BLOCK];
    let (half, quarter) = (count.div_ceil(2), count.div_ceil(4));
    let (low, rest) = codes.split_at(half);
    let (halves, upper) = packed.split_at_mut(half);
    for ((slot, low), high) in halves.iter_mut().zip(low).zip(rest) {
        *slot = low & 15 | high << 4;
    }
    if BITS == 6 {
        for part in 0..4 {
            let codes = &codes[part * quarter..][..quarter];
            for (slot, code) in upper.iter_mut().zip(codes) {
                *slot |= (code >> 4 & 3) << (2 * part);
            }
        }
    }
    packed
}

/// Unpacks `count` codes, which are in two's complement and fill the result from its beginning. Whether what is left over was zero
/// shows in the codes after them.
#[inline(always)]
pub(super) fn unpack<const BITS: u32>(packed: &[u8], count: usize) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    if BITS == 8 {
        codes[..count].copy_from_slice(&packed[..count]);
        return codes;
    }
    let (half, quarter) = (count.div_ceil(2), count.div_ceil(4));
    let (halves, upper) = packed.split_at(half);
    let (low, rest) = codes.split_at_mut(half);
    for ((low, high), packed) in low.iter_mut().zip(rest).zip(halves) {
        (*low, *high) = (packed & 15, packed >> 4);
    }
    if BITS == 6 {
        for part in 0..4 {
            let codes = &mut codes[part * quarter..][..quarter];
            for (code, packed) in codes.iter_mut().zip(upper) {
                *code |= (packed >> (2 * part) & 3) << 4;
            }
        }
    }
    let sign = 1u8 << (BITS - 1);
    codes.map(|code| (code ^ sign).wrapping_sub(sign))
}
