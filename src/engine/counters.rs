//! The counters and histograms of one engine. Whatever an engine counts arrives here as a named event, from the step thread or
//! from a host call, and only this file writes the fields. [`Metrics`] is a reading of them. Another reading, such as a rate or
//! the load of an engine, belongs beside [`Counters::read`].

use super::histogram::{HistogramReading, Histograms};
use super::metrics::for_each_metric;
use super::{Metrics, Role};
use crate::sys::monotonic_ns;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A number type that has an atomic of the same size.
trait Counted {
    /// The atomic type.
    type Atomic: Default;
}

impl Counted for u32 {
    type Atomic = AtomicU32;
}

impl Counted for u64 {
    type Atomic = AtomicU64;
}

macro_rules! define {
    (
        counted { $($counted:ident: $type:ty, $($kind:ident $name:literal,)? $help:literal;)* }
        cached { $($cached:tt)* }
        computed { $($computed:tt)* }
    ) => {
        /// Everything that an engine counts.
        #[derive(Default)]
        pub(super) struct Counters {
            $(#[doc = $help] $counted: <$type as Counted>::Atomic,)*
            /// Time when the last step ended; 0 before the first.
            last_step_end_ns: AtomicU64,
            /// Time when the role was last set.
            role_set_ns: AtomicU64,
            histograms: Histograms,
        }

        impl Counters {
            /// A reading of the counters, with the fields of `of_cache` for the engine's cache. The fields that the engine's
            /// token budget provides stay 0.
            pub fn read(&self, of_cache: Metrics) -> Metrics {
                let Histograms { step, handoff, .. } = &self.histograms;
                let ended = self.last_step_end_ns.load(Relaxed);
                Metrics {
                    $($counted: self.$counted.load(Relaxed),)*
                    steps: step.count(),
                    busy_ns: step.sum(),
                    last_step_age_ns: if ended == 0 { 0 } else { monotonic_ns().saturating_sub(ended) },
                    handoffs: handoff.count(),
                    handoff_ns_total: handoff.sum(),
                    ..of_cache
                }
            }
        }
    };
}
for_each_metric!(define);

impl Counters {
    /// The counters of an engine that starts with `role`.
    pub fn new(role: Role) -> Counters {
        Counters { role: AtomicU32::new(role as u32), ..Counters::default() }
    }

    /// A reading of every histogram, one after the other.
    pub fn read_histograms(&self) -> Vec<HistogramReading> {
        self.histograms.read()
    }

    // ---- requests ----

    /// The first step that works on a request began `ns` after its admission.
    pub fn scheduled(&self, ns: u64) {
        self.histograms.queue_time.observe(ns);
    }

    /// This engine's first token for a request came `ns` after its admission.
    pub fn first_token(&self, ns: u64) {
        self.histograms.time_to_first_token.observe(ns);
        self.generated_tokens.fetch_add(1, Relaxed);
    }

    /// Another token of a request came `ns` after the one before.
    pub fn next_token(&self, ns: u64) {
        self.histograms.inter_token_latency.observe(ns);
        self.generated_tokens.fetch_add(1, Relaxed);
    }

    /// A request finished `ns` after its admission.
    pub fn finished(&self, ns: u64) {
        self.histograms.e2e_latency.observe(ns);
    }

    /// The KV of a handle became a request's own, which took `ns`.
    pub fn handed_off(&self, ns: u64) {
        self.histograms.handoff.observe(ns);
        self.handoff_ns_last.store(ns, Relaxed);
    }

    /// The KV of a request's handle did not arrive, and the engine computes it.
    pub fn recomputed(&self) {
        self.recomputed.fetch_add(1, Relaxed);
    }

    /// The KV of a request became a handle, which took `ns`.
    pub fn exported(&self, ns: u64) {
        self.export_ns_last.store(ns, Relaxed);
    }

    // ---- steps ----

    /// A plan found `prefix_hits` prompt tokens in the prefix cache and preempted `preempted` sequences.
    pub fn planned(&self, prefix_hits: u64, preempted: u64) {
        self.prefix_hit_tokens.fetch_add(prefix_hits, Relaxed);
        self.preemptions.fetch_add(preempted, Relaxed);
    }

    /// A step computed `tokens` tokens of prompts.
    pub fn prompt_computed(&self, tokens: u64) {
        self.prompt_tokens.fetch_add(tokens, Relaxed);
    }

    /// A step of `sequences` sequences has ended.
    pub fn stepped(&self, started_ns: u64, ended_ns: u64, sequences: usize) {
        let took = ended_ns.saturating_sub(started_ns);
        self.histograms.step.observe(took);
        self.histograms.batch_size.observe(sequences as u64);
        self.step_ns_last.store(took, Relaxed);
        self.step_ns_max.fetch_max(took, Relaxed);
        self.last_step_end_ns.store(ended_ns, Relaxed);
    }

    /// The engine now has `running` requests in its batch and `waiting` others.
    pub fn occupied(&self, running: usize, waiting: usize) {
        self.running.store(running as u32, Relaxed);
        self.waiting.store(waiting as u32, Relaxed);
    }

    // ---- the engine itself ----

    /// The host set a role at `now_ns`.
    pub fn role_set(&self, now_ns: u64) {
        self.role_set_ns.store(now_ns, Relaxed);
    }

    /// A step is planned under `role`.
    pub fn role_used(&self, role: Role) {
        if self.role.swap(role as u32, Relaxed) != role as u32 {
            let since = self.role_set_ns.load(Relaxed);
            self.role_switch_ns_last.store(monotonic_ns().saturating_sub(since), Relaxed);
        }
    }

    /// The engine may use `multiprocessors` multiprocessors of its device.
    pub fn multiprocessors_changed(&self, multiprocessors: u32) {
        self.multiprocessors.store(multiprocessors, Relaxed);
    }
}
