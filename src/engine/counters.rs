//! The counters and histograms of one engine. Whatever an engine counts arrives here as a named event, from the step thread or
//! from a host call, and only this file writes the fields. [`Metrics`] is a reading of them. Another reading, such as a rate or
//! the load of an engine, belongs beside [`Counters::read`].

use super::histogram::{HistogramReading, Histograms};
use super::load::{LoadReading, LoadRecord, Occupancy};
use super::metrics::for_each_metric;
use super::{Metrics, Role};
use crate::sys::monotonic_ns;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Numbers of sequences and tokens of a step.
pub(super) struct StepTokens {
    pub sequences: u64,
    /// Prompt tokens that the step computed.
    pub prompt: u64,
    /// Tokens that it generated.
    pub generated: u64,
}

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
        pub(super) struct Counters {
            $(#[doc = $help] $counted: <$type as Counted>::Atomic,)*
            /// Time when the last step ended; 0 before the first.
            last_step_end_ns: AtomicU64,
            /// Time when the role was last set.
            role_set_ns: AtomicU64,
            histograms: Histograms,
            /// The load at the last step boundary. Locked only to copy it or to write a few numbers.
            load: Mutex<LoadRecord>,
        }

        impl Counters {
            /// The counters of an engine that starts with `role`.
            pub fn new(role: Role) -> Counters {
                let counters = Counters {
                    $($counted: Default::default(),)*
                    last_step_end_ns: AtomicU64::new(0),
                    role_set_ns: AtomicU64::new(0),
                    histograms: Histograms::default(),
                    load: Mutex::new(LoadRecord::new(role, monotonic_ns())),
                };
                counters.role.store(role as u32, Relaxed);
                counters
            }

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
    /// A reading of every histogram, one after the other.
    pub fn read_histograms(&self) -> Vec<HistogramReading> {
        self.histograms.read()
    }

    /// A reading of the load at `now_ns`, while `open` requests are open.
    pub fn read_load(&self, now_ns: u64, open: usize) -> LoadReading {
        self.load().read(now_ns, open)
    }

    fn load(&self) -> MutexGuard<'_, LoadRecord> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A step has ended.
    pub fn stepped(&self, started_ns: u64, ended_ns: u64, step: StepTokens) {
        let took = ended_ns.saturating_sub(started_ns);
        self.histograms.step.observe(took);
        self.histograms.batch_size.observe(step.sequences);
        self.step_ns_last.store(took, Relaxed);
        self.step_ns_max.fetch_max(took, Relaxed);
        self.last_step_end_ns.store(ended_ns, Relaxed);
        self.load().stepped(ended_ns, step.prompt, step.generated);
    }

    /// The engine's requests are in these states.
    pub fn occupied(&self, occupancy: Occupancy) {
        self.running.store((occupancy.prefilling + occupancy.decoding) as u32, Relaxed);
        self.waiting.store((occupancy.waiting + occupancy.importing) as u32, Relaxed);
        self.load().occupied(occupancy);
    }

    // ---- the engine itself ----

    /// The host set a role at `now_ns`.
    pub fn role_set(&self, now_ns: u64) {
        self.role_set_ns.store(now_ns, Relaxed);
    }

    /// A step is planned under `role`, while requests are in the states of `occupancy`.
    pub fn role_used(&self, role: Role, occupancy: impl FnOnce() -> Occupancy) {
        if self.role.swap(role as u32, Relaxed) != role as u32 {
            let (since, now) = (self.role_set_ns.load(Relaxed), monotonic_ns());
            self.role_switch_ns_last.store(now.saturating_sub(since), Relaxed);
            self.load().role_changed(role, now, occupancy());
        }
    }

    /// The engine may use `multiprocessors` multiprocessors of its device.
    pub fn multiprocessors_changed(&self, multiprocessors: u32) {
        self.multiprocessors.store(multiprocessors, Relaxed);
    }
}
