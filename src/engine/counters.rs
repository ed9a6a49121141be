//! Counters of one engine. The step thread and host calls write them; [`Metrics`] is a reading of them.

use super::histogram::Histograms;
use super::metrics::for_each_metric;
use super::{Metrics, ModelCache};
use crate::sys::monotonic_ns;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A number type that has an atomic of the same size.
pub(super) trait Counted {
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
            $(#[doc = $help] pub $counted: <$type as Counted>::Atomic,)*
            /// Time when the last step ended; 0 before the first.
            last_step_end_ns: AtomicU64,
            /// Time when the role was last set.
            pub role_set_ns: AtomicU64,
            pub histograms: Histograms,
        }

        impl Counters {
            /// A reading of the engine's counters and its cache's. The fields that the engine's token budget provides stay 0.
            pub fn read(&self, cache: &ModelCache) -> Metrics {
                let Histograms { step, handoff, .. } = &self.histograms;
                let ended = self.last_step_end_ns.load(Relaxed);
                Metrics {
                    $($counted: self.$counted.load(Relaxed),)*
                    steps: step.count(),
                    busy_ns: step.sum(),
                    last_step_age_ns: if ended == 0 { 0 } else { monotonic_ns().saturating_sub(ended) },
                    handoffs: handoff.count(),
                    handoff_ns_total: handoff.sum(),
                    ..cache.metrics()
                }
            }
        }
    };
}
for_each_metric!(define);

impl Counters {
    /// Counts a handoff that took `ns`: the KV of a handle became a request's own.
    pub fn handed_off(&self, ns: u64) {
        self.histograms.handoff.observe(ns);
        self.handoff_ns_last.store(ns, Relaxed);
    }

    /// Counts a step of `sequences` sequences.
    pub fn stepped(&self, started_ns: u64, ended_ns: u64, sequences: usize) {
        let took = ended_ns.saturating_sub(started_ns);
        self.histograms.step.observe(took);
        self.histograms.batch_size.observe(sequences as u64);
        self.step_ns_last.store(took, Relaxed);
        self.step_ns_max.fetch_max(took, Relaxed);
        self.last_step_end_ns.store(ended_ns, Relaxed);
    }
}
