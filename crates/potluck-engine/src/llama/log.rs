//! llama.cpp's own words: to standard error, and the last complaints kept for our errors.

use std::{
    collections::VecDeque,
    ffi::{CStr, c_char, c_void},
    sync::{Mutex, Once, PoisonError},
};

use llama_cpp_sys_2 as sys;

/// Complaints of llama.cpp that are kept for the message of an error.
const COMPLAINTS_MAX: usize = 6;

/// Bytes of one complaint.
const COMPLAINT_BYTES_MAX: usize = 400;

/// The variable that makes the engine's process pass everything on that llama.cpp says.
pub(crate) const VERBOSE_VARIABLE: &str = "POTLUCK_ENGINE_LOG";

static COMPLAINTS: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Prepares llama.cpp, once a process; and the thread that calls it.
pub(crate) fn init() {
    crate::sandbox::without_amx();
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        let verbose = std::env::var_os(VERBOSE_VARIABLE).is_some();
        // SAFETY: the callback is a function of the whole program's life; its user data is a number, never followed.
        unsafe {
            sys::llama_log_set(Some(log), usize::from(verbose) as *mut c_void);
            sys::llama_backend_init();
        }
    });
}

/// The last complaints, oldest first, as one line; they are forgotten.
pub(crate) fn recent_errors() -> String {
    let mut complaints = COMPLAINTS.lock().unwrap_or_else(PoisonError::into_inner);
    let text = complaints.drain(..).collect::<Vec<_>>().join("; ");
    if text.is_empty() { "it gives no reason".into() } else { text }
}

/// Receives one piece of text from llama.cpp. It never prints prompts: those are not logged below its server.
unsafe extern "C" fn log(level: sys::ggml_log_level, text: *const c_char, verbose: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a string that ends in a zero byte and lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let complaint = level == sys::GGML_LOG_LEVEL_ERROR || level == sys::GGML_LOG_LEVEL_WARN;
    if !verbose.is_null() || level == sys::GGML_LOG_LEVEL_ERROR {
        eprint!("{text}");
    }
    if complaint && !text.trim().is_empty() {
        let mut complaints = COMPLAINTS.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.len() == COMPLAINTS_MAX {
            complaints.pop_front();
        }
        complaints.push_back(text.trim().chars().take(COMPLAINT_BYTES_MAX).collect());
    }
}
