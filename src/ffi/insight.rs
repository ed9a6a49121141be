//! insight

use super::boundary::{call, fill_text};
use super::engine::EngineObject;
use super::error::{cleave_error_t, cleave_status_t};
use super::handle::{cleave_cache_t, cleave_engine_t};
use super::registry;
use super::versioned::{Output, sized_struct};
use crate::engine::{Metrics, ModelCache};
use libc::{c_char, size_t};
use std::fmt::Write;

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

fn convert(m: &Metrics) -> cleave_metrics_t {
    cleave_metrics_t {
        struct_size: 0,
        running: m.running,
        waiting: m.waiting,
        blocks_total: m.blocks_total,
        blocks_free: m.blocks_free,
        exports_open: m.exports_open,
        imports_open: m.imports_open,
        role: m.role,
        steps: m.steps,
        prompt_tokens: m.prompt_tokens,
        generated_tokens: m.generated_tokens,
        prefix_hit_tokens: m.prefix_hit_tokens,
        preemptions: m.preemptions,
        kv_bytes_in: m.kv_bytes_in,
        kv_bytes_out: m.kv_bytes_out,
        busy_ns: m.busy_ns,
        last_step_age_ns: m.last_step_age_ns,
        handoffs: m.handoffs,
        handoff_ns_total: m.handoff_ns_total,
        handoff_ns_last: m.handoff_ns_last,
        step_ns_last: m.step_ns_last,
        step_ns_max: m.step_ns_max,
        export_ns_last: m.export_ns_last,
        role_switch_ns_last: m.role_switch_ns_last,
        imports: m.imports,
        imports_failed: m.imports_failed,
        recomputed: m.recomputed,
        kv_bytes_hidden: m.kv_bytes_hidden,
        kv_bytes_exposed: m.kv_bytes_exposed,
        kv_exposed_ns_total: m.kv_exposed_ns_total,
        kv_exposed_ns_last: m.kv_exposed_ns_last,
        prefill_step_tokens: m.prefill_step_tokens,
        multiprocessors: m.multiprocessors,
        prefill_tokens_per_second: m.prefill_tokens_per_second,
    }
}

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

/// Writes the counters of every engine of the process as OpenMetrics text, for a scrape endpoint of the host's
/// (application/openmetrics-text; version=1.0.0). Engines are told apart by the label engine, counted from 0 in order
/// of creation. (`buf`, `cap`, `len`) follow the conventions for buffers above; the text may grow between a call that
/// asks for the length and the next, so leave some room. Callable from any thread. Errors: INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_metrics_text(
    buf: *mut c_char,
    cap: size_t,
    len: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || unsafe { fill_text(&open_metrics(), buf, cap, len) })
}

/// A metric family: name, whether it counts, help, and how it is read.
type Family = (&'static str, bool, &'static str, fn(&Metrics) -> f64);

const SECOND: f64 = 1e9;

const FAMILIES: &[Family] = &[
    ("requests_running", false, "Sequences in the batch", |m| m.running.into()),
    ("requests_waiting", false, "Accepted requests outside of the batch", |m| m.waiting.into()),
    ("role", false, "0 mixed, 1 prefill, 2 decode", |m| m.role.into()),
    ("kv_blocks", false, "KV blocks of the engine's cache", |m| m.blocks_total.into()),
    ("kv_blocks_free", false, "KV blocks free for requests", |m| m.blocks_free.into()),
    ("kv_exports_open", false, "KV handles open in the engine's cache", |m| m.exports_open.into()),
    ("kv_imports_open", false, "Imports into the engine's cache that have not landed", |m| m.imports_open.into()),
    ("steps", true, "Steps", |m| m.steps as f64),
    ("prompt_tokens", true, "Prompt tokens computed", |m| m.prompt_tokens as f64),
    ("generated_tokens", true, "Tokens generated", |m| m.generated_tokens as f64),
    ("prefix_hit_tokens", true, "Prompt tokens found in the prefix index", |m| m.prefix_hit_tokens as f64),
    ("preemptions", true, "Sequences put back for want of blocks", |m| m.preemptions as f64),
    ("kv_in_bytes", true, "KV bytes imported", |m| m.kv_bytes_in as f64),
    ("kv_out_bytes", true, "KV bytes exported", |m| m.kv_bytes_out as f64),
    ("kv_imports", true, "Tickets whose KV came into the engine's cache", |m| m.imports as f64),
    ("kv_imports_failed", true, "Tickets whose KV did not come", |m| m.imports_failed as f64),
    ("requests_recomputed", true, "Requests whose KV did not come and was computed anew", |m| m.recomputed as f64),
    ("kv_hidden_bytes", true, "KV bytes pulled while the exporter was computing", |m| m.kv_bytes_hidden as f64),
    ("kv_exposed_bytes", true, "KV bytes pulled after the exporter was done", |m| m.kv_bytes_exposed as f64),
    ("kv_exposed_seconds", true, "Time from the exporter being done until the KV was here", |m| {
        m.kv_exposed_ns_total as f64 / SECOND
    }),
    ("busy_seconds", true, "Time spent in steps", |m| m.busy_ns as f64 / SECOND),
    ("handoffs", true, "Requests that continued a KV handle", |m| m.handoffs as f64),
    ("handoff_seconds", true, "Time spent taking KV handles over", |m| m.handoff_ns_total as f64 / SECOND),
    ("last_step_age_seconds", false, "Time since the last step ended", |m| m.last_step_age_ns as f64 / SECOND),
    ("step_max_seconds", false, "The longest step", |m| m.step_ns_max as f64 / SECOND),
    ("prefill_step_tokens", false, "Prompt tokens that a step takes at most", |m| m.prefill_step_tokens.into()),
    ("prefill_rate", false, "Tokens/s that steps of the length chosen by measurement gave; 0: none was", |m| {
        m.prefill_tokens_per_second as f64
    }),
    ("multiprocessors", false, "Multiprocessors of the device that the engine uses", |m| m.multiprocessors.into()),
];

fn open_metrics() -> String {
    let mut engines: Vec<_> =
        registry::all::<EngineObject>().into_iter().map(|e| (e.number, e.engine.metrics())).collect();
    engines.sort_by_key(|(number, _)| *number);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "# TYPE cleave_build info\n# HELP cleave_build The library\ncleave_build_info{{version=\"{}\"}} 1",
        env!("CARGO_PKG_VERSION")
    );
    for (name, counts, help, value) in FAMILIES {
        let (kind, suffix) = if *counts { ("counter", "_total") } else { ("gauge", "") };
        let _ = writeln!(text, "# TYPE cleave_{name} {kind}");
        if let Some(unit) = ["bytes", "seconds"].iter().find(|unit| name.ends_with(*unit)) {
            let _ = writeln!(text, "# UNIT cleave_{name} {unit}");
        }
        let _ = writeln!(text, "# HELP cleave_{name} {help}");
        for (number, metrics) in &engines {
            let _ = writeln!(text, "cleave_{name}{suffix}{{engine=\"{number}\"}} {}", value(metrics));
        }
    }
    text.push_str("# EOF\n");
    text
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
