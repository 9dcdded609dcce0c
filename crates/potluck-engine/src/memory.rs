//! What this process leaves behind in memory: nothing that it has given back, and no copy of itself in a file.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, Ordering},
};

/// True where memory that is given back keeps its content.
static KEEP: AtomicBool = AtomicBool::new(false);

/// Set to anything, processes leave core dumps and debuggers may attach, as the system allows.
pub const DEBUGGABLE: &str = "POTLUCK_DEBUGGABLE";

/// The system's allocator, which overwrites with zeros what is given back to it: prompts, hidden states and keys are gone
/// once whatever held them is, whoever's buffer it was. What C and C++ allocate is not among it.
#[derive(Debug, Clone, Copy, Default)]
pub struct WipingAllocator;

/// Whether memory that is given back keeps its content from now on: `--wipe-within never`.
pub fn keep_freed(keep: bool) {
    KEEP.store(keep, Ordering::Relaxed);
}

// SAFETY: everything is the system allocator's, which is given back exactly what it gave.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if !KEEP.load(Ordering::Relaxed) {
            // SAFETY: so many bytes are the caller's until they are given back.
            let bytes = unsafe {
                ptr.write_bytes(0, layout.size());
                std::slice::from_raw_parts(ptr, layout.size())
            };
            // Nobody reads them again: without this the compiler may leave the writing out.
            zeroize::optimization_barrier(bytes);
        }
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if KEEP.load(Ordering::Relaxed) {
            // SAFETY: as the caller promises.
            return unsafe { System.realloc(ptr, layout, new_size) };
        }
        // SAFETY: the caller promises that the size is not zero and does not overflow when it is aligned.
        let new = unsafe { System.alloc(Layout::from_size_align_unchecked(new_size, layout.align())) };
        if !new.is_null() {
            // SAFETY: both hold as many bytes, and are not the same; then the old one is given back.
            unsafe {
                std::ptr::copy_nonoverlapping(ptr, new, layout.size().min(new_size));
                self.dealloc(ptr, layout);
            }
        }
        new
    }
}

/// From now on a crash of this process writes no core dump, and nobody but root reads its memory or attaches a debugger
/// (Linux); unless [`DEBUGGABLE`] is set. To be called first, and again in each process: it does not outlive `exec`.
pub fn forbid_dumps() {
    if std::env::var_os(DEBUGGABLE).is_some() {
        return;
    }
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: lowers a limit of this process.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    #[cfg(target_os = "linux")]
    // SAFETY: sets a flag of this process.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0)
    };
}
