//! errors

use libc::c_char;
use std::ffi::CStr;

/// What a function returns: CLEAVE_OK, or one of CLEAVE_ERR_*. Later versions may add codes: treat an unknown
/// negative one as a failure of its own kind.
pub type cleave_status_t = i32;

pub const CLEAVE_OK: cleave_status_t = 0;
/// An argument is NULL, out of range, not UTF-8, a handle of another type, a struct_size that cannot be.
pub const CLEAVE_ERR_INVALID_ARGUMENT: cleave_status_t = -1;
/// Stale or unknown handle or id, missing file.
pub const CLEAVE_ERR_NOT_FOUND: cleave_status_t = -2;
/// Well-formed, but not something that this build, model or device can do.
pub const CLEAVE_ERR_UNSUPPORTED: cleave_status_t = -3;
/// Admission is full: retry after a FINISHED event.
pub const CLEAVE_ERR_WOULD_BLOCK: cleave_status_t = -4;
/// Host memory, device memory or KV blocks.
pub const CLEAVE_ERR_OUT_OF_MEMORY: cleave_status_t = -5;
pub const CLEAVE_ERR_IO: cleave_status_t = -6;
/// Other model, weights, dtype, layout or wire version.
pub const CLEAVE_ERR_INCOMPATIBLE: cleave_status_t = -7;
/// The handle is not signed for this importer.
pub const CLEAVE_ERR_PERMISSION: cleave_status_t = -8;
/// Lease over, handle consumed, exporter restarted.
pub const CLEAVE_ERR_EXPIRED: cleave_status_t = -9;
/// Checksum, truncation, malformed file.
pub const CLEAVE_ERR_CORRUPT: cleave_status_t = -10;
/// Of a request that cleave_engine_cancel ended.
pub const CLEAVE_ERR_CANCELLED: cleave_status_t = -11;
/// A deadline or a timeout has passed.
pub const CLEAVE_ERR_TIMEOUT: cleave_status_t = -12;
pub const CLEAVE_ERR_DEVICE: cleave_status_t = -13;
/// The other side is gone.
pub const CLEAVE_ERR_PEER: cleave_status_t = -14;
/// The object is being destroyed, or was while the call waited.
pub const CLEAVE_ERR_SHUTDOWN: cleave_status_t = -15;
/// A bug in the library: a caught panic. The text says where.
pub const CLEAVE_ERR_INTERNAL: cleave_status_t = -16;
/// More prompt tokens are to be computed than the engine's local_prefill_tokens allows: prefill them on another engine
/// and submit the KV handle.
pub const CLEAVE_ERR_PREFILL_ELSEWHERE: cleave_status_t = -17;

/// What went wrong: 256 bytes owned by the caller, who may leave them uninitialised. Written on failure only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_error_t {
    /// What the function returned.
    pub code: cleave_status_t,
    /// UTF-8, NUL-terminated; names the argument, file, tensor or id at fault. Cut at a character's end when too long.
    pub message: [c_char; 252],
}

/// The name of a status without its prefix, as "NOT_FOUND"; "UNKNOWN" for a number that this version does not know.
/// Static: never freed.
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
