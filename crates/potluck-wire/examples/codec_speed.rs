//! What each codec costs a value: `cargo run --release -p potluck-wire --example codec_speed`.
//!
//! For each width, 32 positions of noise with a few massive channels are encoded and decoded again and again; the fastest of the
//! rounds counts, since whatever else runs on the machine only ever adds to one.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::{hint::black_box, time::Instant};

use potluck_wire::{Codec, CodecError};

const POSITIONS: usize = 32;
const WIDTHS: [usize; 4] = [576, 2560, 4096, 5120];
const ROUNDS: usize = 200;

fn main() -> Result<(), CodecError> {
    println!("{:8} {:>6} {:>12} {:>16} {:>16}", "codec", "width", "bytes/value", "encode ns/value", "decode ns/value");
    for width in WIDTHS {
        let hidden = noise(width);
        for codec in Codec::ALL.into_iter().filter(|codec| *codec != Codec::Tokens) {
            let (mut encode, mut decode) = (f64::MAX, f64::MAX);
            let (mut bytes, mut back) = (Vec::new(), vec![0.0; hidden.len()]);
            for _ in 0..ROUNDS {
                bytes.clear();
                let begun = Instant::now();
                codec.encode(black_box(&hidden), width, &mut bytes)?;
                encode = encode.min(begun.elapsed().as_secs_f64());
                let begun = Instant::now();
                codec.decode_into(black_box(&bytes), width, &mut back)?;
                decode = decode.min(begun.elapsed().as_secs_f64());
                black_box(&back);
            }
            let values = hidden.len() as f64;
            let [encode, decode] = [encode, decode].map(|seconds| seconds * 1e9 / values);
            let size = bytes.len() as f64 / values;
            println!("{:8} {width:>6} {size:>12.3} {encode:>16.2} {decode:>16.2}", codec.to_string());
        }
    }
    Ok(())
}

/// Sums of uniform numbers, near enough to a normal distribution; three channels are massive.
fn noise(width: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut value = |at: usize| {
        let sum: f32 = (0..4).map(|_| uniform()).sum();
        if [3, 17, 201].contains(&(at % width)) { 300.0 * sum } else { sum }
    };
    (0..POSITIONS * width).map(&mut value).collect()
}
