package capi

// #include "bridge.h"
import "C"

import "time"

// Metrics is cleave_metrics_t.
type Metrics struct {
	Running         int
	Waiting         int
	BlocksTotal     int
	BlocksFree      int
	ExportsOpen     int
	ImportsOpen     int
	Role            uint32
	Steps           uint64
	PromptTokens    uint64
	GeneratedTokens uint64
	PrefixHitTokens uint64
	Preemptions     uint64
	KVBytesIn       uint64
	KVBytesOut      uint64
	Busy            time.Duration
	LastStepAge     time.Duration
	Handoffs        uint64
	HandoffTotal    time.Duration
	HandoffLast     time.Duration
	StepLast        time.Duration
	StepMax         time.Duration
	ExportLast      time.Duration
	RoleSwitchLast  time.Duration
	Imports         uint64
	ImportsFailed   uint64
	Recomputed      uint64
	KVBytesHidden   uint64
	KVBytesExposed  uint64
	KVExposedTotal  time.Duration
	KVExposedLast   time.Duration

	PrefillStepTokens      int
	Multiprocessors        int
	PrefillTokensPerSecond uint64
}

// EngineMetrics is cleave_engine_metrics.
func EngineMetrics(engine uintptr) (Metrics, *Error) {
	var c C.cleave_metrics_t
	c.struct_size = C.sizeof_cleave_metrics_t
	var err C.cleave_error_t
	status := C.bridge_engine_metrics(C.name_t(engine), &c, &err)
	return Metrics{
		Running:         int(c.running),
		Waiting:         int(c.waiting),
		BlocksTotal:     int(c.blocks_total),
		BlocksFree:      int(c.blocks_free),
		ExportsOpen:     int(c.exports_open),
		ImportsOpen:     int(c.imports_open),
		Role:            uint32(c.role),
		Steps:           uint64(c.steps),
		PromptTokens:    uint64(c.prompt_tokens),
		GeneratedTokens: uint64(c.generated_tokens),
		PrefixHitTokens: uint64(c.prefix_hit_tokens),
		Preemptions:     uint64(c.preemptions),
		KVBytesIn:       uint64(c.kv_bytes_in),
		KVBytesOut:      uint64(c.kv_bytes_out),
		Busy:            time.Duration(c.busy_ns),
		LastStepAge:     time.Duration(c.last_step_age_ns),
		Handoffs:        uint64(c.handoffs),
		HandoffTotal:    time.Duration(c.handoff_ns_total),
		HandoffLast:     time.Duration(c.handoff_ns_last),
		StepLast:        time.Duration(c.step_ns_last),
		StepMax:         time.Duration(c.step_ns_max),
		ExportLast:      time.Duration(c.export_ns_last),
		RoleSwitchLast:  time.Duration(c.role_switch_ns_last),
		Imports:         uint64(c.imports),
		ImportsFailed:   uint64(c.imports_failed),
		Recomputed:      uint64(c.recomputed),
		KVBytesHidden:   uint64(c.kv_bytes_hidden),
		KVBytesExposed:  uint64(c.kv_bytes_exposed),
		KVExposedTotal:  time.Duration(c.kv_exposed_ns_total),
		KVExposedLast:   time.Duration(c.kv_exposed_ns_last),

		PrefillStepTokens:      int(c.prefill_step_tokens),
		Multiprocessors:        int(c.multiprocessors),
		PrefillTokensPerSecond: uint64(c.prefill_tokens_per_second),
	}, failure(status, &err)
}

// MetricsText is cleave_metrics_text.
func MetricsText() ([]byte, *Error) {
	return enough(8192, func(buf *byte, capacity C.size_t, n *C.size_t) *Error {
		var err C.cleave_error_t
		return failure(C.cleave_metrics_text(chars(buf), capacity, n, &err), &err)
	})
}

// DeviceCPU is CLEAVE_DEVICE_CPU.
const DeviceCPU = C.CLEAVE_DEVICE_CPU

// DeviceInfo is cleave_device_info_t.
type DeviceInfo struct {
	Ordinal           int
	ComputeCapability int
	NUMANode          int
	TotalBytes        uint64
	FreeBytes         uint64
	UUID              string
	Name              string
}

// DeviceCount is cleave_device_count.
func DeviceCount() int { return int(C.cleave_device_count()) }

// GetDeviceInfo is cleave_device_info.
func GetDeviceInfo(ordinal int32) (DeviceInfo, *Error) {
	var c C.cleave_device_info_t
	c.struct_size = C.sizeof_cleave_device_info_t
	var err C.cleave_error_t
	status := C.cleave_device_info(C.int32_t(ordinal), &c, &err)
	return DeviceInfo{
		Ordinal:           int(c.ordinal),
		ComputeCapability: int(c.compute_capability),
		NUMANode:          int(c.numa_node),
		TotalBytes:        uint64(c.total_bytes),
		FreeBytes:         uint64(c.free_bytes),
		UUID:              text(c.uuid[:]),
		Name:              text(c.name[:]),
	}, failure(status, &err)
}
