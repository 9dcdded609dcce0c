//! What holds of the codecs of 8 bits and below.

use proptest::prelude::*;

use super::{reference, step::TINY, *};

const LOW: [Codec; 5] = [Codec::Q8, Codec::Dyn8, Codec::Mixed8, Codec::Mixed6, Codec::Mixed4];
const MIXED: [Codec; 3] = [Codec::Mixed8, Codec::Mixed6, Codec::Mixed4];

/// Rows as models make them, and as they never do: massive channels, zeros, either end of f32, values that repeat.
fn row() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        6 => -1f32..1.0,
        1 => any::<f32>().prop_filter("finite", |value| value.is_finite()),
        1 => prop::sample::select(vec![0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e-45, -1e-38, f32::MAX, f32::MIN, 103_772.0]),
    ];
    let ordinary = -1f32..1.0;
    let massive = prop::collection::vec((0usize..700, -30_000f32..30_000.0), 0..6);
    prop_oneof![
        prop::collection::vec(value, 1..700),
        (prop::collection::vec(ordinary, 1..700), massive, -100i32..100).prop_map(|(mut row, massive, power)| {
            let width = row.len();
            massive.into_iter().for_each(|(at, value)| row[at % width] = value);
            row.into_iter().map(|value| value * 2f32.powi(power)).collect()
        }),
    ]
}

fn encode(codec: Codec, row: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec.encode(row, row.len(), &mut bytes).unwrap();
    assert_eq!(bytes.len(), codec.bytes(1, row.len()), "{codec}");
    bytes
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|value| value.to_bits()).collect()
}

fn length(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

proptest! {
    #[test]
    fn bytes_are_those_of_the_plain_codec(row in row()) {
        for codec in LOW.into_iter().chain([Codec::F16]) {
            prop_assert_eq!(encode(codec, &row), reference::encode(codec, &row), "{}", codec);
        }
    }

    #[test]
    fn values_stay_finite_and_close(row in row()) {
        let width = row.len();
        for codec in LOW {
            let back = codec.decode(&encode(codec, &row), 1, width).unwrap();
            prop_assert!(back.iter().all(|value| value.is_finite()), "{}", codec);
            let error = |at: usize| f64::from(row[at]) - f64::from(back[at]);
            let (block, steps) = match codec {
                // Half a step; and half of what is between the two largest magnitudes of the map. Each with a step's rounding.
                Codec::Q8 => (32, 127.0 * 2.0 / 1.004),
                Codec::Dyn8 => (64, 128.0 / 0.9 / 1.02),
                _ => continue,
            };
            for at in 0..width {
                let block = &row[at / block * block..width.min(at / block * block + block)];
                let max = block.iter().fold(0.0, |max: f32, value| max.max(value.abs()));
                prop_assert!(error(at).abs() <= f64::from(max) / steps + 127.0 * f64::from(TINY), "{} {}", codec, at);
            }
        }
        // All but the massive channels, and what their 24 bits leave of them, is within half a step in the rotated row; no block of
        // a rotated piece is larger than the piece is long.
        let mut order: Vec<f64> = row.iter().map(|value| f64::from(value.abs())).collect();
        order.sort_by(|a, b| b.total_cmp(a));
        let count = massive::count(width);
        let rest = length(order[count..].iter().copied().chain([order[0] / 32_768.0 * count as f64]));
        for (codec, half) in MIXED.into_iter().zip([128.0, 32.0, 8.0]) {
            let back = codec.decode(&encode(codec, &row), 1, width).unwrap();
            let error = length(row.iter().zip(&back).map(|(a, b)| f64::from(*a) - f64::from(*b)));
            let roundings = 1e-5 * order[0] + f64::from(TINY) * width as f64;
            let bound = (width as f64).sqrt() * 0.5 * rest * 1.45 / half + roundings;
            prop_assert!(error <= bound, "{}: {} {}", codec, error, bound);
        }
    }

    #[test]
    fn a_second_hop_changes_nothing(row in row()) {
        for codec in [Codec::Q8, Codec::Dyn8] {
            let bytes = encode(codec, &row);
            let back = codec.decode(&bytes, 1, row.len()).unwrap();
            prop_assert_eq!(&encode(codec, &back), &bytes, "{}", codec);
        }
    }

    #[test]
    fn one_encoding_of_a_value(row in row(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        for codec in LOW {
            let bytes = encode(codec, &row);
            let before = codec.decode(&bytes, 1, row.len()).unwrap();
            let mut other = bytes.clone();
            other[at.index(bytes.len())] ^= flip;
            if let Ok(after) = codec.decode(&other, 1, row.len()) {
                prop_assert!(after.iter().all(|value| value.is_finite()));
                // What went beyond f32's largest number comes back as that number, whatever it was.
                let ends = before.iter().any(|value| value.abs() == f32::MAX);
                prop_assert!(ends || bits(&after) != bits(&before), "{}: {:?} {:?}", codec, bytes, other);
                // Whoever sent it, its values can be sent on.
                encode(codec, &after);
            }
        }
    }

    #[test]
    fn hostile_payloads(bytes in prop::collection::vec(any::<u8>(), 0..400), positions in 0usize..4, width in 0usize..300) {
        for codec in Codec::ALL {
            // As long as it should be, too, or nearly all would be refused for their length.
            let expected = codec.bytes(positions, width).min(2000);
            let fitting: Vec<u8> = bytes.iter().copied().cycle().take(if bytes.is_empty() { 0 } else { expected }).collect();
            for bytes in [&bytes, &fitting] {
                if let Ok(hidden) = codec.decode(bytes, positions, width) {
                    prop_assert!(hidden.iter().all(|value| value.is_finite()), "{}", codec);
                    prop_assert!(codec.encode(&hidden, width, &mut vec![]).is_ok(), "{}", codec);
                }
            }
        }
        let _ = Codec::decode_tokens(&bytes, positions);
    }

    #[test]
    fn rows_are_independent_and_buffers_are_reused(rows in prop::collection::vec(prop::collection::vec(-9f32..9.0, 67), 1..4)) {
        for codec in Codec::ALL.into_iter().skip(1) {
            let mut bytes = vec![1, 2, 3];
            codec.encode(&rows.concat(), 67, &mut bytes).unwrap();
            let mut each = vec![1, 2, 3];
            rows.iter().for_each(|row| codec.encode(row, 67, &mut each).unwrap());
            prop_assert_eq!(&bytes, &each, "{}", codec);
            let mut hidden = vec![f32::NAN; 67 * rows.len()];
            codec.decode_into(&bytes[3..], 67, &mut hidden).unwrap();
            prop_assert_eq!(hidden, codec.decode(&bytes[3..], rows.len(), 67).unwrap(), "{}", codec);
        }
    }
}

/// Numbers as good as normal ones, the same everywhere.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum()).collect()
}

#[test]
fn noise_keeps_its_signal_whatever_the_massive_channels_hold() {
    for width in [576, 896, 1536, 2560, 4096, 5120] {
        for (codec, decibels) in MIXED.into_iter().zip([44.0, 32.0, 19.8]) {
            for massive in [0.0, 500.0, 103_772.0, 1e30] {
                let mut row = noise(width);
                let signal = length(row.iter().map(|value| f64::from(*value)));
                // No more than f32 itself keeps beside the others.
                for (at, value) in [(3, massive), (70, -massive / 7.0), (width - 1, massive / 30.0)] {
                    row[at] += value;
                }
                let back = codec.decode(&encode(codec, &row), 1, width).unwrap();
                let error = |at: usize| f64::from(row[at]) - f64::from(back[at]);
                let error = length((0..width).filter(|at| row[*at].abs() < 1e9).map(error));
                if massive < 1e6 {
                    let got = 20.0 * (signal / error).log10();
                    assert!(got >= decibels, "{codec} at width {width}, massive {massive}: {got} dB");
                }
            }
        }
    }
}

#[test]
fn zeros_are_zeros_and_ends_are_finite() {
    for width in [1, 2, 31, 63, 64, 65, 576, 700] {
        for codec in LOW {
            for zero in [0.0, -0.0, 1e-45, -1e-30] {
                let bytes = encode(codec, &vec![zero; width]);
                let back = codec.decode(&bytes, 1, width).unwrap();
                assert!(back.iter().all(|value| value.abs() <= TINY), "{codec} {width} {zero}");
            }
            for pattern in [[f32::MAX, f32::MAX], [f32::MIN, f32::MIN], [f32::MAX, f32::MIN], [f32::MAX, 1e-45]] {
                let row: Vec<f32> = pattern.into_iter().cycle().take(width).collect();
                let back = codec.decode(&encode(codec, &row), 1, width).unwrap();
                for (a, b) in row.iter().zip(&back) {
                    // The rounding of a step alone may be 2^-8 of the largest value.
                    let error = (f64::from(*a) - f64::from(*b)).abs() / f64::from(f32::MAX);
                    assert!(b.is_finite() && (codec == Codec::Mixed4 || error < 0.1), "{codec} {width}: {a} {b}");
                }
            }
        }
    }
}

#[test]
fn one_coefficient_may_hold_a_whole_piece() {
    let signs: Vec<f32> = hadamard::SIGNS.iter().map(|sign| f32::from_bits(1.0f32.to_bits() | sign)).collect();
    for width in [16, 64, 512, 1024] {
        for codec in MIXED {
            for value in [TINY, 1.0, f32::MAX] {
                let row: Vec<f32> = signs[..width].iter().map(|sign| sign * value).collect();
                let back = codec.decode(&encode(codec, &row), 1, width).unwrap();
                assert!(back.iter().all(|value| value.is_finite()), "{codec} {width} {value}");
                // With few bits the coefficients that are zero cost most: each becomes half a step beside the large one.
                let error =
                    length(row.iter().zip(&back).map(|(a, b)| (f64::from(*a) - f64::from(*b)) / f64::from(value)));
                assert!(error <= 0.4 * (width as f64).sqrt(), "{codec} {width} {value}: {error}");
            }
        }
    }
    for codec in MIXED {
        // No row is larger or smaller than those.
        let exponent = |value: f32| encode(codec, &[value; 1])[0];
        let mut alone = vec![0.0; 1029];
        alone[200..205].fill(TINY);
        codec.decode(&encode(codec, &alone), 1, 1029).unwrap();
        assert!(exponent(TINY) >= 20 && exponent(f32::MAX) <= 226, "{codec}");
    }
}

#[test]
fn what_is_not_finite_is_refused_and_leaves_nothing() {
    for codec in LOW {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut hidden = noise(140);
            hidden[139] = bad;
            let mut out = vec![9];
            assert_eq!(codec.encode(&hidden, 70, &mut out), Err(CodecError::NotFinite { position: 1 }), "{codec}");
            assert_eq!(out, [9], "{codec}");
        }
    }
    for codec in [Codec::Q8, Codec::Dyn8] {
        for bad in [0x7f80u16, 0xff80, 0x7fc0, 0xffff] {
            let mut bytes = encode(codec, &[1.0; 8]);
            bytes[..2].copy_from_slice(&bad.to_le_bytes());
            assert_eq!(codec.decode(&bytes, 1, 8), Err(CodecError::NotFinite { position: 0 }), "{codec}");
        }
    }
    let mut bytes = encode(Codec::Mixed6, &noise(64));
    bytes[3..6].copy_from_slice(&f32::INFINITY.to_le_bytes()[1..]);
    assert_eq!(Codec::Mixed6.decode(&bytes, 1, 64), Err(CodecError::NotFinite { position: 0 }));
}

/// That `codec` refuses its encoding of `row` after `change`.
#[track_caller]
fn refused(codec: Codec, row: &[f32], change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = encode(codec, row);
    change(&mut bytes);
    let error = codec.decode(&bytes, 1, row.len()).unwrap_err();
    assert!(matches!(error, CodecError::NotCanonical { position: 0, .. }), "{codec}: {error}");
}

#[test]
fn what_no_encoder_makes_is_refused() {
    // A code of -128; a step whose largest code is not 127; one that is negative; one of zeros with a code, and the other way.
    refused(Codec::Q8, &[-1.0, 0.5], |bytes| bytes[2] = 0x80);
    refused(Codec::Q8, &[-1.0, 0.5], |bytes| bytes[2] = 126);
    refused(Codec::Q8, &[1.0, 0.5], |bytes| bytes[1] |= 0x80);
    refused(Codec::Q8, &[1.0, 0.5], |bytes| bytes[..2].fill(0));
    refused(Codec::Q8, &[0.0, 0.0], |bytes| bytes[3] = 1);
    refused(Codec::Q8, &[1.0, 0.5], |bytes| bytes[..2].copy_from_slice(&[1, 0]));
    // A step whose 127-fold is infinite.
    refused(Codec::Q8, &[f32::MAX], |bytes| bytes[0] += 1);
    refused(Codec::Dyn8, &[1.0, 0.5], |bytes| bytes[2] = 126);
    refused(Codec::Dyn8, &[1.0, 0.0], |bytes| bytes[3] = 0x80);
    refused(Codec::Dyn8, &[0.0, 0.0], |bytes| bytes[3] = 1);
    let row = noise(130);
    for codec in MIXED {
        // The power of two: none, none that there is, another than the largest step's.
        refused(codec, &row, |bytes| bytes[0] = 0);
        refused(codec, &row, |bytes| bytes[0] = 255);
        refused(codec, &row[..32], |bytes| bytes[1] -= 16);
        // Massive channels: repeated, falling, beyond the row; a value that is as good as zero, a zero that has a sign or a place.
        refused(codec, &row, |bytes| bytes.copy_within(1..3, 6));
        refused(codec, &row, |bytes| bytes[1..11].rotate_left(5));
        refused(codec, &row, |bytes| bytes[6] = 130);
        refused(codec, &row, |bytes| bytes[3..6].copy_from_slice(&[0, 0, 1]));
        refused(codec, &row, |bytes| bytes[3..6].copy_from_slice(&[0, 0, 0x80]));
        refused(codec, &row, |bytes| bytes[1..6].copy_from_slice(&[5, 0, 0, 0, 0]));
        refused(codec, &[0.0; 130], |bytes| bytes[6] = 2);
        refused(codec, &[0.0; 130], |bytes| *bytes.last_mut().unwrap() = 1);
        // A step of zero with codes, and a step that is far more than its codes need.
        refused(codec, &row, |bytes| bytes[11] = 0);
        refused(codec, &row, |bytes| bytes[12..][..32].fill(0x11));
    }
    // Bits that belong to no code.
    refused(Codec::Mixed4, &[1.0; 3], |bytes| bytes[3] |= 0x10);
    refused(Codec::Mixed6, &[1.0; 3], |bytes| bytes[4] |= 0xc0);
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn the_bytes_are_pinned() {
    let mut hidden = noise(3 * 1701);
    (hidden[5], hidden[77], hidden[3000]) = (103_772.0, -500.0, 2e30);
    let hashes = [LOW[0], LOW[1], LOW[2], LOW[3], LOW[4], Codec::F16].map(|codec| {
        let mut bytes = Vec::new();
        codec.encode(&hidden, 1701, &mut bytes).unwrap();
        let values = codec.decode(&bytes, 3, 1701).unwrap();
        let values: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        (hash(&bytes), hash(&values))
    });
    let pinned = [
        (4307201026204431303, 9887598415159903590),
        (13782988343355804013, 5341589066679361282),
        (555871783383663952, 4886155925238030018),
        (9021831846164749506, 4048674294260171909),
        (906545620397147500, 10816015766741076572),
        (17194197935834240404, 9190031189648150698),
    ];
    assert_eq!(hashes, pinned);
}
