package cleave

import (
	"runtime"
	"sync"
	"sync/atomic"

	"cleave/go/internal/capi"
)

// object is what every object of the library has: its name, and an end that comes once. The library looks names up, so
// that a call on an object that another goroutine closes at that moment ends as any other, and a later one with
// NOT_FOUND.
type object struct {
	name    uintptr
	end     func()
	closed  atomic.Bool
	once    sync.Once
	cleanup runtime.Cleanup
}

// own makes outer, which embeds o, the owner of name. If outer is forgotten without a Close, end runs once the garbage
// collector has found out; it must not refer to outer. As end may wait, it gets a goroutine then.
func own[T any](outer *T, o *object, name uintptr, end func()) {
	o.name, o.end = name, end
	o.cleanup = runtime.AddCleanup(outer, func(end func()) { go end() }, end)
}

// close ends the object. Who comes second waits for the first.
func (o *object) close() error {
	o.once.Do(func() {
		o.cleanup.Stop()
		o.closed.Store(true)
		o.end()
	})
	return nil
}

// wrap makes an error of what a call on the object gave, which is ErrClosed too if that is why.
func (o *object) wrap(e *capi.Error) error {
	if e == nil {
		return nil
	}
	err := newError(Code(e.Status), e.Message)
	if o.closed.Load() && (err.Code == ErrNotFound || err.Code == ErrShutdown) {
		err.causes = []error{ErrClosed}
	}
	return err
}
