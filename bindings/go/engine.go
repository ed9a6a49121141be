package cleave

import (
	"context"
	"runtime"
	"time"

	"cleave/go/internal/capi"
)

// Role is the purpose of an engine.
type Role uint32

// Roles.
const (
	// RoleMixed prefills and decodes.
	RoleMixed Role = iota
	// RolePrefill: requests end with [FinishPrefilled] and a KV handle after their first token.
	RolePrefill
	// RoleDecode is meant for requests that continue a KV handle; it computes short prompts too.
	RoleDecode
)

// EngineConfig is how an engine is made. The zero value means default in every field.
type EngineConfig struct {
	Role Role
	// Queue is the queue that it reports to. Default: one of its own, which ends with it.
	Queue *Queue
	// MaxSequences run at once. Default: 64.
	MaxSequences int
	// MaxBatchTokens is how many tokens a step computes at most: it bounds how long one step takes. Default: 512; on a CUDA
	// device, as many prompt tokens as saturate it, measured while the engine has nothing to do.
	MaxBatchTokens int
	// Threads compute. Default: as many as the CPUs of CPUs, else as those that the process may run on.
	Threads int
	// MaxWaiting is how many accepted requests wait beyond those that run, before [ErrWouldBlock]. Default: 1024.
	MaxWaiting int
	// LocalPrefillTokens, while the role is decode: a prompt without a KV handle that has more tokens to compute than
	// this, cached ones not counted, is refused with [ErrPrefillElsewhere]. Default: no limit.
	LocalPrefillTokens int
	// CPUs are those that the engine's threads may run on, 0 to 1023. Default: wherever the system puts them.
	CPUs []int
	// SMPercent is the share of a CUDA device's multiprocessors (SMs) that the engine's kernels run on, as near as the
	// driver's groups of them come to it; [Metrics] has the number. Shares that are 100 together do not overlap. Default: all.
	SMPercent int
}

// Engine is a step thread over a cache, with a role. Its methods may be called from any goroutine.
type Engine struct {
	object
	cache  *Cache
	shared *Queue // nil: queue is its own
	queue  *dispatcher
}

// NewEngine starts an engine over the cache: threads, and memory for the largest step. It keeps the cache and the queue
// alive in memory, whatever becomes of these.
//
// Errors: [ErrInvalidArgument], [ErrOutOfMemory], [ErrWouldBlock] (the queue is full), [ErrShutdown] and [ErrNotFound]
// (the cache or the queue was closed).
func (c *Cache) NewEngine(config EngineConfig) (*Engine, error) {
	defer runtime.KeepAlive(c)
	var n numbers
	cc := capi.EngineConfig{
		Role:               uint32(config.Role),
		MaxSequences:       n.uint32("MaxSequences", config.MaxSequences),
		MaxBatchTokens:     n.uint32("MaxBatchTokens", config.MaxBatchTokens),
		Threads:            n.uint32("Threads", config.Threads),
		MaxWaiting:         n.uint32("MaxWaiting", config.MaxWaiting),
		LocalPrefillTokens: n.uint32("LocalPrefillTokens", config.LocalPrefillTokens),
		SMPercent:          n.uint32("SMPercent", config.SMPercent),
	}
	for _, cpu := range config.CPUs {
		if cpu < 0 || cpu >= 64*len(cc.CPUMask) {
			n.fail("CPUs", cpu)
			continue
		}
		cc.CPUMask[cpu/64] |= 1 << (cpu % 64)
	}
	if n.err != nil {
		return nil, n.err
	}
	queue := (*dispatcher)(nil)
	if config.Queue != nil {
		queue = config.Queue.dispatcher
		defer runtime.KeepAlive(config.Queue)
	} else {
		var err error
		if queue, err = newDispatcher(0); err != nil {
			return nil, err
		}
	}
	name, e := capi.EngineCreate(c.name, queue.name, &cc)
	if e != nil {
		if config.Queue == nil {
			queue.close()
		} else if config.Queue.closed.Load() {
			return nil, config.Queue.wrap(e)
		}
		return nil, c.wrap(e)
	}
	engine := &Engine{cache: c, shared: config.Queue, queue: queue}
	ownQueue := config.Queue == nil
	own(engine, &engine.object, name, func() {
		capi.EngineDestroy(name)
		if ownQueue {
			queue.close()
		}
	})
	return engine, nil
}

// Close ends the engine, which takes as long as the step that runs: every request that is still open ends with
// [ErrShutdown], and what was generated of it can be read. It always returns nil, and does nothing the second time.
func (e *Engine) Close() error { return e.close() }

// SetRole changes what the engine is for, from its next step on. Running work goes on; weights, cache and memory are not
// touched. Errors: [ErrInvalidArgument], [ErrShutdown].
func (e *Engine) SetRole(role Role) error {
	defer runtime.KeepAlive(e)
	return e.wrap(capi.EngineSetRole(e.name, uint32(role)))
}

// SetSMPercent changes the share of a CUDA device's multiprocessors that the engine's kernels run on, from its next step
// on; 0 or 100: all. After an error the engine keeps the share it had. Errors: [ErrInvalidArgument], [ErrUnsupported] (the
// CPU, or a driver or device without parts), [ErrOutOfMemory], [ErrDevice], [ErrShutdown].
func (e *Engine) SetSMPercent(percent int) error {
	defer runtime.KeepAlive(e)
	var n numbers
	value := n.uint32("percent", percent)
	if n.err != nil {
		return n.err
	}
	return e.wrap(capi.EngineSetSMPercent(e.name, value))
}

// drainSlice is how long Drain keeps a thread in the library at a time, and how late it may see its context's end.
const drainSlice = 20 * time.Millisecond

// Drain refuses new requests ([ErrShutdown]) from now on and waits until all accepted ones have ended, or ctx has: then
// the engine is still draining, and another Drain goes on waiting. Errors: ctx's, [ErrShutdown] (closed meanwhile).
func (e *Engine) Drain(ctx context.Context) error {
	defer runtime.KeepAlive(e)
	for timeout := time.Duration(0); ; timeout = drainSlice {
		err := capi.EngineDrain(e.name, uint32(timeout.Milliseconds()))
		if err == nil || Code(err.Status) != ErrTimeout {
			return e.wrap(err)
		}
		if ctx.Err() != nil {
			return contextError(ctx)
		}
	}
}

// Failed returns a channel that is closed once the engine has failed: it takes no more requests, and those that it had
// end with an error. Of engines that share a queue the library does not tell which one it was, and it is closed for all
// of them.
func (e *Engine) Failed() <-chan struct{} { return e.queue.failed }

// Err returns why the engine has failed, or nil; see [Engine.Failed].
func (e *Engine) Err() error { return e.queue.err() }
