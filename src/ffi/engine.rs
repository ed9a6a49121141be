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
/// Meant for requests that continue a KV handle. Computes short prompts too.
pub const CLEAVE_ROLE_DECODE: u32 = 2;

/// Configuration of an engine. Zero means the default in every field.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_engine_config_t {
    /// sizeof this struct, set by the caller.
    pub struct_size: u32,
    /// CLEAVE_ROLE_*.
    pub role: u32,
    /// Sequences that run at once. Default: 64.
    pub max_sequences: u32,
    /// Most tokens in a step, which bounds the duration of a step. Default: 512. On a CUDA device the default is the
    /// number of prompt tokens that saturates the device. It is measured while the engine is idle, once for all
    /// engines of the process with that model, device and block layout; until then it is 512. cleave_metrics_t shows
    /// the choice.
    pub max_batch_tokens: u32,
    /// Threads that compute, including the step thread. Default: one for each CPU in cpu_mask or, without a mask, for
    /// each CPU that the process may run on.
    pub threads: u32,
    /// No flags exist yet: 0.
    pub flags: u32,
    /// Accepted requests that may wait in addition to those that run. Beyond that a request is WOULD_BLOCK. Default:
    /// 1024.
    pub max_waiting: u32,
    /// Limit for prompts while the role is decode: a prompt without a KV handle that has more tokens to compute than
    /// this is refused with PREFILL_ELSEWHERE. Cached tokens do not count. Default: no limit.
    pub local_prefill_tokens: u32,
    /// CPUs that the engine's threads may run on: CPU i is bit i % 64 of cpu_mask[i / 64]. All zero: any CPU.
    pub cpu_mask: [u64; 16],
    /// Share of a CUDA device's multiprocessors (SMs) for the engine's kernels, in percent. The driver rounds it to
    /// groups of SMs (8 on compute capability 9.0); cleave_metrics_t shows the number. Shares of the engines on a
    /// device that sum to 100 do not overlap; engines with equal shares have the same SMs. 100: all. Default: all, unless
    /// a prefill and a decode engine are on the device and the host gave no engine there a share. Then prefill gets 70
    /// and decode 30, until one of them is destroyed; a change of role keeps the share. Other values than the default
    /// and 100 are UNSUPPORTED on the CPU and with drivers for CUDA before 12.5.
    pub sm_percent: u32,
    /// Must be 0.
    pub reserved: u32,
}

sized_struct!(cleave_engine_config_t);

/// An engine and its number.
pub(super) struct EngineObject {
    pub(super) engine: Engine,
    /// Name in metrics: engines are counted from 0, in order of creation.
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
        other => bail!(InvalidArgument, "role {other} is not one of CLEAVE_ROLE_*"),
    })
}

/// Starts an engine over `cache` that reports to `queue`. `config` may be NULL. Engines on one cache share weights
/// and blocks, and hand KV over by moving a block table. `*out` belongs to the caller, who gives it to
/// cleave_engine_destroy. The engine keeps cache and queue alive in memory, even when their own handles are
/// destroyed.
///
/// Callable from any thread. [BLOCKING] Starts threads and allocates memory for the largest step: milliseconds.
/// Errors: INVALID_ARGUMENT, NOT_FOUND, UNSUPPORTED (flags, sm_percent), OUT_OF_MEMORY, WOULD_BLOCK (the queue has no
/// place to reserve for ENGINE_FAILED), SHUTDOWN (cache or queue is being destroyed).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_create(
    cache: *mut cleave_cache_t,
    queue: *mut cleave_queue_t,
    config: *const cleave_engine_config_t,
    out: *mut *mut cleave_engine_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    static CREATED: AtomicU64 = AtomicU64::new(0);
    // SAFETY: the contract of the header (see ffi/mod.rs).
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

/// Changes the role of an engine from the next step on. Running requests continue; weights, cache and memory stay as
/// they are. cleave_engine_load says when the role is in effect.
///
/// Callable from any thread. Errors: INVALID_ARGUMENT, NOT_FOUND, SHUTDOWN.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_set_role(
    engine: *mut cleave_engine_t,
    role: u32,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || registry::get::<EngineObject>(engine, "engine")?.engine.set_role(self::role(role)?))
}

/// Changes the share of a CUDA device's multiprocessors for an engine's kernels (sm_percent of its config; 100: all, 0:
/// the default) from the next step on. Running requests continue; weights, cache and memory stay as they are. After an error
/// the engine keeps its share. To move a share between engines, shrink one before growing the other.
///
/// Callable from any thread. [BLOCKING] Asks the driver for the multiprocessors; does not wait for a step. Errors:
/// INVALID_ARGUMENT (over 100), UNSUPPORTED (the CPU, or a driver or device that cannot be partitioned),
/// OUT_OF_MEMORY, DEVICE, NOT_FOUND, SHUTDOWN.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_set_sm_percent(
    engine: *mut cleave_engine_t,
    sm_percent: u32,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || registry::get::<EngineObject>(engine, "engine")?.engine.set_sm_percent(sm_percent))
}

/// Refuses new requests with SHUTDOWN from now on, and waits at most `timeout_ms` (UINT32_MAX: for ever) until all
/// accepted requests have ended. After TIMEOUT the engine is still draining; call again to keep waiting. The host
/// must keep polling meanwhile, because an engine whose queue is full stands still.
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

/// Destroys an engine. Every request that is still open gets its FINISHED event (ERROR with status SHUTDOWN), then
/// the threads end. When this returns, the engine's last event is in the queue. NULL and an engine that was destroyed
/// before are ignored. [BLOCKING] Waits for the running step.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_destroy(engine: *mut cleave_engine_t) {
    if !engine.is_null() {
        call_void(|| {
            registry::take::<EngineObject>(engine, "engine")?.engine.shutdown();
            Ok(())
        });
    }
}
