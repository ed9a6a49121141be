package cleave

import (
	"runtime"
	"time"

	"cleave/go/internal/capi"
)

// Metrics are the counters of one engine since it was created, and those of its cache. The tags name the fields of
// cleave_metrics_t.
type Metrics struct {
	// Running is the number of sequences in the batch, Waiting that of accepted requests that are not.
	Running int `c:"running"`
	Waiting int `c:"waiting"`
	// BlocksTotal and BlocksFree are of the cache; blocks that only the prefix index holds count as free.
	BlocksTotal int `c:"blocks_total"`
	BlocksFree  int `c:"blocks_free"`
	// ExportsOpen is the number of KV handles of the cache, ImportsOpen that of its imports that have not landed.
	ExportsOpen int `c:"exports_open"`
	ImportsOpen int `c:"imports_open"`
	// Role is that of the last step.
	Role  Role   `c:"role"`
	Steps uint64 `c:"steps"`
	// PromptTokens were computed, GeneratedTokens generated; PrefixHitTokens the prefix index saved computing.
	PromptTokens    uint64 `c:"prompt_tokens"`
	GeneratedTokens uint64 `c:"generated_tokens"`
	PrefixHitTokens uint64 `c:"prefix_hit_tokens"`
	Preemptions     uint64 `c:"preemptions"`
	// KVBytesIn and KVBytesOut were moved for imports and exports; a handoff within one cache moves none.
	KVBytesIn  uint64 `c:"kv_bytes_in"`
	KVBytesOut uint64 `c:"kv_bytes_out"`
	// Busy is the time spent in steps, LastStepAge the time since the last one ended.
	Busy        time.Duration `c:"busy_ns"`
	LastStepAge time.Duration `c:"last_step_age_ns"`
	// Handoffs counts requests that continued a KV handle; HandoffTotal and HandoffLast are how long it took from
	// accepting the request until its blocks were the engine's.
	Handoffs     uint64        `c:"handoffs"`
	HandoffTotal time.Duration `c:"handoff_ns_total"`
	HandoffLast  time.Duration `c:"handoff_ns_last"`
	// StepLast is how long the last step took, StepMax the longest.
	StepLast time.Duration `c:"step_ns_last"`
	StepMax  time.Duration `c:"step_ns_max"`
	// ExportLast is how long the last hand-over to a KV handle took.
	ExportLast time.Duration `c:"export_ns_last"`
	// RoleSwitchLast is from the last SetRole to the first step that was planned under the new role.
	RoleSwitchLast time.Duration `c:"role_switch_ns_last"`
	// Imports counts tickets whose KV came into the cache, ImportsFailed those whose did not.
	Imports       uint64 `c:"imports"`
	ImportsFailed uint64 `c:"imports_failed"`
	// Recomputed counts requests whose KV did not come and was computed anew.
	Recomputed uint64 `c:"recomputed"`
	// KVBytesHidden were pulled while their exporter was still computing, KVBytesExposed after it; KVExposedTotal and
	// KVExposedLast are how long imports took from their exporter being done.
	KVBytesHidden  uint64        `c:"kv_bytes_hidden"`
	KVBytesExposed uint64        `c:"kv_bytes_exposed"`
	KVExposedTotal time.Duration `c:"kv_exposed_ns_total"`
	KVExposedLast  time.Duration `c:"kv_exposed_ns_last"`
	// PrefillStepTokens is how many prompt tokens a step takes at most, under the present role: MaxBatchTokens, or what
	// was chosen by measurement.
	PrefillStepTokens int `c:"prefill_step_tokens"`
	// Multiprocessors (SMs) of the device are what the engine's work runs on; 0 on the CPU.
	Multiprocessors int `c:"multiprocessors"`
	// PrefillTokensPerSecond is what steps of the chosen length were measured at; 0 if none was chosen (yet).
	PrefillTokensPerSecond uint64 `c:"prefill_tokens_per_second"`
}

// Metrics reads the engine's counters, without stopping it.
func (e *Engine) Metrics() (Metrics, error) {
	defer runtime.KeepAlive(e)
	var m Metrics
	if err := capi.EngineMetrics(e.name, &m); err != nil {
		return Metrics{}, e.wrap(err)
	}
	return m, nil
}

// MetricsText returns the metrics of all engines and caches of the process as OpenMetrics text
// (application/openmetrics-text; version=1.0.0), for a scrape endpoint. The text is a fragment: write "# EOF" and a newline
// once, at the end of the response. The module cleave/go/prometheus has a prometheus.Collector for the same metrics.
func MetricsText() (string, error) {
	text, e := capi.MetricsText()
	return string(text), wrap(e)
}

// Audit is who holds the blocks of a cache. A shared block counts for every kind of owner that holds it.
type Audit struct {
	ByRequests    int
	ByTransfers   int
	ByExports     int
	ByPrefixIndex int
	// Leaked are neither free nor owned by anybody, or have a wrong count of owners: always 0.
	Leaked int
	Total  int
	Free   int
}

// Audit counts the cache's blocks by owner.
func (c *Cache) Audit() (Audit, error) {
	defer runtime.KeepAlive(c)
	audit, e := capi.CacheAudit(c.name)
	return Audit(audit), c.wrap(e)
}
