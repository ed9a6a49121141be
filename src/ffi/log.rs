//! log
//!
//! The library writes nothing to stdout or stderr. Its messages go to the host's sink, if there is one.

use super::boundary::call;
use super::error::{cleave_error_t, cleave_status_t};
use crate::bail;
use crate::log::{Level, Sink};
use libc::{c_char, uintptr_t};
use std::ffi::CString;

/// No messages.
pub const CLEAVE_LOG_OFF: i32 = 0;
/// An engine or a transfer has failed, or a panic was caught.
pub const CLEAVE_LOG_ERROR: i32 = 1;
/// A function works, but slower or with less than was asked for.
pub const CLEAVE_LOG_WARN: i32 = 2;
/// Once per object: models loaded, engines created and destroyed.
pub const CLEAVE_LOG_INFO: i32 = 3;
/// Once per request or failed call.
pub const CLEAVE_LOG_DEBUG: i32 = 4;
/// Once per step.
pub const CLEAVE_LOG_TRACE: i32 = 5;

/// A log sink. `target` names a part of the library and `message` is one line without a newline. Both are UTF-8,
/// NUL-terminated and valid only during the call. The function must return, and must not throw or longjmp.
pub type cleave_log_fn =
    Option<unsafe extern "C" fn(user_data: uintptr_t, level: i32, target: *const c_char, message: *const c_char)>;

/// Sends messages of `max_level` and below to `fn`. A process has one sink, which this call replaces. The previous
/// sink receives every message that was queued for it before this call returns, and is never called afterwards.
///
/// `fn` NULL or `max_level` CLEAVE_LOG_OFF turns the log off. Do that before the object behind `user_data` goes away.
///
/// One thread of the library, named "cleave-log", calls the sink. The thread exists only while there is a sink, and
/// never calls it twice at once. The sink may call every function of this API except this one (INVALID_ARGUMENT). A
/// sink that is too slow loses messages and is told how many; it slows nothing down.
///
/// Callable from any thread except the sink's. Waits for the previous sink to handle its queued messages, at most
/// 1024. Errors: INVALID_ARGUMENT (level outside 0..=5), OUT_OF_MEMORY (no thread could be started).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_log_set(
    max_level: i32,
    r#fn: cleave_log_fn,
    user_data: uintptr_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || {
        if !(CLEAVE_LOG_OFF..=CLEAVE_LOG_TRACE).contains(&max_level) {
            bail!(InvalidArgument, "log level {max_level} is outside of 0..=5");
        }
        let sink = r#fn.map(|function| -> Sink {
            Box::new(move |level: Level, target: &str, message: &str| {
                let text = |s: &str| CString::new(s.replace(['\0', '\n'], " ")).unwrap_or_default();
                let (target, message) = (text(target), text(message));
                // SAFETY: by contract a function that can be called until it is replaced; the strings outlive the call.
                unsafe { function(user_data, level as i32, target.as_ptr(), message.as_ptr()) }
            })
        });
        crate::log::set(max_level, sink)
    })
}
