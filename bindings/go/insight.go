package cleave

import (
	"runtime"
	"time"

	"cleave/go/internal/capi"
)

// Metrics are the counters of one engine since it was made.
type Metrics struct {
	// Running is the number of sequences in the batch, Waiting that of accepted requests that are not.
	Running int
	Waiting int
	// BlocksTotal and BlocksFree are of the cache; blocks that only the prefix index holds count as free.
	BlocksTotal int
	BlocksFree  int
	// ExportsOpen is the number of KV handles of the cache, ImportsOpen that of its imports that have not landed.
	ExportsOpen int
	ImportsOpen int
	// Role is that of the last step.
	Role  Role
	Steps uint64
	// PromptTokens were computed, GeneratedTokens generated; PrefixHitTokens the prefix index saved computing.
	PromptTokens    uint64
	GeneratedTokens uint64
	PrefixHitTokens uint64
	Preemptions     uint64
	// KVBytesIn and KVBytesOut were moved for imports and exports; a handoff within one cache moves none.
	KVBytesIn  uint64
	KVBytesOut uint64
	// Busy is the time spent in steps, LastStepAge the time since the last one ended.
	Busy        time.Duration
	LastStepAge time.Duration
	// Handoffs counts requests that continued a KV handle; HandoffTotal and HandoffLast are how long it took from
	// accepting the request until its blocks were the engine's.
	Handoffs     uint64
	HandoffTotal time.Duration
	HandoffLast  time.Duration
	// StepLast is how long the last step took, StepMax the longest.
	StepLast time.Duration
	StepMax  time.Duration
	// ExportLast is how long the last hand-over to a KV handle took.
	ExportLast time.Duration
	// RoleSwitchLast is from the last SetRole to the first step that was planned under the new role.
	RoleSwitchLast time.Duration
	// Imports counts tickets whose KV came into the cache, ImportsFailed those whose did not.
	Imports       uint64
	ImportsFailed uint64
	// Recomputed counts requests whose KV did not come and was computed anew.
	Recomputed uint64
	// KVBytesHidden were pulled while their exporter was still computing, KVBytesExposed after it; KVExposedTotal and
	// KVExposedLast are how long imports took from their exporter being done.
	KVBytesHidden  uint64
	KVBytesExposed uint64
	KVExposedTotal time.Duration
	KVExposedLast  time.Duration
	// PrefillStepTokens is how many prompt tokens a step takes at most, under the present role: MaxBatchTokens, or what
	// was chosen by measurement.
	PrefillStepTokens int
	// Multiprocessors (SMs) of the device are what the engine's work runs on; 0 on the CPU.
	Multiprocessors int
	// PrefillTokensPerSecond is what steps of the chosen length were measured at; 0 if none was chosen (yet).
	PrefillTokensPerSecond uint64
}

// Metrics reads the engine's counters, without stopping it.
func (e *Engine) Metrics() (Metrics, error) {
	defer runtime.KeepAlive(e)
	m, err := capi.EngineMetrics(e.name)
	return Metrics{
		Running: m.Running, Waiting: m.Waiting,
		BlocksTotal: m.BlocksTotal, BlocksFree: m.BlocksFree,
		ExportsOpen: m.ExportsOpen, ImportsOpen: m.ImportsOpen,
		Role: Role(m.Role), Steps: m.Steps,
		PromptTokens: m.PromptTokens, GeneratedTokens: m.GeneratedTokens, PrefixHitTokens: m.PrefixHitTokens,
		Preemptions: m.Preemptions,
		KVBytesIn:   m.KVBytesIn, KVBytesOut: m.KVBytesOut,
		Busy: m.Busy, LastStepAge: m.LastStepAge,
		Handoffs: m.Handoffs, HandoffTotal: m.HandoffTotal, HandoffLast: m.HandoffLast,
		StepLast: m.StepLast, StepMax: m.StepMax,
		ExportLast: m.ExportLast, RoleSwitchLast: m.RoleSwitchLast,
		Imports: m.Imports, ImportsFailed: m.ImportsFailed, Recomputed: m.Recomputed,
		KVBytesHidden: m.KVBytesHidden, KVBytesExposed: m.KVBytesExposed,
		KVExposedTotal: m.KVExposedTotal, KVExposedLast: m.KVExposedLast,
		PrefillStepTokens: m.PrefillStepTokens, Multiprocessors: m.Multiprocessors,
		PrefillTokensPerSecond: m.PrefillTokensPerSecond,
	}, e.wrap(err)
}

// MetricsText returns the counters of every engine of the process as OpenMetrics text, for a scrape endpoint
// (application/openmetrics-text; version=1.0.0). Engines are told apart by the label engine, counted from 0 in order of
// creation.
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
