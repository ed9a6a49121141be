package cleave

import (
	"context"
	"io"
	"sync"

	"cleave/go/internal/capi"
)

// inbox is what came of a request and was not read: what the dispatcher knows of a [Stream], so that the Stream itself
// can be found to be forgotten.
type inbox struct {
	engine *Engine
	wake   chan struct{} // holds one: there may be something new

	mu      sync.Mutex
	request uint64 // 0 until it was accepted
	unread  []noted
	read    int         // how many of unread were read
	started *KV         // of EventKVStreamStarted
	shown   bool        // started was read: it is the reader's
	detach  func() bool // from the context

	// How it ended: last and err are the last event. stopped: nobody wants any more of it.
	// lost: the queue went before the end came.
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

// signal wakes a reader that waits, or the next one that is about to.
func (in *inbox) signal() {
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

// accept tells that the engine has the request. Its events may have come before that.
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

// cancel ends the request at the engine. One that has ended meanwhile is as good.
func (in *inbox) cancel(request uint64) { capi.Cancel(in.engine.name, request) }

func (in *inbox) next() (Event, error) {
	for {
		in.mu.Lock()
		if in.stopped != nil {
			err := in.stopped
			in.mu.Unlock()
			in.signal() // for another reader
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

// end tells how it ended: once in full.
func (in *inbox) end() (Event, error) {
	if in.told && in.err == nil {
		return Event{}, io.EOF
	}
	event := in.last
	in.told = true
	in.last.KV, in.started, in.unread = nil, nil, nil // the reader's alone
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

// handedOver is the handle of the last event, which may have been there from the start.
func (in *inbox) handedOver(id uint64) *KV {
	if id == 0 {
		return nil
	}
	if in.started != nil && in.started.id == id {
		return in.started
	}
	return newKV(in.engine.cache, id, nil)
}

// keep appends to what is unread. Room that was read is used again before there is more.
func (in *inbox) keep(n noted) {
	if len(in.unread) == cap(in.unread) && in.read > len(in.unread)/2 {
		in.unread = in.unread[:copy(in.unread, in.unread[in.read:])]
		in.read = 0
	}
	in.unread = append(in.unread, n)
}

// stop makes readers see err instead of what comes, and cancels the request. Not if the end was read already.
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
