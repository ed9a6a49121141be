//! KV handles

use super::boundary::{c_string, call, fill, put, required, slice};
use super::error::{cleave_error_t, cleave_status_t};
use super::handle::{cleave_cache_t, cleave_kv_t, cleave_queue_t};
use super::registry;
use super::versioned::{Output, VersionedStruct, sized_struct};
use crate::bail;
use crate::engine::{ModelCache, Queue};
use crate::error::Result;
use crate::kv::KvId;
use libc::{c_char, c_void, size_t};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The handle is of an import that has not landed yet.
pub const CLEAVE_KV_IMPORTING: u32 = 1 << 0;
/// The handle is of a prompt that is still being computed; n_computed says how far.
pub const CLEAVE_KV_STREAMING: u32 = 1 << 1;

/// Most bytes that cleave_kv_set_host_data attaches to a sequence.
pub const CLEAVE_KV_HOST_DATA_MAX: u32 = 4096;
const _: () = assert!(CLEAVE_KV_HOST_DATA_MAX as usize == crate::sequence::MAX_HOST_DATA);

/// Description of a KV handle. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_kv_info_t {
    /// sizeof this struct, set by the caller.
    pub struct_size: u32,
    /// Tokens of the sequence, a pending one (sampled, not yet run through the model) among them.
    pub n_tokens: u32,
    /// Blocks that it holds.
    pub n_blocks: u32,
    /// CLEAVE_KV_*.
    pub flags: u32,
    /// Size of the ticket in bytes.
    pub ticket_bytes: u64,
    /// Size of the image in bytes.
    pub image_bytes: u64,
    /// Milliseconds until it expires unless it is renewed.
    pub lease_left_ms: u64,
    /// Fingerprint of the model.
    pub fingerprint: [u8; 32],
    /// Tokens whose keys and values are in the blocks.
    pub n_computed: u32,
    /// 0.
    pub reserved: u32,
}

sized_struct!(cleave_kv_info_t);

fn get(cache: *mut cleave_cache_t) -> Result<Arc<ModelCache>> {
    registry::get::<ModelCache>(cache, "cache")
}

/// Describes a handle. Callable from any thread. Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_kv_info(
    cache: *mut cleave_cache_t,
    kv: cleave_kv_t,
    out: *mut cleave_kv_info_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let cache = get(cache)?;
        let out = Output::new(out, "out")?;
        let info = cache.kv().handles().info(KvId(kv))?;
        let mut c = cleave_kv_info_t::zeroed();
        c.n_tokens = info.n_tokens;
        c.n_blocks = info.n_blocks;
        c.flags =
            if info.importing { CLEAVE_KV_IMPORTING } else { 0 } | if info.streaming { CLEAVE_KV_STREAMING } else { 0 };
        c.ticket_bytes = info.ticket_bytes;
        c.image_bytes = info.image_bytes;
        c.lease_left_ms = u64::try_from(info.lease_left.as_millis()).unwrap_or(u64::MAX);
        c.fingerprint = cache.model().fingerprint();
        c.n_computed = info.computed;
        out.write(&c);
        Ok(())
    })
}

/// Writes the token ids of the handle's sequence: prompts and generated tokens in order, the pending one (sampled, not
/// yet run through the model) last. For a handle whose prompt is still being computed these are the prompt's tokens, for
/// an import those that its ticket names, also after the import failed. (`tokens`, `cap`, `n`) follow the conventions for
/// buffers above. Callable from any thread. Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT (buffer too small).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_kv_tokens(
    cache: *mut cleave_cache_t,
    kv: cleave_kv_t,
    tokens: *mut i32,
    cap: size_t,
    n: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || {
        let sequence = get(cache)?.kv().handles().sequence(KvId(kv))?;
        let ids: Vec<i32> = sequence.tokens.iter().map(|&token| token as i32).collect();
        // SAFETY: the caller's contract for (`tokens`, `cap`, `n`).
        unsafe { fill(&ids, tokens, cap, n, "tokens") }
    })
}

/// Attaches up to CLEAVE_KV_HOST_DATA_MAX bytes of the host's own (`len` at `data`, copied; 0 removes them) to the
/// handle's sequence, in place of what was attached before: a trace id, say, or the state of a detokenizer. The library
/// does not interpret them. Tickets and images written from now on carry them, signed with the cache's secret but
/// readable; the importer reads them with cleave_kv_host_data at once. They stay with the sequence when a request
/// continues it and hands it over again, and in duplicates, until they are replaced.
///
/// An image that was read does not change, so after cleave_kv_read_image or cleave_kv_save this is INVALID_ARGUMENT:
/// attach to a duplicate of the handle instead. Callable from any thread.
/// Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT (too long, image read); for a failed import the reason why it failed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_kv_set_host_data(
    cache: *mut cleave_cache_t,
    kv: cleave_kv_t,
    data: *const c_void,
    len: size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || {
        let cache = get(cache)?;
        // SAFETY: `data` is valid for `len` bytes by contract.
        let data = unsafe { slice(data.cast::<u8>(), len, "data")? };
        cache.kv().handles().set_host_data(KvId(kv), data)
    })
}

/// Reads the bytes that cleave_kv_set_host_data attached to the handle's sequence, here or where it came from; `*len` is
/// 0 if there are none. (`buf`, `cap`, `len`) follow the conventions for buffers above. Callable from any thread.
/// Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT (buffer too small).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_kv_host_data(
    cache: *mut cleave_cache_t,
    kv: cleave_kv_t,
    buf: *mut c_void,
    cap: size_t,
    len: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || {
        let sequence = get(cache)?.kv().handles().sequence(KvId(kv))?;
        // SAFETY: the caller's contract for (`buf`, `cap`, `len`).
        unsafe { fill(&sequence.host_data, buf.cast::<u8>(), cap, len, "buf") }
    })
}

/// Writes the handle's ticket: some hundred signed bytes and four for each token, with which a cache that has the same
/// secret pulls the blocks itself, in this process, on this machine (shared memory) or from elsewhere (TCP, after
/// cleave_cache_listen). The handle lives on until that has happened, it is released or its lease ends; a transfer that
/// begins renews the lease, and so does every sign of life from the importer. The tokens are readable in it: keep it
/// private. A handle of a prompt that is still being computed (KV_STREAM_STARTED) has a ticket too. (`buf`, `cap`, `len`)
/// follow the conventions for buffers above. Callable from any thread.
/// Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT (buffer too small), UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_kv_ticket(
    cache: *mut cleave_cache_t,
    kv: cleave_kv_t,
    buf: *mut c_void,
    cap: size_t,
    len: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let cache = get(cache)?;
        required(len, "len")?;
        fill(&cache.node().ticket(KvId(kv))?, buf.cast::<u8>(), cap, len, "buf")
    })
}

/// Reads a piece of the handle's image: everything that another cache needs, the KV itself included, for a wire of the
/// host's own or a file. The image is image_bytes of cleave_kv_info long and does not change while the handle lives.
/// Unlike with other buffers any `cap` will do: `*len` is how much was written, 0 at or beyond the end.
///
/// Callable from any thread. [BLOCKING] Copies from the device.
/// Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT, IO, DEVICE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_kv_read_image(
    cache: *mut cleave_cache_t,
    kv: cleave_kv_t,
    offset: u64,
    buf: *mut c_void,
    cap: size_t,
    len: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let cache = get(cache)?;
        required(len, "len")?;
        put(len, 0);
        // The host's buffer may be uninitialised: read into our own, piece by piece.
        slice(buf.cast::<u8>(), cap, "buf")?;
        let mut piece = vec![0u8; cap.min(1 << 20)];
        let mut done = 0;
        while done < cap {
            let want = piece.len().min(cap - done);
            let got =
                cache.kv().images().read(KvId(kv), offset.saturating_add(done as u64), &mut piece[..want])?.min(want);
            if got == 0 {
                break;
            }
            std::ptr::copy_nonoverlapping(piece.as_ptr(), buf.cast::<u8>().add(done), got);
            done += got;
        }
        put(len, done);
        Ok(())
    })
}

/// Takes in a ticket or an image (`len` bytes at `data`, copied during the call). `*kv` is the host's to submit, at once
/// if it likes: the request waits for the blocks. Once they have landed, or not, KV_READY with `user_tag` and the status
/// goes to `queue`, which may be NULL for no event.
///
/// The tokens of the exporter's handle end with it: once everything is here that handle is consumed, and until then it
/// is not. Where there are no free blocks the import waits for some: as long as a request waits for it, else for
/// peer_timeout_ms (OUT_OF_MEMORY). If the transfer fails, nothing of it is used, and the exporter's handle stays, if
/// its side does; a request with CLEAVE_REQUEST_RECOMPUTE goes on all the same. Blocks that this cache has already are
/// not moved; blocks of another size or dtype are converted.
///
/// Callable from any thread. An image is checked and copied before this returns.
/// Errors: CORRUPT, INCOMPATIBLE, PERMISSION (other secret), EXPIRED, PEER, OUT_OF_MEMORY (no free blocks),
/// WOULD_BLOCK (no place in the queue, or too many imports are waiting already, in all or for the same exporting cache:
/// try again when some have ended), INVALID_ARGUMENT, NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_kv_import(
    cache: *mut cleave_cache_t,
    queue: *mut cleave_queue_t,
    data: *const c_void,
    len: size_t,
    user_tag: u64,
    kv: *mut cleave_kv_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let cache = get(cache)?;
        let queue = if queue.is_null() { None } else { Some(registry::get::<Queue>(queue, "queue")?) };
        required(kv, "kv")?;
        required(data, "data")?;
        let data = slice(data.cast::<u8>(), len, "data")?;
        put(kv, cache.import(queue.as_ref(), data, user_tag)?.0);
        Ok(())
    })
}

/// Writes the handle's image to the file `path` (NUL-terminated UTF-8), whole or not at all: what was there is replaced
/// in one step. The handle lives on. Callable from any thread. [BLOCKING]
/// Errors: NOT_FOUND (handle, directory), EXPIRED, IO, INVALID_ARGUMENT (`path` exists and is no regular file).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_kv_save(
    cache: *mut cleave_cache_t,
    kv: cleave_kv_t,
    path: *const c_char,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe { get(cache)?.kv().images().save(KvId(kv), Path::new(c_string(path, "path")?)) })
}

/// Reads an image from a file. `*kv` is the host's to submit or to release. Callable from any thread. [BLOCKING]
/// Errors: NOT_FOUND (file), CORRUPT, INCOMPATIBLE, PERMISSION, OUT_OF_MEMORY, IO, INVALID_ARGUMENT (no regular file:
/// a FIFO or a device is refused without waiting for it).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_kv_load(
    cache: *mut cleave_cache_t,
    path: *const c_char,
    kv: *mut cleave_kv_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let cache = get(cache)?;
        required(kv, "kv")?;
        put(kv, cache.kv().images().load(Path::new(c_string(path, "path")?))?.0);
        Ok(())
    })
}

/// A second handle to the same snapshot, which shares its blocks: both can be continued, each its own way. `*out` is
/// the host's to submit or to release. Callable from any thread. Errors: NOT_FOUND, EXPIRED, INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_kv_duplicate(
    cache: *mut cleave_cache_t,
    kv: cleave_kv_t,
    out: *mut cleave_kv_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let cache = get(cache)?;
        required(out, "out")?;
        put(out, cache.kv().handles().duplicate(KvId(kv))?.0);
        Ok(())
    })
}

/// Makes the handle live `lease_ms` from now on (more than 0). Callable from any thread.
/// Errors: NOT_FOUND, EXPIRED (too late), INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_kv_renew(
    cache: *mut cleave_cache_t,
    kv: cleave_kv_t,
    lease_ms: u32,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || {
        let cache = get(cache)?;
        if lease_ms == 0 {
            bail!(InvalidArgument, "lease_ms is 0");
        }
        cache.kv().handles().renew(KvId(kv), Duration::from_millis(u64::from(lease_ms)))
    })
}

/// Gives a handle back; its blocks are free once no transfer touches them. Idempotent: a handle that was released,
/// consumed or has expired is CLEAVE_OK. Callable from any thread. Errors: NOT_FOUND (the cache, or an id that this
/// cache never gave out), INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_kv_release(
    cache: *mut cleave_cache_t,
    kv: cleave_kv_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || get(cache)?.kv().handles().release(KvId(kv)))
}
