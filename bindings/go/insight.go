package cleave

import (
	"runtime"
	"time"

	"cleave/go/internal/capi"
)

// Metrics are the counters of one engine since it was created, and those of its cache. The tags name the fields of
// cleave_metrics_t.
type Metrics struct {
	// Running counts requests in the running batch, Waiting accepted requests that are not in it.
	Running int `c:"running"`
	Waiting int `c:"waiting"`
	// BlocksTotal and BlocksFree count the cache's KV blocks. Blocks that only the prefix index holds count as free.
	BlocksTotal int `c:"blocks_total"`
	BlocksFree  int `c:"blocks_free"`
	// ExportsOpen counts KV handles in the cache, ImportsOpen imports that have not finished.
	ExportsOpen int `c:"exports_open"`
	ImportsOpen int `c:"imports_open"`
	// Role is the role of the last step.
	Role  Role   `c:"role"`
	Steps uint64 `c:"steps"`
	// PromptTokens were computed, GeneratedTokens generated. PrefixHitTokens were found in the prefix cache.
	PromptTokens    uint64 `c:"prompt_tokens"`
	GeneratedTokens uint64 `c:"generated_tokens"`
	PrefixHitTokens uint64 `c:"prefix_hit_tokens"`
	Preemptions     uint64 `c:"preemptions"`
	// KVBytesIn and KVBytesOut were imported and exported. A handoff within one cache moves none.
	KVBytesIn  uint64 `c:"kv_bytes_in"`
	KVBytesOut uint64 `c:"kv_bytes_out"`
	// Busy is the time spent in steps. LastStepAge is the time since the last step ended.
	Busy        time.Duration `c:"busy_ns"`
	LastStepAge time.Duration `c:"last_step_age_ns"`
	// Handoffs counts requests that continued a KV handle. HandoffTotal and HandoffLast are the time to take the KV over.
	Handoffs     uint64        `c:"handoffs"`
	HandoffTotal time.Duration `c:"handoff_ns_total"`
	HandoffLast  time.Duration `c:"handoff_ns_last"`
	// StepLast and StepMax are the durations of the last and the longest step.
	StepLast time.Duration `c:"step_ns_last"`
	StepMax  time.Duration `c:"step_ns_max"`
	// ExportLast is the duration of the last export to a KV handle.
	ExportLast time.Duration `c:"export_ns_last"`
	// RoleSwitchLast is the time from the last SetRole to the first step under the new role.
	RoleSwitchLast time.Duration `c:"role_switch_ns_last"`
	// Imports and ImportsFailed count imports into the cache that succeeded and failed.
	Imports       uint64 `c:"imports"`
	ImportsFailed uint64 `c:"imports_failed"`
	// Recomputed counts requests whose imported KV did not arrive and was computed here.
	Recomputed uint64 `c:"recomputed"`
	// KVBytesHidden were pulled while the exporter was still computing the prompt, KVBytesExposed afterwards. KVExposedTotal
	// and KVExposedLast are the time from the exporter's last prompt token to the end of the import.
	KVBytesHidden  uint64        `c:"kv_bytes_hidden"`
	KVBytesExposed uint64        `c:"kv_bytes_exposed"`
	KVExposedTotal time.Duration `c:"kv_exposed_ns_total"`
	KVExposedLast  time.Duration `c:"kv_exposed_ns_last"`
	// PrefillStepTokens is the most prompt tokens in a step under the present role: MaxBatchTokens, or the measured choice.
	PrefillStepTokens int `c:"prefill_step_tokens"`
	// Multiprocessors is the number of the device's multiprocessors (SMs) that the engine may use; 0 on the CPU.
	Multiprocessors int `c:"multiprocessors"`
	// PrefillTokensPerSecond is the measured rate of prefill steps of the chosen length; 0 if none was chosen.
	PrefillTokensPerSecond uint64 `c:"prefill_tokens_per_second"`
}

// Metrics reads the engine's counters without stopping it.
func (e *Engine) Metrics() (Metrics, error) {
	defer runtime.KeepAlive(e)
	var m Metrics
	if err := capi.EngineMetrics(e.name, &m); err != nil {
		return Metrics{}, e.wrap(err)
	}
	return m, nil
}

// Flags of an [EngineLoad].
const (
	// LoadDraining: the engine refuses new requests, because it drains or is being closed.
	LoadDraining uint32 = capi.LoadDraining
	// LoadFailed: the engine has failed, and refuses new requests.
	LoadFailed uint32 = capi.LoadFailed
)

// EngineLoad is the load of one engine, for routers and planners. The tags name the fields of cleave_engine_load_t.
type EngineLoad struct {
	// Flags are LoadDraining and LoadFailed.
	Flags uint32 `c:"flags"`
	// Role is in effect: the last step was planned under it. RoleRequested was set last, and takes effect with the next step.
	Role          Role `c:"role"`
	RoleRequested Role `c:"role_requested"`
	// Running, Waiting and Importing add up to the number of open requests: those in the running batch, those whose KV is on its
	// way, and the others.
	Running   int `c:"running"`
	Waiting   int `c:"waiting"`
	Importing int `c:"importing"`
	// Prefilling counts running requests with more than one token to compute before the next can be sampled, Decoding the others.
	Prefilling int `c:"prefilling"`
	Decoding   int `c:"decoding"`
	// BlocksTotal, BlocksFree and BlocksCached count the cache's KV blocks. Free blocks are those that requests can have;
	// cached ones, which only the prefix index holds, are among them.
	BlocksTotal  int `c:"blocks_total"`
	BlocksFree   int `c:"blocks_free"`
	BlocksCached int `c:"blocks_cached"`
	BlockTokens  int `c:"block_tokens"`
	// MaxSequences run at once, MaxWaiting more can wait. MaxBatchTokens is the most tokens in a step, PrefillStepTokens the most
	// prompt tokens under RoleRequested.
	MaxSequences      int `c:"max_sequences"`
	MaxWaiting        int `c:"max_waiting"`
	MaxBatchTokens    int `c:"max_batch_tokens"`
	PrefillStepTokens int `c:"prefill_step_tokens"`
	// PrefillingAtSwitch, DecodingAtSwitch, WaitingAtSwitch and ImportingAtSwitch count the requests that were open when Role took
	// effect. They keep the role under which they were accepted.
	PrefillingAtSwitch int `c:"prefilling_at_switch"`
	DecodingAtSwitch   int `c:"decoding_at_switch"`
	WaitingAtSwitch    int `c:"waiting_at_switch"`
	ImportingAtSwitch  int `c:"importing_at_switch"`
	// Steps have run; RoleSinceStep had run when Role took effect, at RoleSinceNS on CLOCK_MONOTONIC. TimestampNS is the time
	// of the reading on that clock.
	Steps         uint64 `c:"steps"`
	RoleSinceStep uint64 `c:"role_since_step"`
	RoleSinceNS   uint64 `c:"role_since_ns"`
	TimestampNS   uint64 `c:"timestamp_ns"`
	// PrefillTokensPerSecond were computed and DecodeTokensPerSecond generated in the last 9 to 10 seconds, idle time included.
	PrefillTokensPerSecond float64 `c:"prefill_tokens_per_second"`
	DecodeTokensPerSecond  float64 `c:"decode_tokens_per_second"`
}

// RoleSince returns the time when Role took effect.
func (l EngineLoad) RoleSince() time.Time { return monotonicTime(l.RoleSinceNS) }

// Load reads the engine's load. It does not wait for a step. After [Engine.SetRole] it proves the switch: once Role is equal to
// RoleRequested, which takes at most one step, the role is in effect.
func (e *Engine) Load() (EngineLoad, error) {
	defer runtime.KeepAlive(e)
	var l EngineLoad
	if err := capi.EngineLoad(e.name, &l); err != nil {
		return EngineLoad{}, e.wrap(err)
	}
	return l, nil
}

// MetricsText returns the metrics of all engines and caches of the process as OpenMetrics text
// (application/openmetrics-text; version=1.0.0), for a scrape endpoint. The text is a fragment: write "# EOF" and a newline
// once, at the end of the response. The module cleave/go/prometheus has a prometheus.Collector for the same metrics.
func MetricsText() (string, error) {
	text, e := capi.MetricsText()
	return string(text), wrap(e)
}

// Audit counts the blocks of a cache by owner. A block with several kinds of owners counts for each.
type Audit struct {
	ByRequests    int
	ByTransfers   int
	ByExports     int
	ByPrefixIndex int
	// Leaked blocks are neither free nor owned, or have a wrong count of owners: always 0.
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
