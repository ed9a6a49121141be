package capi

// #include "bridge.h"
// #cgo noescape bridge_kv_read_image
// #cgo nocallback bridge_kv_read_image
import "C"

import "unsafe"

// KVInfo is cleave_kv_info_t.
type KVInfo struct {
	Tokens      uint32
	Computed    uint32
	Blocks      uint32
	Flags       uint32
	TicketBytes uint64
	ImageBytes  uint64
	LeaseLeftMS uint64
	Fingerprint [32]byte
}

// Flags of a handle.
const (
	KVImporting = C.CLEAVE_KV_IMPORTING
	KVStreaming = C.CLEAVE_KV_STREAMING
)

// GetKVInfo is cleave_kv_info.
func GetKVInfo(cache uintptr, kv uint64) (KVInfo, *Error) {
	var c C.cleave_kv_info_t
	c.struct_size = C.sizeof_cleave_kv_info_t
	var err C.cleave_error_t
	if status := C.bridge_kv_info(C.name_t(cache), C.uint64_t(kv), &c, &err); status != C.CLEAVE_OK {
		return KVInfo{}, failure(status, &err)
	}
	info := KVInfo{
		Tokens:      uint32(c.n_tokens),
		Computed:    uint32(c.n_computed),
		Blocks:      uint32(c.n_blocks),
		Flags:       uint32(c.flags),
		TicketBytes: uint64(c.ticket_bytes),
		ImageBytes:  uint64(c.image_bytes),
		LeaseLeftMS: uint64(c.lease_left_ms),
	}
	for i, b := range c.fingerprint {
		info.Fingerprint[i] = byte(b)
	}
	return info, nil
}

// KVTokens is cleave_kv_tokens.
func KVTokens(cache uintptr, kv uint64) ([]int32, *Error) {
	return enough(256, func(buf *int32, capacity C.size_t, n *C.size_t) *Error {
		var err C.cleave_error_t
		status := C.bridge_kv_tokens(C.name_t(cache), C.uint64_t(kv), (*C.int32_t)(buf), capacity, n, &err)
		return failure(status, &err)
	})
}

// KVSetHostData is cleave_kv_set_host_data.
func KVSetHostData(cache uintptr, kv uint64, data []byte) *Error {
	var err C.cleave_error_t
	status := C.bridge_kv_set_host_data(C.name_t(cache), C.uint64_t(kv), bytes(unsafe.SliceData(data)),
		C.size_t(len(data)), &err)
	return failure(status, &err)
}

// KVHostData is cleave_kv_host_data.
func KVHostData(cache uintptr, kv uint64) ([]byte, *Error) {
	return enough(64, func(buf *byte, capacity C.size_t, n *C.size_t) *Error {
		var err C.cleave_error_t
		status := C.bridge_kv_host_data(C.name_t(cache), C.uint64_t(kv), bytes(buf), capacity, n, &err)
		return failure(status, &err)
	})
}

// KVTicket is cleave_kv_ticket.
func KVTicket(cache uintptr, kv uint64) ([]byte, *Error) {
	return enough(2048, func(buf *byte, capacity C.size_t, n *C.size_t) *Error {
		var err C.cleave_error_t
		status := C.bridge_kv_ticket(C.name_t(cache), C.uint64_t(kv), bytes(buf), capacity, n, &err)
		return failure(status, &err)
	})
}

// KVReadImage is cleave_kv_read_image.
func KVReadImage(cache uintptr, kv, offset uint64, buf []byte) (int, *Error) {
	var n C.size_t
	var err C.cleave_error_t
	status := C.bridge_kv_read_image(C.name_t(cache), C.uint64_t(kv), C.uint64_t(offset), bytes(unsafe.SliceData(buf)),
		C.size_t(len(buf)), &n, &err)
	return int(n), failure(status, &err)
}

// KVImport is cleave_kv_import.
func KVImport(cache, queue uintptr, data []byte, tag uint64) (uint64, *Error) {
	var kv C.uint64_t
	var err C.cleave_error_t
	status := C.bridge_kv_import(C.name_t(cache), C.name_t(queue), bytes(unsafe.SliceData(data)), C.size_t(len(data)),
		C.uint64_t(tag), &kv, &err)
	return uint64(kv), failure(status, &err)
}

// KVSave is cleave_kv_save.
func KVSave(cache uintptr, kv uint64, path string) *Error {
	var err C.cleave_error_t
	cpath, bad := cString("the path", path)
	if bad != nil {
		return bad
	}
	return failure(C.bridge_kv_save(C.name_t(cache), C.uint64_t(kv), cpath, &err), &err)
}

// KVLoad is cleave_kv_load.
func KVLoad(cache uintptr, path string) (uint64, *Error) {
	var kv C.uint64_t
	var err C.cleave_error_t
	cpath, bad := cString("the path", path)
	if bad != nil {
		return 0, bad
	}
	status := C.bridge_kv_load(C.name_t(cache), cpath, &kv, &err)
	return uint64(kv), failure(status, &err)
}

// KVDuplicate is cleave_kv_duplicate.
func KVDuplicate(cache uintptr, kv uint64) (uint64, *Error) {
	var out C.uint64_t
	var err C.cleave_error_t
	status := C.bridge_kv_duplicate(C.name_t(cache), C.uint64_t(kv), &out, &err)
	return uint64(out), failure(status, &err)
}

// KVRenew is cleave_kv_renew.
func KVRenew(cache uintptr, kv uint64, leaseMS uint32) *Error {
	var err C.cleave_error_t
	return failure(C.bridge_kv_renew(C.name_t(cache), C.uint64_t(kv), C.uint32_t(leaseMS), &err), &err)
}

// KVRelease is cleave_kv_release.
func KVRelease(cache uintptr, kv uint64) *Error {
	var err C.cleave_error_t
	return failure(C.bridge_kv_release(C.name_t(cache), C.uint64_t(kv), &err), &err)
}
