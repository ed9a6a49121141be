//! insight: metrics, load and the audit of blocks

use super::boundary::{call, fill_text};
use super::engine::EngineObject;
use super::error::{cleave_error_t, cleave_status_t};
use super::handle::{cleave_cache_t, cleave_engine_t};
use super::versioned::{Output, sized_struct};
use super::{openmetrics, registry};
use crate::engine::{Load, Metrics, ModelCache, Openness, for_each_metric};
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

sized_struct!(cleave_metrics_t, cleave_engine_load_t, cleave_audit_t);

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

/// The engine refuses new requests, because it drains or is being destroyed.
pub const CLEAVE_LOAD_DRAINING: u32 = 1 << 0;
/// The engine has failed, and refuses new requests.
pub const CLEAVE_LOAD_FAILED: u32 = 1 << 1;

/// Load of one engine, for routers and planners. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_engine_load_t {
    /// sizeof this struct, set by the caller.
    pub struct_size: u32,
    /// CLEAVE_LOAD_*.
    pub flags: u32,
    /// CLEAVE_ROLE_* in effect: the last step was planned under it, or would have been.
    pub role: u32,
    /// CLEAVE_ROLE_* that was set last. It takes effect with the next step; `role` is then equal to it.
    pub role_requested: u32,
    /// Requests in the running batch: `prefilling` and `decoding` ones.
    pub running: u32,
    /// Accepted requests that are not in the running batch and not importing. running, waiting and importing add up to
    /// the number of open requests.
    pub waiting: u32,
    /// Requests whose KV is on its way.
    pub importing: u32,
    /// Running requests with more than one token to compute before their next token can be sampled.
    pub prefilling: u32,
    /// Running requests of which each step computes one token.
    pub decoding: u32,
    /// KV blocks of the cache.
    pub blocks_total: u32,
    /// KV blocks that requests can have, `blocks_cached` among them.
    pub blocks_free: u32,
    /// KV blocks that only the prefix index holds. They are evicted when there are no others.
    pub blocks_cached: u32,
    /// Tokens per KV block.
    pub block_tokens: u32,
    /// Most sequences that run at once.
    pub max_sequences: u32,
    /// Most accepted requests that wait beyond those.
    pub max_waiting: u32,
    /// Most tokens in a step.
    pub max_batch_tokens: u32,
    /// Most prompt tokens in a step under role_requested.
    pub prefill_step_tokens: u32,
    /// Prefilling requests at the moment when `role` took effect. All of them keep the role under which they were accepted.
    pub prefilling_at_switch: u32,
    /// Decoding requests at that moment.
    pub decoding_at_switch: u32,
    /// Waiting requests at that moment.
    pub waiting_at_switch: u32,
    /// Importing requests at that moment.
    pub importing_at_switch: u32,
    /// 0.
    pub reserved: u32,
    /// Steps that have run.
    pub steps: u64,
    /// Steps that had run when `role` took effect. All later ones were planned under it.
    pub role_since_step: u64,
    /// CLOCK_MONOTONIC when `role` took effect.
    pub role_since_ns: u64,
    /// CLOCK_MONOTONIC when this was read.
    pub timestamp_ns: u64,
    /// Prompt tokens computed per second in the last 9 to 10 seconds, idle time included: the tokens of the steps that ended
    /// within the present second of the clock and the nine before it. An engine younger than a second counts as one second old.
    pub prefill_tokens_per_second: f64,
    /// Tokens generated per second, in the same time.
    pub decode_tokens_per_second: f64,
}

fn convert_load(load: &Load) -> cleave_engine_load_t {
    let (now, at_switch) = (load.occupancy, load.role.occupancy);
    cleave_engine_load_t {
        struct_size: 0,
        flags: match load.openness {
            Openness::Open => 0,
            Openness::Draining => CLEAVE_LOAD_DRAINING,
            Openness::Failed => CLEAVE_LOAD_FAILED,
        },
        role: load.role.role as u32,
        role_requested: load.role_requested as u32,
        running: (now.prefilling + now.decoding) as u32,
        waiting: now.waiting as u32,
        importing: now.importing as u32,
        prefilling: now.prefilling as u32,
        decoding: now.decoding as u32,
        blocks_total: load.blocks.total as u32,
        blocks_free: load.blocks.available as u32,
        blocks_cached: load.blocks.cached as u32,
        block_tokens: load.block_tokens as u32,
        max_sequences: load.max_sequences as u32,
        max_waiting: load.max_waiting as u32,
        max_batch_tokens: load.max_batch_tokens as u32,
        prefill_step_tokens: load.prefill_step_tokens as u32,
        prefilling_at_switch: at_switch.prefilling as u32,
        decoding_at_switch: at_switch.decoding as u32,
        waiting_at_switch: at_switch.waiting as u32,
        importing_at_switch: at_switch.importing as u32,
        reserved: 0,
        steps: load.steps,
        role_since_step: load.role.since_step,
        role_since_ns: load.role.since_ns,
        timestamp_ns: load.now_ns,
        prefill_tokens_per_second: load.throughput.prefill,
        decode_tokens_per_second: load.throughput.decode,
    }
}

/// Reads an engine's load: states of requests as of the last step boundary, with those that came since as waiting. It does not wait for a step, and is cheap enough for every request of a router. After
/// cleave_engine_set_role it proves the switch: once `role` is equal to `role_requested`, the role is in effect since
/// step role_since_step, and the fields `*_at_switch` say which requests were open then. That takes at most one step,
/// and never happens on an engine that has CLEAVE_LOAD_FAILED.
///
/// Callable from any thread. Errors: NOT_FOUND, INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_engine_load(
    engine: *mut cleave_engine_t,
    out: *mut cleave_engine_load_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let engine = registry::get::<EngineObject>(engine, "engine")?;
        let out = Output::new(out, "out")?;
        out.write(&convert_load(&engine.engine.load()));
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
