package capi

// #include "bridge.h"
//
// extern void cleave_go_log(uintptr_t user_data, int32_t level, const char *target, const char *message);
import "C"

import "sync"

// LogSink receives one message of the library's log.
type LogSink func(level int32, target, message string)

// sinks maps the number that the library passes back to the sink it stands for. set tells whether the LogSet call that
// registered the sink has returned.
var sinks = struct {
	sync.Mutex
	last uintptr
	all  map[uintptr]*sink
}{all: map[uintptr]*sink{}}

type sink struct {
	call LogSink
	set  bool
}

// LogSet is cleave_log_set; a nil sink turns the log off. As in C, the library refuses a call from within a sink.
func LogSet(level int32, call LogSink) *Error {
	var fn C.cleave_log_fn
	sinks.Lock()
	sinks.last++
	id := sinks.last
	var replaced []uintptr
	for old, s := range sinks.all {
		if s.set {
			replaced = append(replaced, old)
		}
	}
	if call == nil {
		level = C.CLEAVE_LOG_OFF
	} else {
		sinks.all[id] = &sink{call: call}
		fn = C.cleave_log_fn(C.cleave_go_log)
	}
	sinks.Unlock()

	// The lock is not held here, because the call waits for the sink that it replaces.
	var text C.cleave_error_t
	err := failure(C.cleave_log_set(C.int32_t(level), fn, C.uintptr_t(id), &text), &text)

	sinks.Lock()
	defer sinks.Unlock()
	if err != nil {
		delete(sinks.all, id)
		return err
	}
	// Sinks that were set before this call began are never called again. If two calls run at once, neither knows which
	// came first, and both sinks stay until the next call.
	for _, old := range replaced {
		delete(sinks.all, old)
	}
	if s := sinks.all[id]; s != nil {
		s.set = true
	}
	return nil
}

//export cleaveGoLog
func cleaveGoLog(id C.uintptr_t, level C.int32_t, target, message *C.char) {
	sinks.Lock()
	s := sinks.all[uintptr(id)]
	sinks.Unlock()
	if s != nil {
		s.call(int32(level), C.GoString(target), C.GoString(message))
	}
}
