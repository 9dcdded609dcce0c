//! The arithmetic that codecs share: rounding, and the sizes of steps.
//!
//! Everything here is a fixed sequence of IEEE operations in `f32`, each rounded by itself: the same bytes everywhere.

/// Magnitudes below this (5.4e-20) are zero to the codecs below 16 bits: no step of theirs is ever subnormal. The inverse of one near
/// f32's largest number is, and counts as IEEE has it.
pub(super) const TINY: f32 = f32::from_bits((127 - 64) << 23);

/// Added to a value of at most 2^22 in magnitude, this leaves its nearest integer, ties to even, in the lowest bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// `2^exponent`, for exponents of normal numbers.
pub(super) const fn power(exponent: i32) -> f32 {
    debug_assert!(exponent > -127 && exponent < 128, "a normal number");
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The exponent of the power of two at or below `value`, which is normal and positive.
pub(super) const fn exponent_of(value: f32) -> i32 {
    (value.to_bits() >> 23) as i32 - 127
}

/// The largest magnitude of finite values.
pub(super) fn absmax(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0i32, |max, value| max.max(value.to_bits() as i32 & i32::MAX)) as u32)
}

/// `2^(j/16)` for `j` from 0 to 15, rounded to nearest.
const ROOTS: [u32; 16] = [
    0x3f80_0000,
    0x3f85_aac3,
    0x3f8b_95c2,
    0x3f91_c3d3,
    0x3f98_37f0,
    0x3f9e_f532,
    0x3fa5_fed7,
    0x3fad_583f,
    0x3fb5_04f3,
    0x3fbd_08a4,
    0x3fc5_672a,
    0x3fce_248c,
    0x3fd7_44fd,
    0x3fe0_ccdf,
    0x3fea_c0c7,
    0x3ff5_257d,
];

/// `2^(-j/16)` for `j` from 0 to 15, rounded to nearest.
const INVERSE_ROOTS: [u32; 16] = [
    0x3f80_0000,
    0x3f75_257d,
    0x3f6a_c0c7,
    0x3f60_ccdf,
    0x3f57_44fd,
    0x3f4e_248c,
    0x3f45_672a,
    0x3f3d_08a4,
    0x3f35_04f3,
    0x3f2d_583f,
    0x3f25_fed7,
    0x3f1e_f532,
    0x3f18_37f0,
    0x3f11_c3d3,
    0x3f0b_95c2,
    0x3f05_aac3,
];

/// `2^((code - 240) / 16)`: the steps that a byte can name, the largest being just under 2.
pub(super) const STEPS: [f32; 256] = steps(&ROOTS, 1);

/// `2^((240 - code) / 16)`.
pub(super) const INVERSE_STEPS: [f32; 256] = steps(&INVERSE_ROOTS, -1);

const fn steps(roots: &[u32; 16], sign: i32) -> [f32; 256] {
    let mut steps = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        steps[code] = f32::from_bits(roots[code % 16]) * power(sign * (code as i32 / 16 - 15));
        code += 1;
    }
    steps
}

/// The smallest `l` with `2^(l/16) >= value`, for a normal and positive value.
pub(super) fn sixteenths(value: f32) -> i32 {
    let mantissa = value.to_bits() & 0x007f_ffff | 0x3f80_0000;
    let above = ROOTS.iter().filter(|root| **root < mantissa).count();
    16 * exponent_of(value) + above as i32
}
