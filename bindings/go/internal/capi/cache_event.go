package capi

// #include "bridge.h"
import "C"

import "unsafe"

// CacheEvent has the layout of cleave_cache_event_t, field by field: the library writes into a slice of CacheEvents. bridge.h
// checks the layout.
type CacheEvent struct {
	Sequence    uint64
	Type        uint32
	Medium      uint32
	BlockHash   uint64
	ParentHash  uint64
	CacheSalt   uint64
	Position    uint32
	Group       uint32
	TokensBegin uint32
	NTokens     uint32
	_           uint64
}

// CacheEventRange is cleave_cache_event_range_t.
type CacheEventRange struct {
	Events int
	Tokens int
	Next   uint64
	Oldest uint64
	End    uint64
}

func eventRange(c *C.cleave_cache_event_range_t) CacheEventRange {
	return CacheEventRange{
		Events: int(c.n_events),
		Tokens: int(c.n_tokens),
		Next:   uint64(c.next),
		Oldest: uint64(c.oldest),
		End:    uint64(c.end),
	}
}

// CacheEvents is cleave_cache_events. The range is filled also if the error is EXPIRED.
func CacheEvents(cache uintptr, next uint64, events []CacheEvent, tokens []int32, timeoutMS uint32) (CacheEventRange, *Error) {
	var c C.cleave_cache_event_range_t
	var err C.cleave_error_t
	c.struct_size = C.sizeof_cleave_cache_event_range_t
	status := C.bridge_cache_events(C.name_t(cache), C.uint64_t(next),
		(*C.cleave_cache_event_t)(unsafe.Pointer(unsafe.SliceData(events))), C.size_t(unsafe.Sizeof(CacheEvent{})),
		C.size_t(len(events)), (*C.int32_t)(unsafe.SliceData(tokens)), C.size_t(len(tokens)), C.uint32_t(timeoutMS), &c, &err)
	return eventRange(&c), failure(status, &err)
}

// CacheEventSnapshot is cleave_cache_event_snapshot. If there is not enough room, the range says how much is needed.
func CacheEventSnapshot(cache uintptr, events []CacheEvent, tokens []int32) (CacheEventRange, *Error) {
	var c C.cleave_cache_event_range_t
	var err C.cleave_error_t
	c.struct_size = C.sizeof_cleave_cache_event_range_t
	status := C.bridge_cache_event_snapshot(C.name_t(cache), (*C.cleave_cache_event_t)(unsafe.Pointer(unsafe.SliceData(events))),
		C.size_t(unsafe.Sizeof(CacheEvent{})), C.size_t(len(events)), (*C.int32_t)(unsafe.SliceData(tokens)),
		C.size_t(len(tokens)), &c, &err)
	return eventRange(&c), failure(status, &err)
}
