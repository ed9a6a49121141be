package cleave

import (
	"runtime"
	"sync"
	"sync/atomic"

	"cleave/go/internal/capi"
)

// object holds an object's name in the library, and makes sure that it is destroyed once. The library looks names up: a
// call on an object that another goroutine is closing ends like any other call, and a later one fails with NOT_FOUND.
type object struct {
	name    uintptr
	end     func()
	closed  atomic.Bool
	once    sync.Once
	cleanup runtime.Cleanup
}

// own makes outer, which embeds o, the owner of name. If outer is forgotten without a Close, the garbage collector
// causes end to run. end must not refer to outer. It may block, so it then gets its own goroutine.
func own[T any](outer *T, o *object, name uintptr, end func()) {
	o.name, o.end = name, end
	o.cleanup = runtime.AddCleanup(outer, func(end func()) { go end() }, end)
}

// close destroys the object. A second caller waits for the first.
func (o *object) close() error {
	o.once.Do(func() {
		o.cleanup.Stop()
		o.closed.Store(true)
		o.end()
	})
	return nil
}

// wrap converts an error of a call on the object, and adds ErrClosed if the object was closed.
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
