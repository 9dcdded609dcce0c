//! Buffers of payloads that were written, for the payloads of later steps of the same thread.

use std::cell::RefCell;

/// Buffers that are kept: as many as wait for credit now and then.
const BUFFERS_MAX: usize = 4;

/// Bytes of the largest one: a prompt's steps are long and few, and allocate.
const BUFFER_BYTES_MAX: usize = 64 << 10;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer.
pub(crate) fn take() -> Vec<u8> {
    // A thread that ends has none any more.
    SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten().unwrap_or_default()
}

/// Keeps a buffer that is not needed any more.
pub(crate) fn give(mut buffer: Vec<u8>) {
    if buffer.capacity() == 0 || buffer.capacity() > BUFFER_BYTES_MAX {
        return;
    }
    // It outlives the session whose hidden states these were.
    buffer.fill(0);
    buffer.clear();
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.len() < BUFFERS_MAX {
            spare.push(buffer);
        }
    });
}
