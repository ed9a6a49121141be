//! Counters of one engine, as `cleave_engine_metrics` gives them.

#[derive(Clone, Copy, Debug, Default)]
pub struct Metrics {
    pub running: u32,
    pub waiting: u32,
    pub blocks_total: u32,
    pub blocks_free: u32,
    pub exports_open: u32,
    pub imports_open: u32,
    pub role: u32,
    pub steps: u64,
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    pub prefix_hit_tokens: u64,
    pub preemptions: u64,
    /// Requests whose KV did not come and was computed anew.
    pub recomputed: u64,
    /// Tickets whose KV came into the cache, and those whose did not.
    pub imports: u64,
    pub imports_failed: u64,
    /// KV bytes pulled while their exporter was still computing, and after that.
    pub kv_bytes_hidden: u64,
    pub kv_bytes_exposed: u64,
    /// From the exporter being done until everything was here: of all pulls, and of the last.
    pub kv_exposed_ns_total: u64,
    pub kv_exposed_ns_last: u64,
    pub kv_bytes_in: u64,
    pub kv_bytes_out: u64,
    /// Time spent in steps.
    pub busy_ns: u64,
    /// Time since the last step ended; 0 before the first.
    pub last_step_age_ns: u64,
    /// Requests that this engine continued from a handle, and the time from taking the handle to its blocks
    /// being the request's, summed and of the last one.
    pub handoffs: u64,
    pub handoff_ns_total: u64,
    pub handoff_ns_last: u64,
    /// Time that the last hand-over to a handle took on this engine.
    pub export_ns_last: u64,
    /// From `set_role` to the first step planned under the new role, of the last switch.
    pub role_switch_ns_last: u64,
    /// Steps' durations: the last and the longest.
    pub step_ns_last: u64,
    pub step_ns_max: u64,
    /// Prompt tokens that a step takes at most, under the present role.
    pub prefill_step_tokens: u32,
    /// Of the device, that the engine's work runs on; 0 on the CPU.
    pub multiprocessors: u32,
    /// Where the former was chosen by measurement: the rate that it gave, else 0.
    pub prefill_tokens_per_second: u64,
}
