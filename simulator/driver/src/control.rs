//! Settings, counters and a list of leaks for tests that use the driver. Not part of CUDA.

use crate::fault;
use crate::state::lock;
use std::ffi::{CStr, c_char};

/// Changes settings (see `settings.rs`) and restarts all counters. `reset` also forgets cuInit, faults and the objects
/// that were alive when their contexts ended. Returns 0, or -1 without any change if a setting is unknown.
///
/// # Safety
///
/// `settings` ends with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simulated_cuda_configure(settings: *const c_char) -> i32 {
    // SAFETY: the caller vouches for the string.
    let text = unsafe { CStr::from_ptr(settings) }.to_string_lossy();
    let mut state = lock();
    let Some(settings) = state.settings.with(&text) else { return -1 };
    state.settings = settings;
    (state.calls, state.recorded, state.replayed, state.staged, state.downloaded) = (0, 0, 0, 0, 0);
    if text.split([' ', ',']).any(|word| word == "reset") {
        state.left.clear();
        state.faults.clear();
        state.initialised = false;
    }
    0
}

/// Number of fallible calls since the last simulated_cuda_configure.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cuda_calls() -> u64 {
    lock().calls
}

/// Number of captures begun since the last simulated_cuda_configure.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cuda_captures() -> u64 {
    lock().recorded
}

/// Number of graphs launched.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cuda_replays() -> u64 {
    lock().replayed
}

/// Number of copies between devices that went through the host for lack of peer access.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cuda_staged() -> u64 {
    lock().staged
}

/// Number of bytes copied from device memory to the host.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cuda_downloaded() -> u64 {
    lock().downloaded
}

/// Writes the stream priority of the last kernel, and the number of multiprocessors that it could use.
///
/// # Safety
///
/// Both pointers are valid for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simulated_cuda_last_kernel(priority: *mut i32, multiprocessors: *mut u32) {
    let last = lock().last_kernel;
    // SAFETY: the caller vouches for both pointers.
    unsafe {
        priority.write(last.0);
        multiprocessors.write(last.1);
    }
}

/// Lists the objects that are alive and those that were alive when their context ended, one per line. Writes at most
/// `size` bytes, including the NUL. Returns the number of objects.
///
/// # Safety
///
/// `out` has room for `size` bytes, or is null and `size` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simulated_cuda_leaks(out: *mut c_char, size: usize) -> i32 {
    let state = lock();
    let mut lines: Vec<String> = state.alive().into_iter().map(|(_, what)| what).collect();
    lines.extend(state.left.iter().cloned());
    let text = lines.join("\n");
    if size > 0 && !out.is_null() {
        let n = text.len().min(size - 1);
        // SAFETY: n + 1 <= size.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), out.cast(), n);
            out.add(n).write(0);
        }
    }
    fault::log(&format!("{} things alive", lines.len()));
    lines.len() as i32
}
