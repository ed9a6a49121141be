//! insight: metrics and the audit of blocks

use super::boundary::{call, fill_text};
use super::engine::EngineObject;
use super::error::{cleave_error_t, cleave_status_t};
use super::handle::{cleave_cache_t, cleave_engine_t};
use super::versioned::{Output, sized_struct};
use super::{openmetrics, registry};
use crate::engine::{Metrics, ModelCache, for_each_metric};
use libc::{c_char, size_t};

/// Counters of one engine since it was created, and those of its cache. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_metrics_t {
    /// sizeof this struct, set by the caller.
    pub struct_size: u32,
    /// Requests in the running batch.
    pub running: u32,
    /// Accepted requests that are not in the running batch.
    pub waiting: u32,
    /// KV blocks of the cache.
    pub blocks_total: u32,
    /// KV blocks that requests can have, including blocks that only the prefix index holds.
    pub blocks_free: u32,
    /// KV handles in the cache.
    pub exports_open: u32,
    /// Imports into the cache that have not finished.
    pub imports_open: u32,
    /// CLEAVE_ROLE_* of the last step. A role set by cleave_engine_set_role shows here after a step was planned under
    /// it.
    pub role: u32,
    /// Steps.
    pub steps: u64,
    /// Prompt tokens computed.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Prompt tokens found in the prefix cache, which were not computed.
    pub prefix_hit_tokens: u64,
    /// Sequences put back because KV blocks ran out.
    pub preemptions: u64,
    /// KV bytes imported. A handoff within one cache moves none.
    pub kv_bytes_in: u64,
    /// KV bytes exported.
    pub kv_bytes_out: u64,
    /// Time spent in steps.
    pub busy_ns: u64,
    /// Time since the last step ended; 0 before the first.
    pub last_step_age_ns: u64,
    /// Requests that continued a KV handle.
    pub handoffs: u64,
    /// Time to take the handles' KV over, of all handoffs together.
    pub handoff_ns_total: u64,
    /// The same, of the last handoff.
    pub handoff_ns_last: u64,
    /// Duration of the last step.
    pub step_ns_last: u64,
    /// Duration of the longest step.
    pub step_ns_max: u64,
    /// Duration of the last export to a KV handle.
    pub export_ns_last: u64,
    /// Time from the last cleave_engine_set_role to the first step that was planned under the new role.
    pub role_switch_ns_last: u64,
    /// Imports into the cache that succeeded.
    pub imports: u64,
    /// Imports into the cache that failed.
    pub imports_failed: u64,
    /// Requests whose imported KV did not arrive and was computed here (CLEAVE_REQUEST_RECOMPUTE).
    pub recomputed: u64,
    /// KV bytes pulled while the exporter was still computing the prompt.
    pub kv_bytes_hidden: u64,
    /// KV bytes pulled after the exporter had computed the prompt.
    pub kv_bytes_exposed: u64,
    /// Time from the exporter's last prompt token to the end of the import, of all imports together.
    pub kv_exposed_ns_total: u64,
    /// The same, of the last import.
    pub kv_exposed_ns_last: u64,
    /// Most prompt tokens in a step under the present role: max_batch_tokens, or the measured choice.
    pub prefill_step_tokens: u32,
    /// Multiprocessors of the device that the engine may use; 0 on the CPU.
    pub multiprocessors: u32,
    /// Measured rate of prefill steps of the chosen length, in tokens per second; 0 if no length was chosen by
    /// measurement.
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

/// Reads an engine's counters without stopping it. Callable from any thread. Errors: NOT_FOUND, INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_metrics(
    engine: *mut cleave_engine_t,
    out: *mut cleave_metrics_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
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
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe { fill_text(&openmetrics::text(), buf, cap, len) })
}

/// Blocks of a cache by owner. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_audit_t {
    /// sizeof this struct, set by the caller.
    pub struct_size: u32,
    /// Blocks held by requests. A block with several kinds of owners counts for each.
    pub by_requests: u32,
    /// Blocks held by transfers to and from peers.
    pub by_transfers: u32,
    /// Blocks held by KV handles.
    pub by_exports: u32,
    /// Blocks held by the prefix index.
    pub by_prefix_index: u32,
    /// Blocks that are neither free nor owned, or whose count of owners is wrong: always 0.
    pub leaked: u32,
    /// All blocks of the cache.
    pub total: u32,
    /// Blocks without an owner.
    pub free: u32,
}

/// Counts the blocks of a cache by owner. Callable from any thread; holds the cache's lock while it counts. Errors:
/// NOT_FOUND, INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_audit(
    cache: *mut cleave_cache_t,
    out: *mut cleave_audit_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
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
