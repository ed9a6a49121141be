//! errors

use libc::c_char;
use std::ffi::CStr;

/// Result of a function: CLEAVE_OK or one of CLEAVE_ERR_*. Later versions may add codes, so treat an unknown negative
/// code as a failure.
pub type cleave_status_t = i32;

/// The function succeeded.
pub const CLEAVE_OK: cleave_status_t = 0;
/// An argument is NULL, out of range, not UTF-8 or a handle of another type, or its struct_size is impossible.
pub const CLEAVE_ERR_INVALID_ARGUMENT: cleave_status_t = -1;
/// A handle, an id or a file does not exist, or no longer exists.
pub const CLEAVE_ERR_NOT_FOUND: cleave_status_t = -2;
/// The request is well-formed, but this build, model or device cannot do it.
pub const CLEAVE_ERR_UNSUPPORTED: cleave_status_t = -3;
/// A queue or an engine is full. Try again after a FINISHED event.
pub const CLEAVE_ERR_WOULD_BLOCK: cleave_status_t = -4;
/// Host memory, device memory or KV blocks ran out.
pub const CLEAVE_ERR_OUT_OF_MEMORY: cleave_status_t = -5;
/// The operating system reported an error on a file or a socket.
pub const CLEAVE_ERR_IO: cleave_status_t = -6;
/// The data belongs to another model, dtype, layout or version of the format.
pub const CLEAVE_ERR_INCOMPATIBLE: cleave_status_t = -7;
/// The data is not signed with the secret of this cache, or the system denied access.
pub const CLEAVE_ERR_PERMISSION: cleave_status_t = -8;
/// The lease of a KV handle is over, the handle was consumed, or its exporter was restarted.
pub const CLEAVE_ERR_EXPIRED: cleave_status_t = -9;
/// A file or a message is malformed, truncated or fails its checksum.
pub const CLEAVE_ERR_CORRUPT: cleave_status_t = -10;
/// The request was ended by cleave_engine_cancel, or a callback of the host asked to stop.
pub const CLEAVE_ERR_CANCELLED: cleave_status_t = -11;
/// A deadline or a timeout has passed.
pub const CLEAVE_ERR_TIMEOUT: cleave_status_t = -12;
/// The device or its driver failed.
pub const CLEAVE_ERR_DEVICE: cleave_status_t = -13;
/// The other side of a transfer is gone or does not answer.
pub const CLEAVE_ERR_PEER: cleave_status_t = -14;
/// The object is being destroyed, or was destroyed while the call waited.
pub const CLEAVE_ERR_SHUTDOWN: cleave_status_t = -15;
/// The library has a bug: a panic was caught. The text says where.
pub const CLEAVE_ERR_INTERNAL: cleave_status_t = -16;
/// The prompt has more tokens to compute than local_prefill_tokens of the engine allows. Prefill it on another engine
/// and submit the KV handle.
pub const CLEAVE_ERR_PREFILL_ELSEWHERE: cleave_status_t = -17;

/// Description of a failure: 256 bytes that the caller owns and need not initialise. Written on failure only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_error_t {
    /// The status that the function returned.
    pub code: cleave_status_t,
    /// Text that names the argument, file, tensor or id at fault: UTF-8, NUL-terminated, cut at a character boundary
    /// if it is too long.
    pub message: [c_char; 252],
}

/// Returns the name of a status without its prefix, such as "NOT_FOUND", or "UNKNOWN" for a code that this version
/// does not have. The string is static and never freed.
#[unsafe(no_mangle)]
pub extern "C" fn cleave_status_string(status: cleave_status_t) -> *const c_char {
    const NAMES: [&CStr; 18] = [
        c"OK",
        c"INVALID_ARGUMENT",
        c"NOT_FOUND",
        c"UNSUPPORTED",
        c"WOULD_BLOCK",
        c"OUT_OF_MEMORY",
        c"IO",
        c"INCOMPATIBLE",
        c"PERMISSION",
        c"EXPIRED",
        c"CORRUPT",
        c"CANCELLED",
        c"TIMEOUT",
        c"DEVICE",
        c"PEER",
        c"SHUTDOWN",
        c"INTERNAL",
        c"PREFILL_ELSEWHERE",
    ];
    let index = status.checked_neg().and_then(|code| usize::try_from(code).ok());
    index.and_then(|i| NAMES.get(i)).copied().unwrap_or(c"UNKNOWN").as_ptr()
}
