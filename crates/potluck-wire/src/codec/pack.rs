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
    if count == BLOCK {
        // Eight codes at once, a byte each.
        let [a, b, c, d] = words(codes);
        let mut halves = [a & LOW | (c & LOW) << 4, b & LOW | (d & LOW) << 4, 0, 0];
        if BITS == 6 {
            let upper = |word: u64| word >> 4 & UPPER;
            halves[2] = upper(a) | upper(b) << 2 | upper(c) << 4 | upper(d) << 6;
        }
        return bytes_of(halves);
    }
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

/// Unpacks `count` codes, which fill the result from its beginning, each with the bits above it zero. Whether what is left over was
/// zero shows in the codes after them.
#[inline(always)]
pub(super) fn unpack<const BITS: u32>(packed: &[u8], count: usize) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    if BITS == 8 {
        codes[..count].copy_from_slice(&packed[..count]);
        return codes;
    }
    if count == BLOCK {
        codes[..bytes(BITS, BLOCK)].copy_from_slice(&packed[..bytes(BITS, BLOCK)]);
        let [a, b, upper, _] = words(&codes);
        let mut unpacked = [a & LOW, b & LOW, a >> 4 & LOW, b >> 4 & LOW];
        if BITS == 6 {
            for (part, word) in unpacked.iter_mut().enumerate() {
                *word |= (upper >> (2 * part) & UPPER) << 4;
            }
        }
        return bytes_of(unpacked);
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
    codes
}

/// The lower four bits of each byte, and the lower two.
const LOW: u64 = 0x0f0f_0f0f_0f0f_0f0f;
const UPPER: u64 = 0x0303_0303_0303_0303;

#[inline(always)]
fn words(bytes: &[u8; BLOCK]) -> [u64; 4] {
    let mut words = [0; 4];
    words.iter_mut().zip(bytes.as_chunks::<8>().0).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
    words
}

#[inline(always)]
fn bytes_of(words: [u64; 4]) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    bytes.as_chunks_mut::<8>().0.iter_mut().zip(words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
    bytes
}
