//! Settings, counters and a list of leaks, for tests that use the driver. Not part of CUDA.

use crate::fault;
use crate::state::lock;
use std::ffi::{CStr, c_char};

/// Changes settings (see `settings.rs`) and counts calls from 0 again. `reset` also forgets what contexts took with them,
/// and cuInit. Returns 0, or -1 for unknown settings, of which none is taken then.
///
/// # Safety
///
/// `settings` ends with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simulated_cuda_configure(settings: *const c_char) -> i32 {
    // SAFETY: the caller vouches for it.
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

/// The number of fallible calls since the last simulated_cuda_configure.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cuda_calls() -> u64 {
    lock().calls
}

/// The number of captures that began since then.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cuda_captures() -> u64 {
    lock().recorded
}

/// The number of graphs that were launched.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cuda_replays() -> u64 {
    lock().replayed
}

/// The number of copies between devices that went through the host: nobody had asked for a direct way.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cuda_staged() -> u64 {
    lock().staged
}

/// The number of bytes copied from device memory to the host.
#[unsafe(no_mangle)]
pub extern "C" fn simulated_cuda_downloaded() -> u64 {
    lock().downloaded
}

/// Where the last kernel ran: the priority of its stream, and on how many multiprocessors.
///
/// # Safety
///
/// There is room for both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simulated_cuda_last_kernel(priority: *mut i32, multiprocessors: *mut u32) {
    let last = lock().last_kernel;
    // SAFETY: the caller vouches for it.
    unsafe {
        priority.write(last.0);
        multiprocessors.write(last.1);
    }
}

/// Writes what is alive, or ended only with its context, one a line; `size` bytes with the NUL at most. Returns how many
/// there are.
///
/// # Safety
///
/// `out` has room for `size` bytes, or is null with 0.
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
