//! The threads that compute: ggml's own pools.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

/// A standing pool of ggml's threads; its threads end when it is dropped.
pub(crate) struct ThreadPool(NonNull<sys::ggml_threadpool>);

impl ThreadPool {
    /// `poll`, 0 to 100: how long a thread spins for work before it sleeps. None where the system gives no threads.
    pub(crate) fn new(threads: u16, poll: u8) -> Option<Self> {
        // SAFETY: a plain structure returned by value.
        let mut params = unsafe { sys::ggml_threadpool_params_default(threads.into()) };
        params.poll = poll.into();
        // SAFETY: the parameters live through the call.
        NonNull::new(unsafe { sys::ggml_threadpool_new(&raw mut params) }).map(Self)
    }

    pub(crate) fn as_ptr(&self) -> sys::ggml_threadpool_t {
        self.0.as_ptr()
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // SAFETY: made by us; the context that used it is gone (it owns this and drops it last).
        unsafe { sys::ggml_threadpool_free(self.0.as_ptr()) };
    }
}
