package cleave

import (
	"context"
	"io"
	"sync"

	"cleave/go/internal/capi"
)

// inbox holds the unread events of a request. The dispatcher refers to the inbox and not to its [Stream], so that the
// garbage collector can find a forgotten Stream.
type inbox struct {
	engine *Engine
	wake   chan struct{} // capacity 1: there may be something new

	mu      sync.Mutex
	request uint64 // 0 until the request is accepted
	unread  []noted
	read    int         // number of elements of unread that were read
	started *KV         // handle of EventKVStreamStarted
	shown   bool        // started was read, and belongs to the reader
	detach  func() bool // detaches the inbox from the context

	// Once ended is set, last and err are the last event, and told says whether it was read. stopped is the error for
	// readers after the stream was closed or its context ended. lost is set if the queue was closed before the request
	// ended.
	ended, told, lost bool
	last              Event
	err               error
	stopped           error
}

func newInbox(e *Engine) *inbox { return &inbox{engine: e, wake: make(chan struct{}, 1)} }

func (in *inbox) id() uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.request
}

// signal wakes a waiting reader, or the next one that waits.
func (in *inbox) signal() {
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

// accept records that the engine has accepted the request. Events may arrive before this call.
func (in *inbox) accept(ctx context.Context, request uint64) {
	detach := func() bool { return true }
	if ctx.Done() != nil {
		detach = context.AfterFunc(ctx, func() { in.stop(contextError(ctx)) })
	}
	in.mu.Lock()
	in.request = request
	in.detach = detach
	over, unwanted := in.ended, in.stopped != nil || in.lost
	in.mu.Unlock()
	if over {
		detach()
	}
	if unwanted {
		in.cancel(request)
	}
}

// cancel cancels the request at the engine. It ignores the error if the request has just ended.
func (in *inbox) cancel(request uint64) { capi.Cancel(in.engine.name, request) }

func (in *inbox) next() (Event, error) {
	for {
		in.mu.Lock()
		if in.stopped != nil {
			err := in.stopped
			in.mu.Unlock()
			in.signal() // wakes another reader
			return Event{Type: EventFinished, Reason: FinishError}, err
		}
		if in.read < len(in.unread) {
			event := in.unread[in.read].event()
			in.read++
			if in.read == len(in.unread) {
				in.unread, in.read = in.unread[:0], 0
			}
			in.shown = in.shown || event.KV != nil
			in.mu.Unlock()
			return event, nil
		}
		if in.ended {
			event, err := in.end()
			in.mu.Unlock()
			in.signal()
			return event, err
		}
		in.mu.Unlock()
		<-in.wake
	}
}

// end returns the last event, and io.EOF or the error on later calls.
func (in *inbox) end() (Event, error) {
	if in.told && in.err == nil {
		return Event{}, io.EOF
	}
	event := in.last
	in.told = true
	in.last.KV, in.started, in.unread = nil, nil, nil // the reader owns them now
	return event, in.err
}

func (in *inbox) receive(event *capi.Event, top []TokenLogprob) {
	var drop *KV
	var detach func() bool
	in.mu.Lock()
	switch event.Type {
	case capi.EventToken:
		if in.stopped == nil {
			in.keep(noted{
				top: top, timestampNS: event.TimestampNS,
				token: event.Token, index: event.Index, logprob: event.Logprob,
			})
		}
	case capi.EventKVStreamStarted:
		in.started = newKV(in.engine.cache, event.KV, nil)
		if in.stopped == nil {
			in.keep(noted{kv: in.started, timestampNS: event.TimestampNS})
		}
	case capi.EventFinished:
		kv := in.handedOver(event.KV)
		in.ended, in.last = true, finishedEvent(event, kv)
		if event.Status != 0 || event.FinishReason == capi.FinishError {
			in.err = newError(Code(event.Status), "the request has ended")
		}
		if in.stopped != nil && !in.shown {
			drop = kv
		}
		detach = in.detach
	}
	in.mu.Unlock()
	in.signal()
	if detach != nil {
		detach()
	}
	if drop != nil {
		drop.Close()
	}
}

// handedOver returns the handle of the last event. It may be the same handle as in EventKVStreamStarted.
func (in *inbox) handedOver(id uint64) *KV {
	if id == 0 {
		return nil
	}
	if in.started != nil && in.started.id == id {
		return in.started
	}
	return newKV(in.engine.cache, id, nil)
}

// keep appends an unread event. It reuses the space of events that were read before it allocates more.
func (in *inbox) keep(n noted) {
	if len(in.unread) == cap(in.unread) && in.read > len(in.unread)/2 {
		in.unread = in.unread[:copy(in.unread, in.unread[in.read:])]
		in.read = 0
	}
	in.unread = append(in.unread, n)
}

// stop drops unread events, makes readers return err and cancels the request. It does nothing if the end was read
// already.
func (in *inbox) stop(err error) {
	var drop *KV
	in.mu.Lock()
	if in.stopped != nil || in.told {
		in.mu.Unlock()
		return
	}
	in.stopped = err
	in.unread, in.read = nil, 0
	if !in.shown {
		drop = in.last.KV
	}
	running, request, detach := !in.ended, in.request, in.detach
	in.mu.Unlock()
	in.signal()
	if detach != nil {
		detach()
	}
	if drop != nil {
		drop.Close()
	}
	if running && request != 0 {
		in.cancel(request)
	}
}

func (in *inbox) abandon(err error) {
	in.mu.Lock()
	in.ended, in.lost, in.err = true, true, err
	in.last = Event{Type: EventFinished, Reason: FinishError}
	request, detach := in.request, in.detach
	in.mu.Unlock()
	in.signal()
	if detach != nil {
		detach()
	}
	if request != 0 {
		in.cancel(request)
	}
}
