package capi

// #include "bridge.h"
import "C"

// EngineConfig is cleave_engine_config_t.
type EngineConfig struct {
	Role               uint32
	MaxSequences       uint32
	MaxBatchTokens     uint32
	Threads            uint32
	MaxWaiting         uint32
	LocalPrefillTokens uint32
	CPUMask            [16]uint64
	SMPercent          uint32
}

// EngineCreate is cleave_engine_create.
func EngineCreate(cache, queue uintptr, config *EngineConfig) (uintptr, *Error) {
	var out C.name_t
	var err C.cleave_error_t
	var c C.cleave_engine_config_t
	c.struct_size = C.sizeof_cleave_engine_config_t
	c.role = C.uint32_t(config.Role)
	c.max_sequences = C.uint32_t(config.MaxSequences)
	c.max_batch_tokens = C.uint32_t(config.MaxBatchTokens)
	c.threads = C.uint32_t(config.Threads)
	c.max_waiting = C.uint32_t(config.MaxWaiting)
	c.local_prefill_tokens = C.uint32_t(config.LocalPrefillTokens)
	for i, word := range config.CPUMask {
		c.cpu_mask[i] = C.uint64_t(word)
	}
	c.sm_percent = C.uint32_t(config.SMPercent)
	status := C.bridge_engine_create(C.name_t(cache), C.name_t(queue), &c, &out, &err)
	return uintptr(out), failure(status, &err)
}

// EngineSetRole is cleave_engine_set_role.
func EngineSetRole(engine uintptr, role uint32) *Error {
	var err C.cleave_error_t
	return failure(C.bridge_engine_set_role(C.name_t(engine), C.uint32_t(role), &err), &err)
}

// EngineSetSMPercent is cleave_engine_set_sm_percent.
func EngineSetSMPercent(engine uintptr, percent uint32) *Error {
	var err C.cleave_error_t
	return failure(C.bridge_engine_set_sm_percent(C.name_t(engine), C.uint32_t(percent), &err), &err)
}

// EngineDrain is cleave_engine_drain.
func EngineDrain(engine uintptr, timeoutMS uint32) *Error {
	var err C.cleave_error_t
	return failure(C.bridge_engine_drain(C.name_t(engine), C.uint32_t(timeoutMS), &err), &err)
}

// EngineDestroy is cleave_engine_destroy.
func EngineDestroy(engine uintptr) { C.bridge_engine_destroy(C.name_t(engine)) }
