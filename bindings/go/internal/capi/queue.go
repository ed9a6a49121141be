package capi

// #include "bridge.h"
// #cgo noescape bridge_queue_poll
// #cgo nocallback bridge_queue_poll
import "C"

import "unsafe"

// Event has the layout of cleave_event_t, field by field: cleave_queue_poll writes into a slice of Events. bridge.h
// checks the layout.
type Event struct {
	Type         uint32
	FinishReason uint32
	Status       int32
	Token        int32
	Tag          uint64
	Request      uint64
	KV           uint64
	TimestampNS  uint64
	Index        uint32
	Logprob      float32
	CachedTokens uint32
	Flags        uint32
}

// Types of events, reasons of FINISHED events, and their flags.
const (
	EventToken           = C.CLEAVE_EVENT_TOKEN
	EventFinished        = C.CLEAVE_EVENT_FINISHED
	EventKVReady         = C.CLEAVE_EVENT_KV_READY
	EventEngineFailed    = C.CLEAVE_EVENT_ENGINE_FAILED
	EventTopLogprob      = C.CLEAVE_EVENT_TOP_LOGPROB
	EventKVStreamStarted = C.CLEAVE_EVENT_KV_STREAM_STARTED

	FinishStop      = C.CLEAVE_FINISH_STOP
	FinishLength    = C.CLEAVE_FINISH_LENGTH
	FinishPrefilled = C.CLEAVE_FINISH_PREFILLED
	FinishExported  = C.CLEAVE_FINISH_EXPORTED
	FinishError     = C.CLEAVE_FINISH_ERROR

	EventRecomputed = C.CLEAVE_EVENT_RECOMPUTED
)

// QueueCreate is cleave_queue_create.
func QueueCreate(capacity uint32) (uintptr, *Error) {
	var out C.name_t
	var err C.cleave_error_t
	status := C.bridge_queue_create(C.uint32_t(capacity), &out, &err)
	return uintptr(out), failure(status, &err)
}

// QueueDestroy is cleave_queue_destroy.
func QueueDestroy(queue uintptr) { C.bridge_queue_destroy(C.name_t(queue)) }

// QueueFD is cleave_queue_fd.
func QueueFD(queue uintptr) int { return int(C.bridge_queue_fd(C.name_t(queue))) }

// Poll is cleave_queue_poll without waiting. It allocates nothing.
func Poll(queue uintptr, events []Event) (int, int32) {
	var n C.size_t
	status := C.bridge_queue_poll(C.name_t(queue), (*C.cleave_event_t)(unsafe.Pointer(unsafe.SliceData(events))), C.size_t(unsafe.Sizeof(Event{})),
		C.size_t(len(events)), &n)
	return int(n), int32(status)
}
