//! engine

use super::boundary::{call, call_void, known_flags, put, required, timeout};
use super::error::{cleave_error_t, cleave_status_t};
use super::handle::{cleave_cache_t, cleave_engine, cleave_engine_t, cleave_queue_t};
use super::registry::{self, Kind, Object};
use super::versioned::{self, sized_struct};
use crate::bail;
use crate::engine::{Engine, EngineOptions, ModelCache, Queue, Role};
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Prefills and decodes.
pub const CLEAVE_ROLE_MIXED: u32 = 0;
/// Requests end with FINISHED (PREFILLED) and a KV handle after their first token.
pub const CLEAVE_ROLE_PREFILL: u32 = 1;
/// Meant for requests that continue a KV handle; computes short prompts too.
pub const CLEAVE_ROLE_DECODE: u32 = 2;

/// How an engine is made. Zero means default in every field.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_engine_config_t {
    pub struct_size: u32,
    /// CLEAVE_ROLE_*.
    pub role: u32,
    /// Sequences that run at once. Default: 64.
    pub max_sequences: u32,
    /// Tokens that a step computes at most: bounds how long one step takes. Default: 512; on a CUDA device, as many prompt
    /// tokens as saturate it, measured while the engine has nothing to do, once for all engines of the process on that
    /// model, device and block layout. Until then 512; cleave_metrics_t shows what was chosen.
    pub max_batch_tokens: u32,
    /// Threads that compute, the step thread among them. Default: the CPUs of cpu_mask, else those that the process
    /// may run on.
    pub threads: u32,
    /// None yet: 0.
    pub flags: u32,
    /// Accepted requests that wait beyond those that run, before WOULD_BLOCK. Default: 1024.
    pub max_waiting: u32,
    /// While the role is decode: a prompt without a KV handle that has more tokens to compute than this, cached ones not
    /// counted, is refused with PREFILL_ELSEWHERE. Default: no limit.
    pub local_prefill_tokens: u32,
    /// CPUs that the engine's threads may run on: CPU i is bit i % 64 of cpu_mask[i / 64]. All zero: wherever the
    /// system puts them.
    pub cpu_mask: [u64; 16],
    /// Share of a CUDA device's multiprocessors (SMs) that the engine's kernels run on, in percent, as near as the driver's
    /// groups of them come to it (8 on compute capability 9.0; cleave_metrics_t has the number). Shares of the engines on
    /// a device that are 100 together do not overlap; engines with one share have the same SMs. Default: all. UNSUPPORTED
    /// on the CPU, and where the driver is for CUDA before 12.5.
    pub sm_percent: u32,
    /// 0.
    pub reserved: u32,
}

sized_struct!(cleave_engine_config_t);

/// An engine, with what the metrics call it.
pub(super) struct EngineObject {
    pub(super) engine: Engine,
    /// Counts the engines of the process from 0.
    pub(super) number: u64,
}

impl Object for EngineObject {
    type C = cleave_engine;
    const KIND: Kind = Kind::Engine;
}

fn role(role: u32) -> Result<Role> {
    Ok(match role {
        CLEAVE_ROLE_MIXED => Role::Mixed,
        CLEAVE_ROLE_PREFILL => Role::Prefill,
        CLEAVE_ROLE_DECODE => Role::Decode,
        other => bail!(InvalidArgument, "{other} is no role"),
    })
}

/// Starts an engine over `cache` that reports to `queue`. `config` may be NULL. Engines on one cache share weights and
/// blocks, and hand KV over by moving a block table. `*out` is the caller's, to be ended with cleave_engine_destroy; it
/// keeps cache and queue alive in memory, whatever becomes of their own handles.
///
/// Callable from any thread. [BLOCKING] Starts threads and allocates for the largest step: milliseconds.
/// Errors: INVALID_ARGUMENT, NOT_FOUND, UNSUPPORTED (flags), OUT_OF_MEMORY, WOULD_BLOCK (the queue has no place to
/// keep for ENGINE_FAILED), SHUTDOWN (cache or queue is being destroyed).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_create(
    cache: *mut cleave_cache_t,
    queue: *mut cleave_queue_t,
    config: *const cleave_engine_config_t,
    out: *mut *mut cleave_engine_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    static CREATED: AtomicU64 = AtomicU64::new(0);
    call(err, || unsafe {
        let cache = registry::get::<ModelCache>(cache, "cache")?;
        let queue = registry::get::<Queue>(queue, "queue")?;
        required(out, "out")?;
        let config: cleave_engine_config_t = versioned::read_optional(config, "config")?;
        known_flags(config.flags, 0, "config.flags")?;
        known_flags(config.reserved, 0, "config.reserved")?;
        let options = EngineOptions {
            role: Some(role(config.role)?),
            max_sequences: config.max_sequences as usize,
            max_waiting: config.max_waiting as usize,
            max_batch_tokens: config.max_batch_tokens as usize,
            threads: config.threads as usize,
            local_prefill_tokens: config.local_prefill_tokens as usize,
            cpus: cpus(&config.cpu_mask),
            sm_percent: config.sm_percent,
        };
        let engine = Engine::create(&cache, &queue, options)?;
        let number = CREATED.fetch_add(1, Relaxed);
        put(out, registry::insert(Arc::new(EngineObject { engine, number }))?);
        Ok(())
    })
}

fn cpus(mask: &[u64; 16]) -> Vec<usize> {
    (0..mask.len() * 64).filter(|cpu| mask[cpu / 64] >> (cpu % 64) & 1 == 1).collect()
}

/// Changes what an engine is for, from the next step boundary on. Running work goes on; weights, cache and memory are
/// not touched. Callable from any thread. Errors: INVALID_ARGUMENT, NOT_FOUND, SHUTDOWN.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_set_role(
    engine: *mut cleave_engine_t,
    role: u32,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || registry::get::<EngineObject>(engine, "engine")?.engine.set_role(self::role(role)?))
}

/// Changes the share of a CUDA device's multiprocessors that an engine's kernels run on (sm_percent of its config; 0 or 100:
/// all), from the next step boundary on. Running work goes on; weights, cache and memory are not touched. After an error
/// the engine keeps the share it had. Together with other engines' shares: make room first, then take it.
///
/// Callable from any thread. [BLOCKING] Asks the driver for the multiprocessors; no step is waited for.
/// Errors: INVALID_ARGUMENT (over 100), UNSUPPORTED (the CPU, or a driver or device without parts), OUT_OF_MEMORY, DEVICE,
/// NOT_FOUND, SHUTDOWN.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_set_sm_percent(
    engine: *mut cleave_engine_t,
    sm_percent: u32,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || registry::get::<EngineObject>(engine, "engine")?.engine.set_sm_percent(sm_percent))
}

/// Refuses new requests (SHUTDOWN) from now on and waits until all accepted ones have ended, at most `timeout_ms`
/// (UINT32_MAX: for ever). After TIMEOUT the engine is still draining; call again to go on waiting. The host has to
/// keep polling meanwhile: an engine whose queue is full stands still.
///
/// Callable from any thread. [BLOCKING] Errors: TIMEOUT, INVALID_ARGUMENT, NOT_FOUND, SHUTDOWN (destroyed meanwhile).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_drain(
    engine: *mut cleave_engine_t,
    timeout_ms: u32,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || registry::get::<EngineObject>(engine, "engine")?.engine.drain(timeout(timeout_ms)))
}

/// Ends an engine: every request still open gets its FINISHED event (ERROR, status SHUTDOWN), then its threads end.
/// When this returns the engine's last event is in the queue. NULL and an engine that was destroyed before are
/// ignored. [BLOCKING] For as long as the running step takes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_destroy(engine: *mut cleave_engine_t) {
    if !engine.is_null() {
        call_void(|| {
            registry::take::<EngineObject>(engine, "engine")?.engine.shutdown();
            Ok(())
        });
    }
}
