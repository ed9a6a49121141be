//! The list of an engine's metrics. The engine's counters, [`Metrics`], the struct of the C API and the OpenMetrics text are
//! generated from it, and docs/metrics.md is checked against it.

/// Passes the list to the macro `$then`, in three groups: atomics that the engine writes, statistics of its cache (`kv` in the
/// expressions), and values computed when the metrics are read.
///
/// An entry is a field with its type, the kind and name of its family in the text, and a help text. Fields that only the
/// struct has come without kind and name. A field whose family's name ends in `seconds` is in nanoseconds.
macro_rules! for_each_metric {
    ($then:ident) => {
        $then! {
            counted {
                running: u32, gauge "num_requests_running", "Requests in the running batch.";
                waiting: u32, gauge "num_requests_waiting", "Accepted requests that are not in the running batch.";
                role: u32, "Role of the last step: CLEAVE_ROLE_*.";
                prompt_tokens: u64, counter "prompt_tokens", "Prompt tokens computed.";
                generated_tokens: u64, counter "generation_tokens", "Tokens generated.";
                prefix_hit_tokens: u64, counter "prefix_cache_hits",
                    "Prompt tokens found in the prefix cache, which were not computed.";
                preemptions: u64, counter "num_preemptions", "Sequences put back because KV blocks ran out.";
                recomputed: u64, counter "requests_recomputed",
                    "Requests whose imported KV did not arrive and was computed here instead.";
                handoff_ns_last: u64, "Duration of the last handoff.";
                step_ns_last: u64, "Duration of the last step.";
                step_ns_max: u64, gauge "step_max_seconds", "Duration of the longest step.";
                export_ns_last: u64, "Duration of the last export to a KV handle.";
                role_switch_ns_last: u64, "Time from the last role switch to the first step under the new role.";
                multiprocessors: u32, gauge "multiprocessors",
                    "Multiprocessors of the device that the engine may use; 0 on the CPU.";
            }
            cached {
                blocks_total: u32 = |kv| kv.blocks_total as u32, gauge "kv_blocks", "KV blocks of the cache.";
                blocks_free: u32 = |kv| kv.blocks_available as u32, gauge "kv_blocks_free",
                    "KV blocks that requests can have; blocks that only the prefix index holds are among them.";
                exports_open: u32 = |kv| kv.exports_open as u32, gauge "kv_exports_open", "KV handles in the cache.";
                imports_open: u32 = |kv| kv.imports_open as u32, gauge "kv_imports_open",
                    "Imports into the cache that have not finished.";
                kv_bytes_in: u64 = |kv| kv.bytes_in, counter "kv_in_bytes", "KV bytes imported.";
                kv_bytes_out: u64 = |kv| kv.bytes_out, counter "kv_out_bytes", "KV bytes exported.";
                imports: u64 = |kv| kv.imports, counter "kv_imports", "Imports that succeeded.";
                imports_failed: u64 = |kv| kv.imports_failed, counter "kv_imports_failed", "Imports that failed.";
                kv_bytes_hidden: u64 = |kv| kv.bytes_hidden, counter "kv_hidden_bytes",
                    "KV bytes pulled while the exporter was still computing the prompt.";
                kv_bytes_exposed: u64 = |kv| kv.bytes_exposed, counter "kv_exposed_bytes",
                    "KV bytes pulled after the exporter had computed the prompt.";
                kv_exposed_ns_total: u64 = |kv| kv.exposed_ns, counter "kv_exposed_seconds",
                    "Time from the exporter's last prompt token to the end of the import, over all imports.";
                kv_exposed_ns_last: u64 = |kv| kv.exposed_ns_last, "Time from the exporter's last prompt token to the end of the last import.";
            }
            computed {
                steps: u64, "Steps that have run.";
                busy_ns: u64, "Time spent in steps.";
                last_step_age_ns: u64, gauge "last_step_age_seconds", "Time since the last step ended; 0 before the first.";
                handoffs: u64, "Requests that continued a KV handle.";
                handoff_ns_total: u64, "Time spent taking KV handles over.";
                prefill_step_tokens: u32, gauge "prefill_step_tokens", "Most prompt tokens that a step takes.";
                prefill_tokens_per_second: u64, gauge "prefill_tokens_per_second",
                    "Measured rate of prefill steps of the chosen length; 0 if no length was chosen by measurement.";
            }
        }
    };
}
pub(crate) use for_each_metric;

/// OpenMetrics type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Value that goes up and down.
    Gauge,
    /// Value that only goes up.
    Counter,
}

/// One family of the OpenMetrics text.
pub struct Family {
    /// Name without the prefix `cleave_` and the suffix `_total`.
    pub name: &'static str,
    /// Type of the family.
    pub kind: Kind,
    /// Meaning, as a sentence.
    pub help: &'static str,
    /// Whether the family belongs to a cache rather than to one of its engines.
    pub of_cache: bool,
    /// Extracts the value, in the family's unit, from a reading.
    pub value: fn(&Metrics) -> f64,
}

/// The unit that a family's name ends with: `seconds`, `bytes` or none.
pub fn unit(name: &str) -> Option<&'static str> {
    ["bytes", "seconds"].into_iter().find(|unit| name.ends_with(unit))
}

/// Divisor that converts a field to its family's unit: fields with times are in nanoseconds.
fn scale(name: &str) -> f64 {
    if unit(name) == Some("seconds") { 1e9 } else { 1.0 }
}

macro_rules! kind {
    (gauge) => {
        Kind::Gauge
    };
    (counter) => {
        Kind::Counter
    };
}

macro_rules! define {
    (
        counted { $($counted:ident: $counted_type:ty, $($counted_kind:ident $counted_name:literal,)? $counted_help:literal;)* }
        cached { $($cached:ident: $cached_type:ty = $read:expr, $($cached_kind:ident $cached_name:literal,)? $cached_help:literal;)* }
        computed { $($computed:ident: $computed_type:ty, $($computed_kind:ident $computed_name:literal,)? $computed_help:literal;)* }
    ) => {
        /// A reading of an engine's metrics and those of its cache.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Metrics {
            $(#[doc = $counted_help] pub $counted: $counted_type,)*
            $(#[doc = $cached_help] pub $cached: $cached_type,)*
            $(#[doc = $computed_help] pub $computed: $computed_type,)*
        }

        impl Metrics {
            /// The metrics that a cache has without an engine. All others are zero.
            pub(super) fn of_cache(kv: &crate::kv::CacheStats) -> Metrics {
                fn read<T>(kv: &crate::kv::CacheStats, field: impl Fn(&crate::kv::CacheStats) -> T) -> T {
                    field(kv)
                }
                Metrics { $($cached: read(kv, $read),)* ..Metrics::default() }
            }
        }

        /// Every gauge and counter of the OpenMetrics text that is a field of [`Metrics`].
        pub const FAMILIES: &[Family] = &[
            $($(Family {
                name: $counted_name, kind: kind!($counted_kind), help: $counted_help, of_cache: false,
                value: |m| m.$counted as f64 / scale($counted_name),
            },)?)*
            $($(Family {
                name: $computed_name, kind: kind!($computed_kind), help: $computed_help, of_cache: false,
                value: |m| m.$computed as f64 / scale($computed_name),
            },)?)*
            $($(Family {
                name: $cached_name, kind: kind!($cached_kind), help: $cached_help, of_cache: true,
                value: |m| m.$cached as f64 / scale($cached_name),
            },)?)*
            Family {
                name: "kv_cache_usage_perc", kind: Kind::Gauge, of_cache: true,
                help: "Share of the cache's KV blocks that requests, handles and transfers hold, from 0 to 1.",
                value: |m| 1.0 - f64::from(m.blocks_free) / f64::from(m.blocks_total.max(1)),
            },
        ];
    };
}
for_each_metric!(define);
