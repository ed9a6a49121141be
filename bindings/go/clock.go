package cleave

import (
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// clock is one instant on two clocks: CLOCK_MONOTONIC, which event times use, and Go's, which hides its monotonic
// reading.
var clock = sync.OnceValue(func() (c struct {
	now       time.Time
	monotonic int64
}) {
	const clockMonotonic = 1
	var t syscall.Timespec
	c.now = time.Now()
	// ClockGettime fails only if the clock does not exist.
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&t)), 0)
	c.monotonic = t.Nano()
	return c
})

func monotonicTime(ns uint64) time.Time {
	c := clock()
	return c.now.Add(time.Duration(int64(ns) - c.monotonic))
}
