package core

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Causes for which the server itself ends a request.
var (
	ErrShuttingDown = errors.New("the server is shutting down")
	ErrAborted      = errors.New("the request was aborted")
)

// Requests are the requests that run. The zero value is ready for use.
type Requests struct {
	mu      sync.Mutex
	closing bool
	running map[*running]struct{}
	byID    map[string][]*running
}

type running struct {
	id     string
	cancel context.CancelCauseFunc
}

// Begin registers a request, under an id that other requests may have too, or without one. The caller ends it with `end`.
// The context ends when the request is aborted, or when the server shuts down.
func (r *Requests) Begin(ctx context.Context, id string) (_ context.Context, end func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing {
		return nil, nil, ErrShuttingDown
	}
	if r.running == nil {
		r.running, r.byID = make(map[*running]struct{}), make(map[string][]*running)
	}
	one := &running{id: id}
	ctx, one.cancel = context.WithCancelCause(ctx)
	r.running[one] = struct{}{}
	if id != "" {
		r.byID[id] = append(r.byID[id], one)
	}
	return ctx, func() { r.end(one) }, nil
}

func (r *Requests) end(one *running) {
	one.cancel(nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, one)
	left := slices.DeleteFunc(r.byID[one.id], func(other *running) bool { return other == one })
	if r.byID[one.id] = left; len(left) == 0 {
		delete(r.byID, one.id)
	}
}

// Abort ends the requests with an id, and returns their number.
func (r *Requests) Abort(id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.byID[id] {
		one.cancel(ErrAborted)
	}
	return len(r.byID[id])
}

// AbortAll ends all requests.
func (r *Requests) AbortAll(cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for one := range r.running {
		one.cancel(cause)
	}
}

// Running returns the number of requests.
func (r *Requests) Running() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.running)
}

// Close refuses new requests from now on.
func (r *Requests) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closing = true
}

// Closing tells whether new requests are refused.
func (r *Requests) Closing() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closing
}

// Wait waits until no request runs, or ctx ends.
func (r *Requests) Wait(ctx context.Context) {
	for r.Running() > 0 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
}
