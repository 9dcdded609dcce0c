//! How often a token's step allocates on its way, once buffers have their room: not at all where it is written, and for
//! its payload alone where it is read.
#![allow(unsafe_code, reason = "an allocator that counts")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use potluck_core::{Rows, Tree};
use potluck_wire::{Codec, FRAME_BYTES_MAX, Frame, FrameReader, StepFrame};

/// As wide as Gemma 3 4B.
const WIDTH: usize = 2_560;

/// Bytes of a frame that a packet brings.
const PACKET_BYTES: usize = 1_200;

/// Allocations of a read step: its payload, to which its bytes are copied from the packets.
const READ_ALLOCATIONS: usize = 1;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: everything is the system allocator's, which is given back exactly what it gave.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often this thread allocates in `work`.
fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

fn codecs() -> impl Iterator<Item = Codec> {
    Codec::ALL.into_iter().filter(|codec| *codec != Codec::Tokens)
}

fn hidden() -> Vec<f32> {
    (0..WIDTH).map(|at| (at * 37 % 101) as f32 / 7.0 - 7.0).collect()
}

/// What a stage does for each token: it encodes its hidden states, and the frame behind what is written already.
fn write(codec: Codec, hidden: &[f32], out: &mut Vec<u8>) {
    let mut payload = StepFrame::buffer();
    codec.encode(hidden, WIDTH, &mut payload).unwrap();
    let step = StepFrame {
        sequence: 1,
        epoch: 0,
        start: 7,
        count: 1,
        rows: Rows::Last,
        top: 128,
        codec,
        payload,
        pad: false,
        tree: Tree::chain(),
        fence: false,
        skipped: false,
    };
    Frame::Step(step).encode_last(out);
}

/// What the next one does: it reads the packets, and decodes the hidden states.
fn read(packets: &[u8], reader: &mut FrameReader, hidden: &mut Vec<f32>) {
    let mut steps = 0;
    for mut packet in packets.chunks(PACKET_BYTES) {
        while let Some(frame) = reader.read(&mut packet).unwrap() {
            let Frame::Step(step) = frame else { panic!("another frame") };
            step.codec.decode_over(&step.payload, step.count.into(), WIDTH, hidden).unwrap();
            steps += 1;
        }
    }
    assert_eq!(steps, 1);
}

#[test]
fn a_step_is_written_without_allocating() {
    let hidden = hidden();
    for codec in codecs() {
        let mut out = Vec::new();
        write(codec, &hidden, &mut out);
        let (place, first) = (out.as_ptr(), out.clone());
        out.clear();
        assert_eq!(allocations(|| write(codec, &hidden, &mut out)), 0, "{codec}");
        assert_eq!((out.as_ptr(), &out), (place, &first), "{codec}");
    }
}

#[test]
fn a_step_is_read_and_decoded_with_one_allocation() {
    let sent = hidden();
    for codec in codecs() {
        let mut packets = Vec::new();
        write(codec, &sent, &mut packets);
        let (mut reader, mut came) = (FrameReader::new(FRAME_BYTES_MAX), Vec::new());
        read(&packets, &mut reader, &mut came);
        let place = came.as_ptr();
        assert_eq!(allocations(|| read(&packets, &mut reader, &mut came)), READ_ALLOCATIONS, "{codec}");
        assert_eq!(came.as_ptr(), place, "{codec}");
        let mut payload = Vec::new();
        codec.encode(&sent, WIDTH, &mut payload).unwrap();
        assert_eq!(came, codec.decode(&payload, 1, WIDTH).unwrap(), "{codec}");
    }
}
