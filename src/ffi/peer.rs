//! peers: check and warm a pair before traffic

use super::boundary::{call, required, slice};
use super::error::{cleave_error_t, cleave_status_t};
use super::handle::cleave_cache_t;
use super::registry;
use super::sized::{Output, sized_struct};
use crate::bail;
use crate::engine::ModelCache;
use libc::{c_char, c_void, size_t};

/// How two caches would exchange KV. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_pair_report_t {
    pub struct_size: u32,
    /// CLEAVE_OK, or why the pair cannot exchange KV.
    pub status: cleave_status_t,
    pub transport: u32,
    pub reason: u32,
    pub bytes_per_second: u64,
    pub rtt_ns: u64,
    /// NUL-terminated.
    pub detail: [c_char; 160],
}

sized_struct!(cleave_pair_report_t);

/// Where other caches find this one. (`buf`, `cap`, `len`) follow the conventions for buffers above.
///
/// This version moves KV within a process (a ticket or an image needs no address there) and as images over a wire or
/// a file of the host's own; it listens on nothing, so this is UNSUPPORTED. Callable from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_address(
    cache: *mut cleave_cache_t,
    buf: *mut c_void,
    cap: size_t,
    len: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || {
        registry::get::<ModelCache>(cache, "cache")?;
        required(len, "len")?;
        let _ = (buf, cap);
        bail!(Unsupported, "this version has no transport between processes: exchange images (cleave_kv_read_image)")
    })
}

/// Connects to the cache at `address`, moves one block there and back, compares, and reports what the pair can do.
/// UNSUPPORTED in this version, as cleave_cache_address. Callable from any thread. [BLOCKING]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_pair(
    cache: *mut cleave_cache_t,
    address: *const c_void,
    len: size_t,
    required_transport: u32,
    out: *mut cleave_pair_report_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || unsafe {
        registry::get::<ModelCache>(cache, "cache")?;
        required(address, "address")?;
        slice(address.cast::<u8>(), len, "address")?;
        let _ = (Output::new(out, "out")?, required_transport);
        bail!(Unsupported, "this version has no transport between processes: exchange images (cleave_kv_read_image)")
    })
}
