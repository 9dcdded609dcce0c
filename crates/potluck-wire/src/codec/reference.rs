//! The codecs once more, plainly: one value at a time, as `docs/wire.md` says it. The bytes must be the same.

use half::bf16;

const TINY: f32 = 1.0 / (1u64 << 32) as f32 / (1u64 << 32) as f32;

/// A row's bytes.
pub(super) fn encode(codec: super::Codec, row: &[f32]) -> Vec<u8> {
    match codec {
        super::Codec::F16 => halves(row),
        super::Codec::Q8 => row.chunks(32).flat_map(q8).collect(),
        super::Codec::Dyn8 => row.chunks(64).flat_map(dyn8).collect(),
        super::Codec::Mixed8 => mixed(row, 8),
        super::Codec::Mixed6 => mixed(row, 6),
        super::Codec::Mixed4 => mixed(row, 4),
        _ => unreachable!("not one of these"),
    }
}

/// A row in half precision, with the fewest halvings that leave it finite.
fn halves(row: &[f32]) -> Vec<u8> {
    let max = f64::from(absmax(row));
    // From there on the nearest is infinite.
    let halvings = (0..).find(|&halvings| max / 2f64.powi(halvings) < 65_520.0).unwrap_or_default();
    let halved = row.iter().map(|value| half(value / 2f32.powi(halvings)).to_le_bytes());
    std::iter::once(halvings as u8).chain(halved.flatten()).collect()
}

/// The nearest, ties to even.
fn half(value: f32) -> u16 {
    let magnitude = f64::from(value.abs());
    let exponent = (magnitude.log2().floor() as i32).max(-14);
    // Of the eleven bits of a normal number the first is the exponent's next step.
    let bits = (magnitude / 2f64.powi(exponent - 10)).round_ties_even() as u16;
    (u16::from(value.is_sign_negative()) << 15) | (bits + (1024 * (exponent + 14)) as u16)
}

fn absmax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, value| value.abs().max(max))
}

fn q8(block: &[f32]) -> Vec<u8> {
    let exact = absmax(block) / 127.0;
    let step = if exact < TINY { bf16::ZERO } else { bf16::from_f32(exact) };
    let inverse = if exact < TINY { 0.0 } else { 1.0 / step.to_f32() };
    let codes = block.iter().map(|value| (value * inverse).round_ties_even() as i8 as u8);
    step.to_le_bytes().into_iter().chain(codes).collect()
}

/// The map of the paper in the order of its magnitudes.
fn magnitudes() -> Vec<f32> {
    let mut all = vec![0.0];
    for decade in 0..7 {
        let parts = 1 << decade;
        let unit = [1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1.0][decade];
        for part in 0..parts {
            let middle = 0.1 + 0.9 * f64::from(2 * part + 1) / f64::from(2 * parts);
            all.push((middle / unit / (1.0 - 0.9 / 128.0)) as f32);
        }
    }
    all
}

fn dyn8(block: &[f32]) -> Vec<u8> {
    let max = absmax(block);
    let scale = if max < TINY { bf16::ZERO } else { bf16::from_f32(max).min(bf16::MAX) };
    let inverse = if max < TINY { 0.0 } else { 1.0 / scale.to_f32() };
    let map = magnitudes();
    let code = |value: &f32| {
        let value = value * inverse;
        let limit = |pair: &[f32]| ((f64::from(pair[0]) + f64::from(pair[1])) / 2.0) as f32;
        let code = map.windows(2).filter(|pair| value.abs() > limit(pair)).count() as u8;
        if value < 0.0 && code > 0 { code | 0x80 } else { code }
    };
    scale.to_le_bytes().into_iter().chain(block.iter().map(code)).collect()
}

/// The massive channels' bytes, and what is sent of their values.
fn massive(row: &[f32]) -> (Vec<u8>, Vec<(usize, f32)>) {
    let count = (row.len() / 64).min(4);
    let mut order: Vec<usize> = (0..row.len()).filter(|at| row[*at].abs() >= TINY).collect();
    order.sort_by(|a, b| row[*b].abs().total_cmp(&row[*a].abs()).then(a.cmp(b)));
    order.truncate(count);
    let mut values: Vec<_> = order.into_iter().map(|at| (at, f32::from_bits(row[at].to_bits() >> 8 << 8))).collect();
    let mut free = 0..;
    while values.len() < count {
        let next = free.next().unwrap();
        if values.iter().all(|(channel, _)| *channel != next) {
            values.push((next, 0.0));
        }
    }
    values.sort_by_key(|(channel, _)| *channel);
    let bytes = |(channel, value): &(usize, f32)| {
        (*channel as u16).to_le_bytes().into_iter().chain(value.to_le_bytes().into_iter().skip(1)).collect::<Vec<_>>()
    };
    (values.iter().flat_map(bytes).collect(), values)
}

/// Random signs, and a butterfly at one stride after the other: those within a tile of 16 in the order 4, 8, 1, 2, and its rows and
/// columns exchanged; without tiles in rising order.
fn rotate(piece: &mut [f32], scale: f32) {
    let mut state = u64::from_be_bytes(*b"\0potluck");
    for value in piece.iter_mut() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *value = if (z ^ (z >> 31)) >> 63 == 1 { -*value } else { *value } * scale;
    }
    let butterflies = |piece: &mut [f32], stride: usize| {
        for at in (0..piece.len()).filter(|at| at & stride == 0) {
            (piece[at], piece[at + stride]) = (piece[at] + piece[at + stride], piece[at] - piece[at + stride]);
        }
    };
    if piece.len() < 16 {
        (0..piece.len().ilog2()).for_each(|log| butterflies(piece, 1 << log));
        return;
    }
    [4, 8, 1, 2].into_iter().for_each(|stride| butterflies(piece, stride));
    let before = piece.to_vec();
    (0..piece.len()).for_each(|at| piece[at / 16 * 16 + at % 4 * 4 + at / 4 % 4] = before[at]);
    (4..piece.len().ilog2()).for_each(|log| butterflies(piece, 1 << log));
}

fn mixed(row: &[f32], bits: u32) -> Vec<u8> {
    let (massive, values) = massive(row);
    let mut rest = row.to_vec();
    values.iter().for_each(|(channel, value)| rest[*channel] -= value);
    let max = absmax(&rest);
    if max < TINY {
        let blocks = rest.chunks(32).flat_map(|block| vec![0; 1 + packed(&vec![0; block.len()], bits).len()]);
        return [0].into_iter().chain(massive).chain(blocks).collect();
    }
    let brought = 10 - ((max.to_bits() >> 23) as i32 - 127);
    let mut begin = 0;
    while begin < rest.len() {
        let log = (rest.len() - begin).min(1024).ilog2() as i32;
        rotate(&mut rest[begin..][..1 << log], 2f32.powi(brought - (log + 1) / 2));
        begin += 1 << log;
    }
    let half = 2f32.powi(bits as i32 - 1);
    // The sixteenth of an octave at or above the step that is needed.
    let sixteenths = |max: f32| {
        let needed = max * (1.0 / half * (1.0 + 1.0 / 524_288.0));
        let near = (f64::from(needed.max(1e-30)).log2() * 16.0).floor() as i32;
        (near - 2..=near + 2).find(|l| step(*l) >= f64::from(needed)).unwrap()
    };
    let octave = sixteenths(absmax(&rest)).div_euclid(16);
    let mut bytes = vec![(octave - brought + 96) as u8];
    bytes.extend(massive);
    for block in rest.chunks(32) {
        let max = absmax(block);
        let l = if max == 0.0 { 0 } else { sixteenths(max).max(16 * octave - 239) };
        let inverse = step(-l) as f32;
        let code = |value: &f32| if max == 0.0 { 0 } else { (value * inverse - 0.5).round_ties_even() as i8 };
        bytes.push(if max == 0.0 { 0 } else { (l - 16 * octave + 240) as u8 });
        bytes.extend(packed(&block.iter().map(code).collect::<Vec<_>>(), bits));
    }
    bytes
}

/// `2^(l/16)`, its root rounded to f32.
fn step(l: i32) -> f64 {
    // The table of inverses rounds 2^(-j/16), which lies below 1: the same root, an octave lower.
    let root = f64::from((f64::from(l.rem_euclid(16)) / 16.0).exp2() as f32);
    root * f64::from(l.div_euclid(16)).exp2()
}

fn packed(codes: &[i8], bits: u32) -> Vec<u8> {
    let low = |at: usize| codes.get(at).map_or(0, |code| *code as u8 & 15);
    let high = |at: usize| codes.get(at).map_or(0, |code| *code as u8 >> 4 & 3);
    let (half, quarter) = (codes.len().div_ceil(2), codes.len().div_ceil(4));
    let lows = (0..half).map(|at| low(at) | low(half + at) << 4);
    let upper = |at: usize| (0..4).map(|part| high(part * quarter + at) << (2 * part)).sum();
    match bits {
        8 => codes.iter().map(|code| *code as u8).collect(),
        6 => lows.chain((0..quarter).map(upper)).collect(),
        _ => lows.collect(),
    }
}
