package capi

// #include "bridge.h"
//
// extern int32_t cleaveGoProgress(uintptr_t user_data, uint64_t done, uint64_t total);
import "C"

import (
	"runtime/cgo"
	"unsafe"
)

// Progress receives the number of bytes loaded so far and in total. It returns whether to continue.
type Progress func(done, total uint64) bool

// watched holds a Progress that the library calls, and the value with which it panicked.
type watched struct {
	call     Progress
	panicked any
}

//export cleaveGoProgress
func cleaveGoProgress(id C.uintptr_t, done, total C.uint64_t) (answer C.int32_t) {
	w := cgo.Handle(id).Value().(*watched)
	// The panic is raised again after the library's call has returned, because it must not unwind through C.
	defer func() {
		if w.panicked = recover(); w.panicked != nil {
			answer = 1
		}
	}()
	if w.call(uint64(done), uint64(total)) {
		return 0
	}
	return 1
}

// CacheConfig is cleave_cache_config_t.
type CacheConfig struct {
	BlockTokens    uint32
	DType          uint32
	Flags          uint32
	BytesPerDevice uint64
	LeaseMS        uint32
	Secret         [32]byte
	PeerTimeoutMS  uint32
	EventsKept     uint32
}

// Flags of a cache and of a listener.
const (
	CacheNoPrefix     = C.CLEAVE_CACHE_NO_PREFIX
	CacheNoConvert    = C.CLEAVE_CACHE_NO_CONVERT
	CacheShareWeights = C.CLEAVE_CACHE_SHARE_WEIGHTS
	ListenEncrypt     = C.CLEAVE_LISTEN_ENCRYPT
	ListenPlaintext   = C.CLEAVE_LISTEN_PLAINTEXT
)

// CacheCreate is cleave_cache_create, or cleave_cache_create_with_progress if progress is not nil.
func CacheCreate(model uintptr, devices []int32, config *CacheConfig, progress Progress) (uintptr, *Error) {
	var out C.name_t
	var err C.cleave_error_t
	var c C.cleave_cache_config_t
	c.struct_size = C.sizeof_cleave_cache_config_t
	c.block_tokens = C.uint32_t(config.BlockTokens)
	c.dtype = C.uint32_t(config.DType)
	c.flags = C.uint32_t(config.Flags)
	c.bytes_per_device = C.uint64_t(config.BytesPerDevice)
	c.lease_ms = C.uint32_t(config.LeaseMS)
	c.peer_timeout_ms = C.uint32_t(config.PeerTimeoutMS)
	c.events_kept = C.uint32_t(config.EventsKept)
	for i, b := range config.Secret {
		c.secret[i] = C.uint8_t(b)
	}
	ordinals, n := (*C.int32_t)(unsafe.SliceData(devices)), C.size_t(len(devices))
	if progress == nil {
		status := C.bridge_cache_create(C.name_t(model), ordinals, n, &c, &out, &err)
		return uintptr(out), failure(status, &err)
	}
	w := &watched{call: progress}
	id := cgo.NewHandle(w)
	defer id.Delete()
	status := C.bridge_cache_create_with_progress(C.name_t(model), ordinals, n, &c,
		C.cleave_progress_fn(C.cleaveGoProgress), C.uintptr_t(id), &out, &err)
	if w.panicked != nil {
		panic(w.panicked)
	}
	return uintptr(out), failure(status, &err)
}

// CacheDestroy is cleave_cache_destroy.
func CacheDestroy(cache uintptr) { C.bridge_cache_destroy(C.name_t(cache)) }

// CacheListen is cleave_cache_listen. An empty advertise is passed as NULL.
func CacheListen(cache uintptr, address, advertise string, flags uint32) (uint16, *Error) {
	var port C.uint16_t
	var err C.cleave_error_t
	caddress, bad := cString("the address", address)
	if bad != nil {
		return 0, bad
	}
	var cadvertise *C.char
	if advertise != "" {
		if cadvertise, bad = cString("the advertised address", advertise); bad != nil {
			return 0, bad
		}
	}
	status := C.bridge_cache_listen(C.name_t(cache), caddress, cadvertise, C.uint32_t(flags), &port, &err)
	return uint16(port), failure(status, &err)
}

// CacheAddress is cleave_cache_address.
func CacheAddress(cache uintptr) ([]byte, *Error) {
	return enough(1024, func(buf *byte, capacity C.size_t, n *C.size_t) *Error {
		var err C.cleave_error_t
		status := C.bridge_cache_address(C.name_t(cache), bytes(buf), capacity, n, &err)
		return failure(status, &err)
	})
}

// PairReport is cleave_pair_report_t.
type PairReport struct {
	Transport      uint32
	Reason         uint32
	BytesPerSecond uint64
	RTTNanoseconds uint64
	Detail         string
}

// CachePair is cleave_cache_pair. The report is filled even if the pair is refused.
func CachePair(cache uintptr, address []byte, transport uint32) (PairReport, *Error) {
	var c C.cleave_pair_report_t
	var err C.cleave_error_t
	c.struct_size = C.sizeof_cleave_pair_report_t
	status := C.bridge_cache_pair(C.name_t(cache), bytes(unsafe.SliceData(address)), C.size_t(len(address)),
		C.uint32_t(transport), &c, &err)
	return PairReport{
		Transport:      uint32(c.transport),
		Reason:         uint32(c.reason),
		BytesPerSecond: uint64(c.bytes_per_second),
		RTTNanoseconds: uint64(c.rtt_ns),
		Detail:         text(c.detail[:]),
	}, failure(status, &err)
}

// Audit is cleave_audit_t.
type Audit struct {
	ByRequests    int
	ByTransfers   int
	ByExports     int
	ByPrefixIndex int
	Leaked        int
	Total         int
	Free          int
}

// CacheAudit is cleave_cache_audit.
func CacheAudit(cache uintptr) (Audit, *Error) {
	var c C.cleave_audit_t
	c.struct_size = C.sizeof_cleave_audit_t
	var err C.cleave_error_t
	status := C.bridge_cache_audit(C.name_t(cache), &c, &err)
	return Audit{
		ByRequests:    int(c.by_requests),
		ByTransfers:   int(c.by_transfers),
		ByExports:     int(c.by_exports),
		ByPrefixIndex: int(c.by_prefix_index),
		Leaked:        int(c.leaked),
		Total:         int(c.total),
		Free:          int(c.free),
	}, failure(status, &err)
}
