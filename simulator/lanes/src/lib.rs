//! Runs the kernels' own sources on the CPU: each CUDA thread is a fiber, see `runtime.cpp`.

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

/// The sizes of a kernel's parameters in bytes, in order. `None`: there is no such kernel.
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

/// For a handler of signals that a kernel's own instructions raise: ends the kernel that runs on this thread with these
/// words and the address, and does not return. Returns if no kernel runs here.
///
/// # Safety
///
/// The signal came from the instruction at which this thread is.
pub unsafe fn fault(what: &CStr, address: *const c_void) {
    // SAFETY: ends with NUL; the kernel's fiber is left for good.
    unsafe { cleave_sim_fault(what.as_ptr(), address) };
}

/// The names of all kernels, in order.
pub fn kernels() -> Vec<String> {
    let mut names = Vec::new();
    let mut at = std::ptr::null();
    loop {
        // SAFETY: null, or a name that the registry gave; it never changes after the program's start.
        at = unsafe { cleave_sim_next(at) };
        if at.is_null() {
            return names;
        }
        // SAFETY: the registry's names end with NUL.
        names.push(unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned());
    }
}

/// Runs a kernel to its end on the calling thread. `params` are the addresses of its arguments, in order, as for
/// cuLaunchKernel. The error says what went wrong, and in which thread.
///
/// # Safety
///
/// The arguments have the kernel's types, and what they point at is there, as large as the kernel takes it to be, and used
/// by nobody else meanwhile.
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
    // SAFETY: the caller vouches for the arguments; everything else is alive during the call.
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
