package capi

// #include "bridge.h"
import "C"

import "unsafe"

// Range is a range of the token array of a submission.
type Range struct{ Begin, Len uint32 }

// Request is cleave_request_desc_t.
type Request struct {
	Flags             uint32
	Tag               uint64
	KV                uint64
	Prompt            Range
	Stop              Range
	StopSequences     Range
	LogitBias         Range
	MaxNewTokens      uint32
	MinNewTokens      uint32
	TopK              uint32
	Priority          uint32
	Logprobs          int32
	Temperature       float32
	TopP              float32
	MinP              float32
	RepetitionPenalty float32
	PresencePenalty   float32
	FrequencyPenalty  float32
	Seed              uint64
	DeadlineUS        uint64
	CacheSalt         uint64
}

// Flags of a request.
const (
	RequestKeepKV           = C.CLEAVE_REQUEST_KEEP_KV
	RequestLogprobs         = C.CLEAVE_REQUEST_LOGPROBS
	RequestEmitPending      = C.CLEAVE_REQUEST_EMIT_PENDING
	RequestIgnoreEOS        = C.CLEAVE_REQUEST_IGNORE_EOS
	RequestOverrideSampling = C.CLEAVE_REQUEST_OVERRIDE_SAMPLING
	RequestStreamKV         = C.CLEAVE_REQUEST_STREAM_KV
	RequestRecompute        = C.CLEAVE_REQUEST_RECOMPUTE
)

// Submit is cleave_engine_submit. It returns the ids of the accepted requests: all, or those before the first refused
// one.
func Submit(engine uintptr, requests []Request, tokens []int32) ([]uint64, *Error) {
	var one [1]C.cleave_request_desc_t
	descs := one[:]
	if len(requests) != 1 {
		descs = make([]C.cleave_request_desc_t, len(requests))
	}
	for i := range requests {
		requests[i].fill(&descs[i])
	}
	ids := make([]uint64, len(requests))
	var n C.size_t
	var err C.cleave_error_t
	status := C.bridge_engine_submit(C.name_t(engine), unsafe.SliceData(descs), C.size_t(len(descs)),
		(*C.int32_t)(unsafe.SliceData(tokens)), C.size_t(len(tokens)), (*C.uint64_t)(unsafe.SliceData(ids)), &n, &err)
	return ids[:n], failure(status, &err)
}

func (r *Request) fill(c *C.cleave_request_desc_t) {
	c.struct_size = C.sizeof_cleave_request_desc_t
	c.flags = C.uint32_t(r.Flags)
	c.user_tag = C.uint64_t(r.Tag)
	c.kv = C.cleave_kv_t(r.KV)
	c.prompt_begin, c.prompt_len = C.uint32_t(r.Prompt.Begin), C.uint32_t(r.Prompt.Len)
	c.stop_begin, c.stop_len = C.uint32_t(r.Stop.Begin), C.uint32_t(r.Stop.Len)
	c.stop_sequences_begin, c.stop_sequences_len = C.uint32_t(r.StopSequences.Begin), C.uint32_t(r.StopSequences.Len)
	c.logit_bias_begin, c.logit_bias_len = C.uint32_t(r.LogitBias.Begin), C.uint32_t(r.LogitBias.Len)
	c.max_new_tokens = C.uint32_t(r.MaxNewTokens)
	c.min_new_tokens = C.uint32_t(r.MinNewTokens)
	c.top_k = C.uint32_t(r.TopK)
	c.priority = C.uint32_t(r.Priority)
	c.logprobs = C.int32_t(r.Logprobs)
	c.temperature = C.float(r.Temperature)
	c.top_p = C.float(r.TopP)
	c.min_p = C.float(r.MinP)
	c.repetition_penalty = C.float(r.RepetitionPenalty)
	c.presence_penalty = C.float(r.PresencePenalty)
	c.frequency_penalty = C.float(r.FrequencyPenalty)
	c.seed = C.uint64_t(r.Seed)
	c.deadline_us = C.uint64_t(r.DeadlineUS)
	c.cache_salt = C.uint64_t(r.CacheSalt)
}

// Cancel is cleave_engine_cancel.
func Cancel(engine uintptr, request uint64) *Error {
	var err C.cleave_error_t
	return failure(C.bridge_engine_cancel(C.name_t(engine), C.uint64_t(request), &err), &err)
}

// Export is cleave_engine_export.
func Export(engine uintptr, request uint64) *Error {
	var err C.cleave_error_t
	return failure(C.bridge_engine_export(C.name_t(engine), C.uint64_t(request), &err), &err)
}
