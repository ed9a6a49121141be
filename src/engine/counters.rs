//! Counters that the step thread and host calls write and [`Metrics`] reads.

use super::{Metrics, ModelCache};
use crate::sys::monotonic_ns;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

#[derive(Default)]
pub(super) struct Counters {
    pub running: AtomicU32,
    pub waiting: AtomicU32,
    pub steps: AtomicU64,
    pub prompt_tokens: AtomicU64,
    pub generated_tokens: AtomicU64,
    pub prefix_hit_tokens: AtomicU64,
    pub preemptions: AtomicU64,
    pub recomputed: AtomicU64,
    pub busy_ns: AtomicU64,
    pub last_step_end_ns: AtomicU64,
    pub step_ns_last: AtomicU64,
    pub step_ns_max: AtomicU64,
    handoffs: AtomicU64,
    handoff_ns_total: AtomicU64,
    handoff_ns_last: AtomicU64,
    pub export_ns_last: AtomicU64,
    pub role_in_effect: AtomicU32,
    pub role_set_ns: AtomicU64,
    pub role_switch_ns_last: AtomicU64,
    pub multiprocessors: AtomicU32,
}

impl Counters {
    /// A handle was taken over in `ns`.
    pub fn handed_off(&self, ns: u64) {
        self.handoffs.fetch_add(1, Relaxed);
        self.handoff_ns_total.fetch_add(ns, Relaxed);
        self.handoff_ns_last.store(ns, Relaxed);
    }

    pub fn read(&self, cache: &ModelCache) -> Metrics {
        let kv = cache.kv().stats();
        let ended = self.last_step_end_ns.load(Relaxed);
        Metrics {
            running: self.running.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            blocks_total: kv.blocks_total as u32,
            blocks_free: kv.blocks_available as u32,
            exports_open: kv.exports_open as u32,
            imports_open: kv.imports_open as u32,
            role: self.role_in_effect.load(Relaxed),
            steps: self.steps.load(Relaxed),
            prompt_tokens: self.prompt_tokens.load(Relaxed),
            generated_tokens: self.generated_tokens.load(Relaxed),
            prefix_hit_tokens: self.prefix_hit_tokens.load(Relaxed),
            preemptions: self.preemptions.load(Relaxed),
            recomputed: self.recomputed.load(Relaxed),
            imports: kv.imports,
            imports_failed: kv.imports_failed,
            kv_bytes_hidden: kv.bytes_hidden,
            kv_bytes_exposed: kv.bytes_exposed,
            kv_exposed_ns_total: kv.exposed_ns,
            kv_exposed_ns_last: kv.exposed_ns_last,
            kv_bytes_in: kv.bytes_in,
            kv_bytes_out: kv.bytes_out,
            busy_ns: self.busy_ns.load(Relaxed),
            last_step_age_ns: if ended == 0 { 0 } else { monotonic_ns().saturating_sub(ended) },
            handoffs: self.handoffs.load(Relaxed),
            handoff_ns_total: self.handoff_ns_total.load(Relaxed),
            handoff_ns_last: self.handoff_ns_last.load(Relaxed),
            export_ns_last: self.export_ns_last.load(Relaxed),
            step_ns_last: self.step_ns_last.load(Relaxed),
            step_ns_max: self.step_ns_max.load(Relaxed),
            role_switch_ns_last: self.role_switch_ns_last.load(Relaxed),
            multiprocessors: self.multiprocessors.load(Relaxed),
            // The engine knows.
            prefill_step_tokens: 0,
            prefill_tokens_per_second: 0,
        }
    }
}
