//! Threads that leave the host's signals alone.

use crate::error::{Result, Status};
use std::thread::{JoinHandle, Scope};

/// Starts a thread with every signal blocked, so that the host's signal handlers run only on the host's own threads.
/// The mask is set before the thread exists, so no signal can arrive in between. A panic in the thread prints nothing.
pub fn spawn<F>(name: &str, body: F) -> Result<JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
{
    masked(name, || std::thread::Builder::new().name(name.to_string()).spawn(quiet(body)))
}

/// Starts a thread that ends within `scope`, with every signal blocked as in [`spawn`].
pub fn spawn_scoped<'scope, F>(scope: &'scope Scope<'scope, '_>, name: &str, body: F) -> Result<()>
where
    F: FnOnce() + Send + 'scope,
{
    masked(name, || std::thread::Builder::new().name(name.to_string()).spawn_scoped(scope, quiet(body)).map(|_| ()))
}

/// Runs `body` on a thread with `stack` bytes of stack and waits for it. Stack pages are allocated as they are touched.
/// A panic in `body` becomes an INTERNAL error.
pub fn run_with_stack<T: Send>(name: &str, stack: usize, body: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let body = || crate::panics::catch(body);
        let builder = || std::thread::Builder::new().name(name.to_string()).stack_size(stack);
        let thread = masked(name, || builder().spawn_scoped(scope, body))?;
        let lost = || Err(crate::error::Error::new(Status::Internal, format!("thread {name} was lost")));
        thread.join().unwrap_or_else(|_| lost())
    })
}

fn quiet(body: impl FnOnce()) -> impl FnOnce() {
    move || {
        let _inside = crate::panics::Inside::enter();
        body();
    }
}

/// Starts a thread while all signals are blocked, because the thread inherits the mask.
fn masked<T>(name: &str, start: impl FnOnce() -> std::io::Result<T>) -> Result<T> {
    with_signals_blocked(start)
        .map_err(|e| crate::error::Error::new(Status::OutOfMemory, format!("cannot start thread {name}: {e}")))
}

/// Runs `body` with every signal blocked in this thread. Threads that `body` starts inherit the mask.
pub(super) fn with_signals_blocked<T>(body: impl FnOnce() -> T) -> T {
    /// Restores the signal mask when dropped, so after a panic as well.
    struct Restore(libc::sigset_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: `pthread_sigmask` filled in this mask below.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
        }
    }
    // SAFETY: both sets are owned locals; sigfillset initialises `all`, pthread_sigmask initialises `old`
    // before it is read back.
    let _restore = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        Restore(old)
    };
    body()
}
