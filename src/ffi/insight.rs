//! insight

use super::boundary::{call, fill_text};
use super::engine::EngineObject;
use super::error::{cleave_error_t, cleave_status_t};
use super::handle::{cleave_cache_t, cleave_engine_t};
use super::versioned::{Output, sized_struct};
use super::{openmetrics, registry};
use crate::engine::{Metrics, ModelCache, for_each_metric};
use libc::{c_char, size_t};

/// Counters of one engine since it was created. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_metrics_t {
    pub struct_size: u32,
    /// Sequences in the batch, and accepted requests that are not.
    pub running: u32,
    pub waiting: u32,
    /// Of the cache; blocks that only the prefix index holds count as free.
    pub blocks_total: u32,
    pub blocks_free: u32,
    /// KV handles of the cache, and imports of it that have not landed.
    pub exports_open: u32,
    pub imports_open: u32,
    /// CLEAVE_ROLE_* of the last step; cleave_engine_set_role shows here once a step was planned under the new one.
    pub role: u32,
    pub steps: u64,
    /// Prompt tokens computed, and generated tokens.
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    /// Prompt tokens that the prefix index saved computing.
    pub prefix_hit_tokens: u64,
    pub preemptions: u64,
    /// KV bytes moved for imports and exports; a handoff within one cache moves none.
    pub kv_bytes_in: u64,
    pub kv_bytes_out: u64,
    /// Time spent in steps.
    pub busy_ns: u64,
    /// Time since the last step ended; 0 before the first.
    pub last_step_age_ns: u64,
    /// Requests that continued a KV handle, and how long it took from accepting the request until its blocks were the
    /// engine's: of all together, and of the last.
    pub handoffs: u64,
    pub handoff_ns_total: u64,
    pub handoff_ns_last: u64,
    /// How long the last step took, and the longest.
    pub step_ns_last: u64,
    pub step_ns_max: u64,
    /// How long the last hand-over to a KV handle took on this engine.
    pub export_ns_last: u64,
    /// From the last cleave_engine_set_role to the first step that was planned under the new role.
    pub role_switch_ns_last: u64,
    /// Tickets whose KV came into the cache, and those whose did not.
    pub imports: u64,
    pub imports_failed: u64,
    /// Requests of this engine whose KV did not come and was computed anew (CLEAVE_REQUEST_RECOMPUTE).
    pub recomputed: u64,
    /// KV bytes that the cache pulled while their exporter was still computing (hidden behind that), and after it
    /// (exposed); and how long imports took from their exporter being done: of all together, and of the last.
    pub kv_bytes_hidden: u64,
    pub kv_bytes_exposed: u64,
    pub kv_exposed_ns_total: u64,
    pub kv_exposed_ns_last: u64,
    /// Prompt tokens that a step takes at most, under the present role: max_batch_tokens, or what was chosen by
    /// measurement.
    pub prefill_step_tokens: u32,
    /// Multiprocessors (SMs) of the device that the engine's work runs on; 0 on the CPU.
    pub multiprocessors: u32,
    /// The tokens/s that steps of the chosen length were measured at; 0 if none was chosen (yet).
    pub prefill_tokens_per_second: u64,
}

sized_struct!(cleave_metrics_t, cleave_audit_t);

/// The struct has the fields of the list of metrics, or this does not compile.
macro_rules! fill {
    ($($group:ident {
        $($field:ident: $type:ty $(= $read:expr)?, $($kind:ident $name:literal,)? $help:literal;)*
    })*) => {
        fn convert(m: &Metrics) -> cleave_metrics_t {
            cleave_metrics_t { struct_size: 0, $($($field: m.$field,)*)* }
        }
    };
}
for_each_metric!(fill);

/// Reads an engine's counters, without stopping it. Callable from any thread. Errors: NOT_FOUND, INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_metrics(
    engine: *mut cleave_engine_t,
    out: *mut cleave_metrics_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || unsafe {
        let engine = registry::get::<EngineObject>(engine, "engine")?;
        let out = Output::new(out, "out")?;
        out.write(&convert(&engine.engine.metrics()));
        Ok(())
    })
}

/// Writes the metrics of all engines and caches of the process as OpenMetrics text (application/openmetrics-text;
/// version=1.0.0), for the host's scrape endpoint. The text is a fragment: it does not end in `# EOF`, so that the host can
/// put its own metrics before or behind it. Write `# EOF` and a newline once, at the end of the response.
///
/// Families of an engine have the labels model_name, cache, engine and role, those of a cache model_name and cache. Caches
/// and engines are counted from 0 in order of creation. Times, sizes and histograms are described in docs/metrics.md.
///
/// (`buf`, `cap`, `len`) follow the conventions for buffers above. The text may grow between a call that asks for the length
/// and the next, so leave some room. Callable from any thread. Errors: INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_metrics_text(
    buf: *mut c_char,
    cap: size_t,
    len: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || unsafe { fill_text(&openmetrics::text(), buf, cap, len) })
}

/// Who holds the blocks of a cache. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_audit_t {
    pub struct_size: u32,
    /// Blocks that each kind of owner holds: a shared block counts for every kind that holds it.
    pub by_requests: u32,
    pub by_transfers: u32,
    pub by_exports: u32,
    pub by_prefix_index: u32,
    /// Neither free nor owned by anybody, or with a wrong count of owners: always 0.
    pub leaked: u32,
    pub total: u32,
    pub free: u32,
}

/// Counts a cache's blocks by owner. Callable from any thread; holds the cache's lock while it counts.
/// Errors: NOT_FOUND, INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_audit(
    cache: *mut cleave_cache_t,
    out: *mut cleave_audit_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || unsafe {
        let cache = registry::get::<ModelCache>(cache, "cache")?;
        let out = Output::new(out, "out")?;
        let audit = cache.kv().audit();
        out.write(&cleave_audit_t {
            struct_size: 0,
            by_requests: audit.by_requests as u32,
            by_transfers: audit.by_transfers as u32,
            by_exports: audit.by_exports as u32,
            by_prefix_index: audit.by_prefix_index as u32,
            leaked: audit.leaked as u32,
            total: audit.total as u32,
            free: audit.free as u32,
        });
        Ok(())
    })
}
