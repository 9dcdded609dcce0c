//! Frames as bytes: pinned, round trips, and whatever else may arrive.
//!
//! `tests/golden/KIND.hex` holds one frame of each kind, as it is on the wire, lengths included. A change there is a
//! change of the protocol: it takes a new version, not a new file.
#![allow(clippy::unwrap_used, reason = "tests")]

mod any;

use std::{collections::BTreeSet, path::PathBuf};

use any::{any_frame, examples};
use potluck_core::{Logits, Rows, Tree};
use potluck_wire::{
    AnswerFrame, CONTROL_BYTES_MAX, Codec, FRAME_BYTES_MAX, Frame, FrameReader, PART_BYTES_MAX, PART_FRAME_BYTES_MAX,
    StepFrame, WireError,
};
use proptest::prelude::*;

fn encode(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Frame, WireError> {
    let mut reader = FrameReader::new(FRAME_BYTES_MAX);
    reader.push(bytes);
    let frame = reader.next()?;
    reader.finish()?;
    Ok(frame.unwrap())
}

fn golden(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{kind}.hex"))
}

#[test]
fn the_bytes_of_each_frame_are_pinned() {
    for (name, frame) in examples() {
        let hex: String = encode(&frame).iter().map(|byte| format!("{byte:02x}")).collect();
        let lines: Vec<_> = hex.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let text = lines.join("\n") + "\n";
        if std::env::var_os("POTLUCK_WRITE_GOLDEN").is_some() {
            std::fs::write(golden(name), &text).unwrap();
        }
        let pinned = std::fs::read_to_string(golden(name)).unwrap();
        assert_eq!(text, pinned, "{name}: the protocol has changed");
        assert_eq!(decode(&encode(&frame)).unwrap(), frame, "{name}");
    }
}

#[test]
fn every_kind_has_an_example() {
    let kinds: BTreeSet<_> = examples().iter().map(|(_, frame)| frame.kind()).collect();
    assert_eq!(kinds.len(), 49, "{kinds:?}");
    let unknown: Vec<_> = (0..=u8::MAX).filter(|kind| Frame::decode(&[*kind]) == Err(WireError::Kind(*kind))).collect();
    assert_eq!(unknown.len(), 256 - kinds.len(), "a kind without an example decodes");
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_the_bytes_come() {
    let mut reader = FrameReader::new(1_000);
    reader.push(&997u32.to_le_bytes());
    assert_eq!(reader.next(), Err(WireError::TooLong { len: 1_001, max: 1_000 }));
    reader.push(&[0; 100]);
    assert_eq!(reader.next(), Err(WireError::TooLong { len: 1_001, max: 1_000 }), "and it stays refused");
    let mut reader = FrameReader::new(FRAME_BYTES_MAX);
    reader.push(&u32::MAX.to_le_bytes());
    assert!(matches!(reader.next(), Err(WireError::TooLong { .. })));
    let mut reader = FrameReader::new(1_000);
    reader.push(&996u32.to_le_bytes());
    assert_eq!(reader.next(), Ok(None), "the longest that fits is waited for");
}

#[test]
fn a_stream_that_ends_within_a_frame_is_truncated() {
    let bytes = encode(&Frame::Credit { frames: 300 });
    for len in 1..bytes.len() {
        let mut reader = FrameReader::new(CONTROL_BYTES_MAX);
        reader.push(&bytes[..len]);
        assert_eq!(reader.next(), Ok(None));
        assert!(matches!(reader.finish(), Err(WireError::Truncated { .. })), "{len} bytes");
    }
}

#[test]
fn an_empty_frame_and_an_empty_body_where_one_belongs_are_malformed() {
    assert!(matches!(Frame::decode(&[]), Err(WireError::Malformed { .. })));
    for (name, frame) in examples() {
        let bytes = encode(&frame);
        let has_body = bytes.len() > 5;
        // A part is whatever bytes there are.
        let bare = matches!(frame, Frame::Part(_));
        assert_eq!(Frame::decode(&bytes[4..5]).is_err(), has_body && !bare, "{name}");
        let mut longer = bytes[4..].to_vec();
        longer.push(0);
        // A step's payload is its codec's business, which knows its length only with the model's width.
        assert_eq!(
            Frame::decode(&longer).is_ok(),
            bare || matches!(&frame, Frame::Step(step) | Frame::Replay { step, checked: false, .. } if !step.pad && !step.skipped),
            "{name} with a byte too many"
        );
    }
}

#[test]
fn no_bit_of_a_checked_replay_flips_unnoticed() {
    for (name, frame) in examples() {
        let Frame::Step(step) = frame else { continue };
        let bytes = encode(&Frame::Replay { due: 6, step, checked: true });
        for bit in 0..8 * (bytes.len() - 4) {
            let mut flipped = bytes[4..].to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&flipped).is_err(), "{name}: bit {bit}");
            let (lead, payload) = bytes.split_at(bit / 8 + 4);
            let mut reader = FrameReader::new(CONTROL_BYTES_MAX);
            reader.push(lead);
            assert_eq!(reader.next(), Ok(None));
            reader.push(&[&[payload[0] ^ 1 << (bit % 8)], &payload[1..]].concat());
            assert!(reader.next().is_err(), "{name}: bit {bit}, where it is cut in two there");
        }
    }
}

#[test]
fn a_part_has_its_bound() {
    let part = |len| Frame::decode(&encode(&Frame::Part(vec![0; len]))[4..]);
    assert!(matches!(part(PART_BYTES_MAX), Ok(Frame::Part(_))));
    assert!(matches!(part(PART_BYTES_MAX + 1), Err(WireError::Bound { what: "part", .. })));
    assert!(encode(&Frame::Part(vec![0; PART_BYTES_MAX])).len() <= PART_FRAME_BYTES_MAX);
}

proptest! {
    #[test]
    fn the_length_of_a_step_or_answer_is_known_before_it_is_encoded(frame in any_frame()) {
        let known = match &frame {
            Frame::Step(step) => step.bytes(),
            Frame::Answer(answer) => answer.bytes(),
            other => encode(other).len(),
        };
        prop_assert_eq!(known, encode(&frame).len());
    }

    #[test]
    fn round_trips(frame in any_frame()) {
        prop_assert_eq!(decode(&encode(&frame)).unwrap(), frame);
    }

    #[test]
    fn chunks_do_not_matter(
        frames in proptest::collection::vec(any_frame(), 1..6),
        cuts in proptest::collection::vec(1usize..400, 1..20),
    ) {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        let mut reader = FrameReader::new(FRAME_BYTES_MAX);
        let (mut straight, mut read) = (FrameReader::new(FRAME_BYTES_MAX), Vec::new());
        let (mut rest, mut got) = (bytes.as_slice(), Vec::new());
        for cut in cuts.iter().cycle() {
            let (chunk, tail) = rest.split_at((*cut).min(rest.len()));
            rest = tail;
            reader.push(chunk);
            while let Some(frame) = reader.next().unwrap() {
                got.push(frame);
            }
            let mut unread = chunk;
            while let Some(frame) = straight.read(&mut unread).unwrap() {
                read.push(frame);
            }
            prop_assert!(unread.is_empty());
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(&got, &frames);
        prop_assert_eq!(&read, &frames);
        prop_assert_eq!((reader.finish(), straight.finish()), (Ok(()), Ok(())));
    }

    /// What decodes at all has one encoding only: no twin of a frame gets past a signature or a cache.
    #[test]
    fn hostile_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(frame) = Frame::decode(&bytes) {
            prop_assert_eq!(&encode(&frame)[4..], &bytes[..]);
        }
    }

    #[test]
    fn changed_bytes(
        frame in any_frame(),
        at in any::<prop::sample::Index>(),
        to: u8,
        keep in any::<prop::sample::Index>(),
        cut in 1usize..40,
    ) {
        let mut bytes = encode(&frame);
        let at = at.index(bytes.len());
        bytes[at] = to;
        let mut reader = FrameReader::new(CONTROL_BYTES_MAX);
        reader.push(&bytes);
        let whole = reader.next().map(|frame| frame.map(|frame| encode(&frame)));
        if let Ok(Some(again)) = &whole {
            prop_assert_eq!(&again[..], &bytes[..again.len()]);
        }
        let mut reader = FrameReader::new(CONTROL_BYTES_MAX);
        let mut parts = Ok(None);
        for mut part in bytes.chunks(cut) {
            parts = reader.read(&mut part).map(|frame| frame.map(|frame| encode(&frame)));
            if parts != Ok(None) {
                break;
            }
        }
        prop_assert_eq!(parts, whole, "cut every {} bytes", cut);
        let _ = Frame::decode(&bytes[..keep.index(bytes.len())]);
    }
}

#[test]
fn padded_frames_have_few_lengths_and_one_encoding_each() {
    let step = |count: u16, width: usize| StepFrame {
        sequence: 1,
        epoch: 0,
        start: 0,
        count,
        rows: Rows::Last,
        top: 128,
        codec: Codec::F16,
        payload: vec![7; Codec::F16.bytes(count.into(), width)],
        pad: true,
        tree: Tree::chain(),
        fence: false,
        skipped: false,
    };
    let lengths: BTreeSet<usize> = (1..=512).map(|count| encode(&Frame::Step(step(count, 576))).len()).collect();
    assert_eq!(lengths.len(), 10, "1, 2, 4, ... 512 positions: {lengths:?}");
    for count in [1, 3, 512] {
        let frame = Frame::Step(step(count, 576));
        assert_eq!(encode(&frame).len(), step(count, 576).bytes());
        assert_eq!(decode(&encode(&frame)).unwrap(), frame);
    }
    assert_eq!(step(1, 576).bytes(), StepFrame { pad: false, ..step(1, 576) }.bytes(), "a single token costs nothing");
    let answer = |largest: usize| {
        let largest = (0..largest as u32).map(|token| (token * 300, 1.0)).collect();
        let rows = vec![Logits::Top { largest, log_sum_exp: 0.0 }];
        AnswerFrame { sequence: 1, epoch: 0, start: 0, count: 1, rows, pad: true, skipped: false }
    };
    let lengths: BTreeSet<usize> = (0..=128).map(|n| encode(&Frame::Answer(answer(n))).len()).collect();
    assert_eq!(lengths, BTreeSet::from([1_024]), "the logits that are usually asked for, and none");
    assert_eq!(encode(&Frame::Answer(answer(128))).len(), answer(128).bytes());
    let parts: BTreeSet<usize> = (0..3_000).map(|n| encode(&Frame::PaddedPart(vec![1; n])).len()).collect();
    assert_eq!(parts, BTreeSet::from([1_024, 2_048, 4_096]));
    // Another byte in the padding, or more or less of it, is another frame, and there is none.
    for frame in [Frame::Step(step(3, 576)), Frame::Answer(answer(9)), Frame::PaddedPart(vec![1; 9])] {
        let bytes = encode(&frame);
        let mut dirty = bytes.clone();
        *dirty.last_mut().unwrap() = 1;
        assert!(matches!(decode(&dirty), Err(WireError::Malformed { .. })), "{}", frame.kind());
        for len in [bytes.len() - 1, bytes.len() + 1, 2 * bytes.len() - 5] {
            let mut other = bytes.clone();
            other.resize(len, 0);
            other[..4].copy_from_slice(&(len as u32 - 4).to_le_bytes());
            assert!(matches!(decode(&other), Err(WireError::Malformed { .. })), "{} of {len} bytes", frame.kind());
        }
    }
}
