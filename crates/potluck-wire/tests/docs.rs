//! `docs/wire.md` says what the code does: kinds, codes, and the step that it draws.
#![allow(clippy::unwrap_used, reason = "tests")]

use potluck_wire::{
    CONTROL_BYTES_MAX, FailureCode, Frame, HEADER_BYTES, HOP_FRAMES_MAX, MESSAGE_BYTES_MAX, OFFERS_MAX, TOPIC_BYTES_MAX,
};

#[path = "any/mod.rs"]
#[expect(dead_code, reason = "any frame at all is for the other tests")]
mod any;

fn doc() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/wire.md")).unwrap()
}

fn encode(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

#[test]
fn every_kind_stands_in_the_table() {
    for (_, frame) in any::examples() {
        let row = format!("| {} | `{}` |", encode(&frame)[4], frame.kind());
        assert!(doc().contains(&row), "{row}");
    }
}

#[test]
fn every_code_stands_in_the_table() {
    for code in FailureCode::ALL {
        let row = format!("| {} | {code} |", code.number());
        assert!(doc().contains(&row), "{row}");
    }
}

#[test]
fn the_step_that_is_drawn_is_the_one_that_is_pinned() {
    let drawn = doc().lines().find(|line| line.starts_with("1c000000 08")).unwrap().replace(' ', "");
    let (_, step) = any::examples().into_iter().find(|(name, _)| *name == "step").unwrap();
    let hex: String = encode(&step).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(drawn, hex);
}

#[test]
fn the_bounds_are_those_of_the_code() {
    assert_eq!((HEADER_BYTES, CONTROL_BYTES_MAX, HOP_FRAMES_MAX, OFFERS_MAX), (24, 64 << 10, 16, 12));
    assert_eq!((TOPIC_BYTES_MAX, MESSAGE_BYTES_MAX), (128, 1 << 20));
    let doc = doc();
    for text in ["1 to 128 bytes of ASCII", "1,048,576 at most", "| 128 bytes; 1 MiB; 1 MiB |"] {
        assert!(doc.contains(text), "{text}");
    }
    for text in ["header of 24 bytes", "| 64 KiB |", "may have 16 steps", "Pages hold 12"] {
        assert!(doc.contains(text), "{text}");
    }
}
