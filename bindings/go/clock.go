package cleave

import (
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// clock is one moment on both clocks: the events' (CLOCK_MONOTONIC) and Go's, which does not show that it is the same.
var clock = sync.OnceValue(func() (c struct {
	now       time.Time
	monotonic int64
}) {
	const clockMonotonic = 1
	var t syscall.Timespec
	c.now = time.Now()
	// Fails only for a clock that there is not.
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&t)), 0)
	c.monotonic = t.Nano()
	return c
})

func monotonicTime(ns uint64) time.Time {
	c := clock()
	return c.now.Add(time.Duration(int64(ns) - c.monotonic))
}
