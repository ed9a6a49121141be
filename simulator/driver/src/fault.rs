//! Descriptions of errors, for cuGetErrorString and for the file that SIMULATED_CUDA_LOG names.

use crate::state::State;
use crate::{Error, describe};
use simulated_kernels as kernels;
use std::ffi::{CStr, CString, c_void};
use std::io::Write;
use std::sync::{Once, OnceLock};

/// A kernel's access to memory that is not there: the memory of a device has gaps behind each allocation.
const ILLEGAL: &CStr = c"accesses the illegal address";

pub fn is_illegal(text: &str) -> bool {
    ILLEGAL.to_str().is_ok_and(|words| text.contains(words))
}

/// The handlers that were there before.
static OLD: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

/// From now on a kernel's illegal accesses, and its divisions by zero, end the kernel and not the process.
pub fn catch() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        // SAFETY: the handler does what its kind is asked to.
        let old = [libc::SIGSEGV, libc::SIGFPE].map(|signal| unsafe {
            let mut new: libc::sigaction = std::mem::zeroed();
            new.sa_sigaction = on_signal as *const () as usize;
            // The handler does not return: the signal has to stay open.
            new.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
            let mut old = std::mem::zeroed();
            libc::sigaction(signal, &new, &mut old);
            old
        });
        let _ = OLD.set(old);
    });
}

extern "C" fn on_signal(signal: i32, info: *const libc::siginfo_t, _: *mut c_void) {
    // SAFETY: raised by the instruction at which this thread is, or nothing runs here and this returns.
    unsafe {
        match signal {
            libc::SIGSEGV => kernels::fault(ILLEGAL, (*info).si_addr()),
            _ => kernels::fault(c"divides by zero at", (*info).si_addr()),
        }
        // Not of a kernel: again, for whoever was here before.
        let old = OLD.get().map(|old| old[usize::from(signal == libc::SIGFPE)]);
        libc::sigaction(signal, old.as_ref().map_or(std::ptr::null(), std::ptr::from_ref), std::ptr::null_mut());
    }
}

pub fn log(text: &str) {
    let Some(path) = std::env::var_os("SIMULATED_CUDA_LOG") else { return };
    if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path) {
        let _ = writeln!(file, "{}: {text}", std::process::id());
    }
}

impl State {
    /// A context fails, for good. What waits in its streams never runs.
    pub fn fault(&mut self, context: usize, error: Error, text: &str) -> Error {
        log(&format!("error {}: {text}", error.0));
        let words = describe(error.0).map_or("", |(_, words)| words);
        // Whoever was given the text keeps it.
        let text = CString::new(format!("{words}: {text}")).unwrap_or_default();
        self.faults.insert(error.0, text.into_raw() as usize);
        for stream in self.streams.values_mut().filter(|stream| stream.context == context) {
            stream.queue.clear();
        }
        if let Some(context) = self.contexts.get_mut(&context) {
            context.sticky.get_or_insert(error);
        }
        error
    }
}
