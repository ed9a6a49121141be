//! Runs the kernels' own sources on the CPU. Each CUDA thread is a fiber; see `runtime.cpp`.

use std::ffi::{CStr, CString, c_char, c_void};

/// The order in which the threads of a block run between two barriers. Results must not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// Thread 0 first.
    Ascending,
    /// Thread 0 last.
    Descending,
}

unsafe extern "C" {
    fn cleave_sim_launch(
        kernel: *const c_char,
        grid: *const u32,
        threads: *const u32,
        shared_bytes: u32,
        params: *const *const c_void,
        reversed: i32,
        error: *mut c_char,
        error_size: usize,
    ) -> i32;
    fn cleave_sim_params(kernel: *const c_char, sizes: *mut usize, max: i32) -> i32;
    fn cleave_sim_fault(what: *const c_char, address: *const c_void);
    fn cleave_sim_next(before: *const c_char) -> *const c_char;
}

/// Sizes of a kernel's parameters in bytes, in order. `None` if there is no such kernel.
pub fn params(kernel: &str) -> Option<Vec<usize>> {
    const MAX: usize = 64;
    let name = CString::new(kernel).ok()?;
    let mut sizes = [0; MAX];
    // SAFETY: the name ends with NUL, and there is room for MAX sizes.
    let n = unsafe { cleave_sim_params(name.as_ptr(), sizes.as_mut_ptr(), MAX as i32) };
    let n = usize::try_from(n).ok()?;
    assert!(n <= MAX, "{kernel} has {n} parameters");
    Some(sizes[..n].to_vec())
}

/// Ends the kernel that runs on this thread with the error `what` and the address, and does not return. Meant for
/// handlers of signals that a kernel's own instructions raise. Returns if no kernel runs on this thread.
///
/// # Safety
///
/// The signal was raised by the instruction that this thread was executing.
pub unsafe fn fault(what: &CStr, address: *const c_void) {
    // SAFETY: the text ends with NUL, and the kernel's fiber never runs again.
    unsafe { cleave_sim_fault(what.as_ptr(), address) };
}

/// Names of all kernels, in alphabetical order.
pub fn kernels() -> Vec<String> {
    let mut names = Vec::new();
    let mut at = std::ptr::null();
    loop {
        // SAFETY: the argument is null or a name from the registry, which never changes after startup.
        at = unsafe { cleave_sim_next(at) };
        if at.is_null() {
            return names;
        }
        // SAFETY: names in the registry end with NUL.
        names.push(unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned());
    }
}

/// Runs a kernel to its end on the calling thread. `params` holds the addresses of its arguments in order, as for
/// cuLaunchKernel. The error describes the problem and names the thread in which it occurred.
///
/// # Safety
///
/// The arguments have the kernel's types. The memory they point to is valid, as large as the kernel expects, and not
/// used by anybody else during the call.
pub unsafe fn launch(
    kernel: &str,
    grid: [u32; 3],
    threads: [u32; 3],
    shared_bytes: usize,
    params: &[*const c_void],
    lanes: Lanes,
) -> Result<(), String> {
    let name = CString::new(kernel).map_err(|_| "a kernel's name has no NUL".to_string())?;
    let mut error = [0u8; 512];
    let shared_bytes = u32::try_from(shared_bytes).unwrap_or(u32::MAX);
    // SAFETY: the caller vouches for the arguments; everything else lives until the call returns.
    let status = unsafe {
        cleave_sim_launch(
            name.as_ptr(),
            grid.as_ptr(),
            threads.as_ptr(),
            shared_bytes,
            params.as_ptr(),
            i32::from(lanes == Lanes::Descending),
            error.as_mut_ptr().cast(),
            error.len(),
        )
    };
    if status == 0 {
        return Ok(());
    }
    let end = error.iter().position(|byte| *byte == 0).unwrap_or(error.len());
    Err(String::from_utf8_lossy(&error[..end]).into_owned())
}
