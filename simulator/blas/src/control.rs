//! Settings, counters and a leak count for tests that use the library. Not part of cuBLASLt.

use crate::state::lock;
use std::ffi::{CStr, c_char};

/// Settings as `key=value`, separated by spaces.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `version=110402`: result of cublasLtGetVersion.
    pub version: usize,
    /// `algorithms=0`: the heuristic finds no algorithm.
    pub algorithms: bool,
    /// `fail=N`: the Nth next call that creates, changes, finds or multiplies fails, once. 0: no call fails.
    pub fail: u64,
    /// `error=CODE`: status that the failing call returns.
    pub error: i32,
}

impl Settings {
    pub const DEFAULT: Settings =
        Settings { version: 130_000, algorithms: true, fail: 0, error: crate::ALLOC_FAILED.0 };

    fn of(text: &str) -> Option<Settings> {
        let mut out = Settings::DEFAULT;
        for word in text.split_ascii_whitespace() {
            let (key, value) = word.split_once('=')?;
            match key {
                "version" => out.version = value.parse().ok()?,
                "algorithms" => out.algorithms = value.parse::<u8>().ok()? > 0,
                "fail" => out.fail = value.parse().ok()?,
                "error" => out.error = value.parse().ok().filter(|code| *code > 0)?,
                _ => return None,
            }
        }
        Some(out)
    }
}

/// Applies the settings, resets all others to their defaults, and sets all counters to 0. Returns 0, or -1 without any
/// change if a setting is unknown.
///
/// # Safety
///
/// `settings` ends with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simulated_cublaslt_configure(settings: *const c_char) -> i32 {
    // SAFETY: the caller vouches for the string.
    let Some(settings) = Settings::of(&unsafe { CStr::from_ptr(settings) }.to_string_lossy()) else { return -1 };
    let mut state = lock();
    state.settings = settings;
    (state.calls, state.products, state.heuristics) = (0, 0, 0);
    0
}

/// Number of calls that can be made to fail, since the last simulated_cublaslt_configure.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cublaslt_calls() -> u64 {
    lock().calls
}

/// Number of products submitted to a stream.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cublaslt_matmuls() -> u64 {
    lock().products
}

/// Number of requests for an algorithm.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cublaslt_heuristics() -> u64 {
    lock().heuristics
}

/// Number of objects that were created but not destroyed.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cublaslt_alive() -> u64 {
    lock().things.len() as u64
}
