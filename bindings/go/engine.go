package cleave

import (
	"context"
	"runtime"
	"time"

	"cleave/go/internal/capi"
)

// Role is the purpose of an engine.
type Role uint32

// Roles of an engine.
const (
	// RoleMixed prefills and decodes.
	RoleMixed Role = iota
	// RolePrefill computes prompts: a request ends with [FinishPrefilled] and a KV handle after its first token.
	RolePrefill
	// RoleDecode is meant for requests that continue a KV handle; it also computes short prompts.
	RoleDecode
)

// EngineConfig configures an engine. The zero value means default in every field.
type EngineConfig struct {
	Role Role
	// Queue receives the engine's events. Default: a queue of its own, which is closed with the engine.
	Queue *Queue
	// MaxSequences is the largest number of sequences that run at once. Default: 64.
	MaxSequences int
	// MaxBatchTokens is the largest number of tokens computed in a step, which limits the duration of a step. Default:
	// 512; on a CUDA device, the number of prompt tokens that saturates it, measured while the engine is idle.
	MaxBatchTokens int
	// Threads is the number of compute threads. Default: the number of CPUs in CPUs or, without that, the number of
	// CPUs that the process may use.
	Threads int
	// MaxWaiting is the number of accepted requests that may wait beyond the running ones; more get [ErrWouldBlock].
	// Default: 1024.
	MaxWaiting int
	// LocalPrefillTokens limits prompts while the role is decode. A prompt without a KV handle that has more uncached
	// tokens than this is refused with [ErrPrefillElsewhere]. Default: no limit.
	LocalPrefillTokens int
	// CPUs lists the CPUs, 0 to 1023, that the engine's threads may run on. Default: the system's choice.
	CPUs []int
	// SMPercent is the share of a CUDA device's multiprocessors (SMs) that the engine's kernels run on. The driver
	// hands out SMs in groups, so the share is approximate; [Metrics] has the exact number. Shares that add up to 100
	// do not overlap. Default: all.
	SMPercent int
}

// Engine runs requests over a cache, on a step thread, in a [Role]. Its methods may be called from any goroutine.
type Engine struct {
	object
	cache  *Cache
	shared *Queue // nil if the engine has its own queue
	queue  *dispatcher
}

// NewEngine starts an engine over the cache: it starts threads and allocates memory for the largest step. The engine
// keeps what it needs of the cache and the queue in memory, even after these are closed.
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

// Close destroys the engine once the current step has ended. Every open request ends with [ErrShutdown], and its tokens
// so far can still be read. Close always returns nil, and does nothing the second time.
func (e *Engine) Close() error { return e.close() }

// SetRole changes the engine's role from its next step on. Running requests continue; weights, cache and memory are not
// touched. [Engine.Load] tells when the role is in effect. Errors: [ErrInvalidArgument], [ErrShutdown].
func (e *Engine) SetRole(role Role) error {
	defer runtime.KeepAlive(e)
	return e.wrap(capi.EngineSetRole(e.name, uint32(role)))
}

// SetSMPercent changes the share of a CUDA device's multiprocessors that the engine's kernels run on, from its next
// step on; 0 and 100 mean all. After an error the engine keeps its previous share. Errors: [ErrInvalidArgument],
// [ErrUnsupported] (the CPU, or a driver or device that cannot be partitioned), [ErrOutOfMemory], [ErrDevice],
// [ErrShutdown].
func (e *Engine) SetSMPercent(percent int) error {
	defer runtime.KeepAlive(e)
	var n numbers
	value := n.uint32("percent", percent)
	if n.err != nil {
		return n.err
	}
	return e.wrap(capi.EngineSetSMPercent(e.name, value))
}

// drainSlice is the longest time that Drain blocks a thread in one library call. It also limits how late Drain notices
// the end of its context.
const drainSlice = 20 * time.Millisecond

// Drain makes the engine refuse new requests with [ErrShutdown], and waits until all accepted ones have ended. If ctx
// ends first, the engine keeps draining, and another Drain can resume the wait. Errors: ctx's, [ErrShutdown] (the
// engine was closed meanwhile).
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

// Failed returns a channel that is closed once the engine has failed. A failed engine accepts no requests, and its open
// requests end with an error. If engines share a queue, the library does not report which one failed, so the channel is
// closed for all of them.
func (e *Engine) Failed() <-chan struct{} { return e.queue.failed }

// Err returns the error with which the engine has failed, or nil; see [Engine.Failed].
func (e *Engine) Err() error { return e.queue.err() }
