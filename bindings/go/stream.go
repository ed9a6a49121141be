package cleave

import (
	"context"
	"io"
	"iter"
	"runtime"

	"cleave/go/internal/capi"
)

// Stream is a request that was accepted, and the events that come of it. Read it to its end with [Stream.Next] or
// [Stream.Events], or close it. Its methods may be called from any goroutine at any time; of several that read, each
// event goes to one.
//
// What is not read yet is kept, in memory that grows with it: a request's tokens are bounded by its MaxNewTokens and the
// model's context, so that a slow reader costs some kilobytes and holds nobody up.
type Stream struct {
	inbox   *inbox
	cleanup runtime.Cleanup
}

func newStream(in *inbox) *Stream {
	s := &Stream{inbox: in}
	s.cleanup = runtime.AddCleanup(s, func(in *inbox) { in.stop(newError(ErrCancelled, "the stream was forgotten")) }, in)
	return s
}

// Next returns the next event, and waits for it. The last one is [EventFinished]; after it Next returns [io.EOF].
//
// A request that failed ends with an error instead: it comes with an EventFinished of reason [FinishError], and again
// with every further call. A stream whose context has ended fails at once, with an error that is the context's in
// [errors.Is]; what was not read by then is dropped. A request that had ended before can be read to its end.
func (s *Stream) Next() (Event, error) {
	event, err := s.inbox.next()
	runtime.KeepAlive(s)
	return event, err
}

// Events returns the events that are left, the last one being [EventFinished]. A request that failed ends with an
// error, as [Stream.Next] describes. Leaving the loop closes the stream.
func (s *Stream) Events() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		defer s.Close()
		for {
			event, err := s.Next()
			if err == io.EOF || !yield(event, err) || err != nil {
				return
			}
		}
	}
}

// Close cancels the request if it has not ended, and releases a KV handle that was not read. It does not wait for the
// engine, which ends the request at its next step. Of a stream that was read to its end it changes nothing. It always
// returns nil.
func (s *Stream) Close() error {
	s.cleanup.Stop()
	s.inbox.stop(newError(ErrCancelled, "the stream", ErrClosed))
	return nil
}

// Cancel ends the request at the engine's next step, and does not wait for that. Unlike after [Stream.Close] the stream
// can be read to its end: the tokens until then, and EventFinished with [ErrCancelled], which tells Index and
// CachedTokens as any other.
func (s *Stream) Cancel() {
	defer runtime.KeepAlive(s)
	s.inbox.cancel(s.inbox.id())
}

// Export stops the generation at the engine's next step and hands it over: EventFinished ([FinishExported]) carries the
// KV handle, from which any engine goes on with the token that would have been next. It does not wait for that. A
// generation that ends before ends as it would have.
func (s *Stream) Export() error {
	defer runtime.KeepAlive(s)
	in := s.inbox
	e := capi.Export(in.engine.name, in.id())
	if e != nil && Code(e.Status) == ErrNotFound && !in.engine.closed.Load() {
		return nil
	}
	return in.engine.wrap(e)
}

// ID returns the number that the engine gave the request, as its log names it.
func (s *Stream) ID() uint64 { return s.inbox.id() }

// Submit submits one request. The stream ends with ctx: the request is cancelled then.
//
// It does not wait for the engine. Errors: [ErrWouldBlock] (too many wait, or the queue has no place: try again once a
// request has ended), [ErrInvalidArgument] (the text names the field), [ErrExpired] and [ErrNotFound] (the KV handle),
// [ErrIncompatible], [ErrOutOfMemory] (more than the whole cache holds), [ErrShutdown] (the engine drains or was closed),
// [ErrPrefillElsewhere], and ctx's.
func (e *Engine) Submit(ctx context.Context, request Request) (*Stream, error) {
	streams, err := e.SubmitBatch(ctx, []Request{request})
	if err != nil {
		return nil, err
	}
	return streams[0], nil
}

// SubmitBatch submits requests at once, so that they can be in the same step. They are accepted in order up to the first
// that is refused: the streams are of those before it, and the error is what it met.
func (e *Engine) SubmitBatch(ctx context.Context, requests []Request) ([]*Stream, error) {
	defer runtime.KeepAlive(e)
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	args := argumentsPool.Get().(*arguments)
	defer argumentsPool.Put(args)
	args.reset()
	inboxes := make([]*inbox, 0, len(requests))
	var refused error
	for i := range requests {
		in, err := e.prepare(args, &requests[i])
		if err != nil {
			refused = err
			args.requests = args.requests[:len(inboxes)]
			break
		}
		inboxes = append(inboxes, in)
	}
	var ids []uint64
	if len(inboxes) > 0 {
		var err *capi.Error
		if ids, err = capi.Submit(e.name, args.requests, args.tokens); err != nil {
			refused = e.wrap(err)
		}
	}
	streams := make([]*Stream, len(ids))
	for i, in := range inboxes {
		kv := requests[i].KV
		if kv != nil {
			kv.give(i < len(ids))
		}
		if i < len(ids) {
			in.accept(ctx, ids[i])
			streams[i] = newStream(in)
		} else {
			e.queue.forget(args.requests[i].Tag)
		}
	}
	return streams, refused
}

// prepare makes an inbox for a request and adds it to the arguments of a submission.
func (e *Engine) prepare(args *arguments, r *Request) (*inbox, error) {
	if r.KV != nil {
		if err := r.KV.take(e.cache); err != nil {
			return nil, err
		}
	}
	in := newInbox(e)
	tag, err := e.queue.register(in)
	if err == nil {
		if err = args.add(r, tag); err != nil {
			e.queue.forget(tag)
		}
	}
	if err != nil && r.KV != nil {
		r.KV.give(false)
	}
	return in, err
}

// Generate submits a request once it is ranged over, and yields its events as [Stream.Events] does. A request that is
// refused yields the error alone, with an Event that is zero. Leaving the loop cancels the request.
//
//	for event, err := range engine.Generate(ctx, request) {
//		if err != nil {
//			return err
//		}
//		...
//	}
func (e *Engine) Generate(ctx context.Context, request Request) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		stream, err := e.Submit(ctx, request)
		if err != nil {
			yield(Event{}, err)
			return
		}
		stream.Events()(yield)
	}
}
