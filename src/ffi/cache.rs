//! cache

use super::boundary::{call, call_void, known_flags, put, required, slice};
use super::device::CLEAVE_DEVICE_CPU;
use super::error::{cleave_error_t, cleave_status_t};
use super::handle::{cleave_cache, cleave_cache_t, cleave_model_t};
use super::registry::{self, Kind, Object};
use super::versioned::{self, sized_struct};
use crate::engine::{CacheOptions, ModelCache};
use crate::model::Model;
use crate::tensor::Dtype;
use crate::{bail, error};
use libc::{size_t, uintptr_t};
use std::cell::Cell;
use std::time::Duration;

impl Object for ModelCache {
    type C = cleave_cache;
    const KIND: Kind = Kind::Cache;
}

/// The model's own dtype.
pub const CLEAVE_DTYPE_DEFAULT: u32 = 0;
/// 32-bit floats.
pub const CLEAVE_DTYPE_F32: u32 = 1;
/// IEEE half-precision floats.
pub const CLEAVE_DTYPE_F16: u32 = 2;
/// bfloat16.
pub const CLEAVE_DTYPE_BF16: u32 = 3;
/// int8 keys and values, a scale per token and head.
pub const CLEAVE_DTYPE_I8: u32 = 4;

/// Keeps no blocks for later requests with the same beginning.
pub const CLEAVE_CACHE_NO_PREFIX: u32 = 1 << 0;
/// Imports only KV of its own layout: that of another block size or dtype is INCOMPATIBLE instead of converted.
pub const CLEAVE_CACHE_NO_CONVERT: u32 = 1 << 1;
/// One copy of the weights on a CUDA device for all processes of this user on this machine (in one network namespace) that
/// set this: the first of them loads the weights, later ones map them, and they stay as long as anyone has
/// them, whoever ends or is killed. For the first cache of a model on a device in this process: further ones use what is
/// there. UNSUPPORTED where devices cannot share memory. On the CPU weights are the mapped files, shared in any case.
pub const CLEAVE_CACHE_SHARE_WEIGHTS: u32 = 1 << 2;

/// How a cache is made. Zero means default in every field.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_cache_config_t {
    /// sizeof this struct, set by the caller.
    pub struct_size: u32,
    /// Tokens of a block, at most 256. Default: 16.
    pub block_tokens: u32,
    /// CLEAVE_DTYPE_*. Default: the model's own.
    pub dtype: u32,
    /// CLEAVE_CACHE_*.
    pub flags: u32,
    /// Memory for KV blocks on each device. Default: 1 GiB.
    pub bytes_per_device: u64,
    /// How long a KV handle lives that nobody renews, in milliseconds. Default: 30000.
    pub lease_ms: u32,
    /// Signs tickets and images: caches with the same secret can import from each other. All zero: random, so that
    /// only this process can import what this cache exports. With one, the cache also lets processes of the same user
    /// on this machine that know it import over shared memory (see cleave_cache_listen for other machines).
    pub secret: [u8; 32],
    /// A peer that says nothing for so long in the middle of a transfer is gone, in milliseconds; on the same machine
    /// one that ends or is stopped is noticed within a second in any case. Default: 4000.
    pub peer_timeout_ms: u32,
    /// Number of events about the prefix index that are kept for cleave_cache_events, at most 16777216. Default: 0, none are
    /// recorded. A reader falls behind if more events come between two of its calls: a block of a full cache
    /// costs two events, so 65536 are enough for half a million tokens with blocks of 16. Each takes 16 bytes, and each block that is in the index or in a kept event takes about 150 bytes and 4
    /// for each of its tokens.
    pub events_kept: u32,
    /// 0.
    pub reserved: u32,
}

sized_struct!(cleave_cache_config_t);

/// Makes a KV cache for `model` on `devices` (`n_devices` ordinals; none: the CPU). `config` may be NULL. `*out` is
/// the caller's, to be ended with cleave_cache_destroy; it keeps the model alive.
///
/// Callable from any thread. [BLOCKING] Allocates the pool and puts the weights on the device, once per model and
/// device however many caches there are. Errors: INVALID_ARGUMENT, NOT_FOUND (model, device), UNSUPPORTED (dtype,
/// flags, more than one device, a device or shape that there are no kernels for), OUT_OF_MEMORY, DEVICE.
/// cleave_cache_create_with_progress tells how far it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_create(
    model: *mut cleave_model_t,
    devices: *const i32,
    n_devices: size_t,
    config: *const cleave_cache_config_t,
    out: *mut *mut cleave_cache_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the caller's contract.
    call(err, || unsafe { create(model, devices, n_devices, config, None, 0, out) })
}

/// Told of the weights while they are loaded: so many bytes are there, and so many will be. Returns 0, or anything else to
/// end it: the function that it was given to frees everything and returns CLEAVE_ERR_CANCELLED. It must return, and not
/// throw or longjmp.
pub type cleave_progress_fn =
    Option<unsafe extern "C" fn(user_data: uintptr_t, bytes_done: u64, bytes_total: u64) -> i32>;

/// cleave_cache_create that tells `progress` of the loading of the weights, by the calling thread and within the call.
/// `progress` NULL: nobody is told.
///
/// On a CUDA device it is told before the first byte, after every tensor and every 16 MiB, and once all are there, with the
/// same `bytes_total` each time (as they lie on the device) and `bytes_done` from 0 to `bytes_total`, never less than
/// before. Where there is nothing to load it is told once, with everything done: on the CPU, which uses the mapped files
/// and reads pages as it comes to them, and on a device that another cache has brought the weights to, or is bringing
/// them: then this call waits for that first. While another process loads weights that this one shares
/// (CLEAVE_CACHE_SHARE_WEIGHTS), it is told again and again that nothing is there, and can end the waiting.
///
/// `progress` may call every function of this API but cleave_cache_create and this one (CLEAVE_ERR_INVALID_ARGUMENT), and
/// must not wait for a thread that is in one of them.
///
/// Callable from any thread. [BLOCKING] As cleave_cache_create, and for as long as `progress` takes. Errors: those of
/// cleave_cache_create, and CANCELLED (by `progress`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_create_with_progress(
    model: *mut cleave_model_t,
    devices: *const i32,
    n_devices: size_t,
    config: *const cleave_cache_config_t,
    progress: cleave_progress_fn,
    user_data: uintptr_t,
    out: *mut *mut cleave_cache_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the caller's contract.
    call(err, || unsafe { create(model, devices, n_devices, config, progress, user_data, out) })
}

thread_local! {
    /// This thread is in a host's progress function: what is being loaded is locked.
    static IN_PROGRESS: Cell<bool> = const { Cell::new(false) };
}

unsafe fn create(
    model: *mut cleave_model_t,
    devices: *const i32,
    n_devices: size_t,
    config: *const cleave_cache_config_t,
    progress: cleave_progress_fn,
    user_data: uintptr_t,
    out: *mut *mut cleave_cache_t,
) -> crate::error::Result<()> {
    if IN_PROGRESS.get() {
        bail!(InvalidArgument, "a cache cannot be created within a progress function");
    }
    let model = registry::get::<Model>(model, "model")?;
    required(out, "out")?;
    // SAFETY: the caller's contract.
    let (devices, config) = unsafe {
        let config: cleave_cache_config_t = versioned::read_optional(config, "config")?;
        (slice(devices, n_devices, "devices")?, config)
    };
    let devices = if devices.is_empty() { &[CLEAVE_DEVICE_CPU] } else { devices };
    if let Some(device) = devices.iter().find(|&&device| device < CLEAVE_DEVICE_CPU) {
        bail!(InvalidArgument, "{device} is no device ordinal");
    }
    let mut tell = |done: u64, total: u64| {
        let Some(progress) = progress else { return Ok(()) };
        IN_PROGRESS.set(true);
        // SAFETY: by contract a function that can be called during this call.
        let answer = unsafe { progress(user_data, done, total) };
        IN_PROGRESS.set(false);
        if answer != 0 {
            bail!(Cancelled, "`progress` ended the loading of weights, {done} of {total} bytes of which were there");
        }
        Ok(())
    };
    let cache = ModelCache::create_watched(&model, devices, options(&config)?, &mut tell)?;
    // SAFETY: checked above.
    unsafe { put(out, registry::insert(cache)?) };
    Ok(())
}

const MOST_EVENTS_KEPT: u32 = 1 << 24;

fn options(config: &cleave_cache_config_t) -> crate::error::Result<CacheOptions> {
    let known = CLEAVE_CACHE_NO_PREFIX | CLEAVE_CACHE_NO_CONVERT | CLEAVE_CACHE_SHARE_WEIGHTS;
    known_flags(config.flags, known, "config.flags")?;
    known_flags(config.reserved, 0, "config.reserved")?;
    if config.events_kept > MOST_EVENTS_KEPT {
        bail!(InvalidArgument, "config.events_kept {} is over {MOST_EVENTS_KEPT}", config.events_kept);
    }
    let dtype = match config.dtype {
        CLEAVE_DTYPE_DEFAULT => None,
        code => Some(
            Dtype::from_code(code)
                .ok_or_else(|| error!(Unsupported, "config.dtype: {code} is no dtype of this version"))?,
        ),
    };
    Ok(CacheOptions {
        block_tokens: config.block_tokens,
        dtype,
        bytes: config.bytes_per_device,
        lease: (config.lease_ms > 0).then(|| Duration::from_millis(u64::from(config.lease_ms))),
        secret: (config.secret != [0; 32]).then_some(config.secret),
        peer_timeout: (config.peer_timeout_ms > 0).then(|| Duration::from_millis(u64::from(config.peer_timeout_ms))),
        no_prefix_cache: config.flags & CLEAVE_CACHE_NO_PREFIX != 0,
        no_convert: config.flags & CLEAVE_CACHE_NO_CONVERT != 0,
        events_kept: config.events_kept as usize,
        share_weights: config.flags & CLEAVE_CACHE_SHARE_WEIGHTS != 0,
        ..CacheOptions::default()
    })
}

/// Ends a cache and every KV handle in it. Engines that still run over it go on until they are destroyed, and the
/// memory is held until then. Transfers in and out are ended first. NULL and a cache that was destroyed before are
/// ignored. [BLOCKING] Until the threads of those transfers have noticed: some tens of milliseconds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_destroy(cache: *mut cleave_cache_t) {
    if !cache.is_null() {
        call_void(|| {
            registry::take::<ModelCache>(cache, "cache")?.close();
            Ok(())
        });
    }
}
