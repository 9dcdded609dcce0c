//! What holds of every codec.

use super::{f16::EXPONENT_MAX, *};
use half::f16;
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
fn every_half_is_decoded_as_by_itself() {
    let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|half| half.is_finite()).collect();
    for width in [1, 3, 64, 67, 1_000] {
        for row in halves.chunks(width) {
            let back = Codec::F16.decode(&plain_halves(row), 1, row.len()).unwrap();
            assert!(back.iter().zip(row).all(|(value, half)| value.to_bits() == half.to_f32().to_bits()));
        }
    }
}

#[test]
fn a_half_that_is_not_finite_is_found_wherever_it_is() {
    for bad in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
        for at in [0, 63, 64, 66] {
            let mut row = [f16::ONE; 67];
            let mut bytes = plain_halves(&row);
            row[at] = bad;
            bytes.extend(plain_halves(&row));
            assert_eq!(Codec::F16.decode(&bytes, 2, row.len()), Err(CodecError::NotFinite { position: 1 }), "{at}");
        }
    }
}

/// A row that no power of two divides.
fn plain_halves(row: &[f16]) -> Vec<u8> {
    std::iter::once(0).chain(row.iter().flat_map(|half| half.to_le_bytes())).collect()
}

#[test]
fn values_are_decoded_over_older_ones_only_where_the_length_is_right() {
    let mut bytes = Vec::new();
    Codec::F16.encode(&[1.0, -2.0, 3.0, 0.5], 2, &mut bytes).unwrap();
    for mut older in [vec![], vec![7.0; 3], vec![7.0; 9]] {
        Codec::F16.decode_over(&bytes, 2, 2, &mut older).unwrap();
        assert_eq!(older, [1.0, -2.0, 3.0, 0.5]);
    }
    let mut none = Vec::new();
    let error = Codec::F16.decode_over(&bytes, 500, 1_000, &mut none).unwrap_err();
    assert!(matches!(error, CodecError::Length { positions: 500, .. }));
    assert_eq!(none.capacity(), 0, "no room is made for what did not come");
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
    assert_eq!(Codec::ALL.map(Codec::number), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(CodecSet::all(), CodecSet(0xff));
    assert_eq!(Codec::from_number(8), Err(CodecError::Unknown(8)));
    let names = Codec::ALL.map(|codec| codec.to_string());
    assert_eq!(names, ["tokens", "f32", "f16", "q8", "dyn8", "mixed8", "mixed6", "mixed4"]);
    for (codec, name) in Codec::ALL.into_iter().zip(names).skip(1) {
        assert_eq!(name.parse(), Ok(codec));
    }
    assert!("tokens".parse::<Codec>().is_err());
}

#[test]
fn no_codec_takes_more_than_f32() {
    for width in (1..=700).chain([2560, 5120, HIDDEN_WIDTH_MAX]) {
        for codec in Codec::ALL.into_iter().skip(1) {
            assert!(codec.bytes(1, width) <= 4 * width, "{codec} {width}");
            assert_eq!(codec.bytes(7, width), 7 * codec.bytes(1, width));
        }
    }
    let kilobytes = [Codec::Q8, Codec::Dyn8, Codec::Mixed8, Codec::Mixed6, Codec::Mixed4].map(|c| c.bytes(1, 2048));
    assert_eq!(kilobytes, [2176, 2112, 2133, 1621, 1109]);
    assert_eq!(Codec::Mixed6.bytes(usize::MAX, usize::MAX), usize::MAX, "lengths from afar do not wrap");
}
