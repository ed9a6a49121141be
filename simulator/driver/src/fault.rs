//! Error descriptions for cuGetErrorString and for the file named by SIMULATED_CUDA_LOG.

use crate::state::State;
use crate::{Error, describe};
use simulated_kernels as kernels;
use std::ffi::{CStr, CString, c_void};
use std::io::Write;
use std::sync::{Once, OnceLock};

/// Error text for a kernel's access to unmapped memory. A device's memory has gaps behind each allocation.
const ILLEGAL: &CStr = c"accesses the illegal address";

pub fn is_illegal(text: &str) -> bool {
    ILLEGAL.to_str().is_ok_and(|words| text.contains(words))
}

/// Signal handlers that were installed before.
static OLD: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

/// Installs handlers so that a kernel's illegal accesses and divisions by zero end the kernel instead of the process.
pub fn catch() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        // SAFETY: the handler has the signature that its flags require.
        let old = [libc::SIGSEGV, libc::SIGFPE].map(|signal| unsafe {
            let mut new: libc::sigaction = std::mem::zeroed();
            new.sa_sigaction = on_signal as *const () as usize;
            // The handler does not return, so the signal must not stay blocked.
            new.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
            let mut old = std::mem::zeroed();
            libc::sigaction(signal, &new, &mut old);
            old
        });
        let _ = OLD.set(old);
    });
}

extern "C" fn on_signal(signal: i32, info: *const libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the signal was raised by this thread's current instruction; if no kernel runs here, `fault` returns.
    unsafe {
        match signal {
            libc::SIGSEGV => kernels::fault(ILLEGAL, (*info).si_addr()),
            _ => kernels::fault(c"divides by zero at", (*info).si_addr()),
        }
        // No kernel raised the signal. Restore the earlier handler, which gets it when the instruction repeats.
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
    /// Puts a context into a permanent error state. Work that waits in its streams never runs.
    pub fn fault(&mut self, context: usize, error: Error, text: &str) -> Error {
        log(&format!("error {}: {text}", error.0));
        let words = describe(error.0).map_or("", |(_, words)| words);
        // Callers may keep the text, so it is never freed.
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
