package cleave

import (
	"context"
	"io"
	"iter"
	"runtime"

	"cleave/go/internal/capi"
)

// Stream delivers the events of an accepted request. Read it to its end with [Stream.Next] or [Stream.Events], or close
// it. Its methods may be called from any goroutine at any time; if several goroutines read, each event goes to one of
// them.
//
// Unread events are kept in memory that grows with them. MaxNewTokens and the model's context limit the tokens of a
// request, so a slow reader costs some kilobytes and delays nobody.
type Stream struct {
	inbox   *inbox
	cleanup runtime.Cleanup
}

func newStream(in *inbox) *Stream {
	s := &Stream{inbox: in}
	s.cleanup = runtime.AddCleanup(s, func(in *inbox) { in.stop(newError(ErrCancelled, "the stream was forgotten")) }, in)
	return s
}

// Next waits for the next event and returns it. The last one is [EventFinished]; after it Next returns [io.EOF].
//
// If the request failed, Next returns its error with an EventFinished of reason [FinishError], and again on every later
// call. If the stream's context ends, Next fails at once with an error that matches the context's in [errors.Is], and
// unread events are dropped. This does not apply to a request that has ended before: it can be read to its end.
func (s *Stream) Next() (Event, error) {
	event, err := s.inbox.next()
	runtime.KeepAlive(s)
	return event, err
}

// Events returns the remaining events, the last one being [EventFinished]. A failed request ends with an error, as
// described at [Stream.Next]. Leaving the loop closes the stream.
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
// engine, which ends the request at its next step. It has no effect on a stream that was read to its end. It always
// returns nil.
func (s *Stream) Close() error {
	s.cleanup.Stop()
	s.inbox.stop(newError(ErrCancelled, "the stream", ErrClosed))
	return nil
}

// Cancel ends the request at the engine's next step, and does not wait for it. Unlike after [Stream.Close], the stream
// can be read to its end: it has the tokens until then, and an EventFinished with [ErrCancelled], which has Index and
// CachedTokens as usual.
func (s *Stream) Cancel() {
	defer runtime.KeepAlive(s)
	s.inbox.cancel(s.inbox.id())
}

// Export stops the generation at the engine's next step and hands it over, without waiting for it. EventFinished
// ([FinishExported]) carries the KV handle, and any engine can continue from it with the next token. A generation that
// ends earlier ends as usual.
func (s *Stream) Export() error {
	defer runtime.KeepAlive(s)
	in := s.inbox
	e := capi.Export(in.engine.name, in.id())
	if e != nil && Code(e.Status) == ErrNotFound && !in.engine.closed.Load() {
		return nil
	}
	return in.engine.wrap(e)
}

// ID returns the engine's number for the request, which also appears in the log.
func (s *Stream) ID() uint64 { return s.inbox.id() }

// Submit submits one request. The end of ctx cancels the request and ends the stream.
//
// Submit does not wait for the engine. Errors: [ErrWouldBlock] (too many requests wait, or the queue has no room: try
// again once a request has ended), [ErrInvalidArgument] (the text names the field), [ErrExpired] and [ErrNotFound] (the
// KV handle), [ErrIncompatible], [ErrOutOfMemory] (more than the whole cache holds), [ErrShutdown] (the engine drains
// or was closed), [ErrPrefillElsewhere], and ctx's.
func (e *Engine) Submit(ctx context.Context, request Request) (*Stream, error) {
	streams, err := e.SubmitBatch(ctx, []Request{request})
	if err != nil {
		return nil, err
	}
	return streams[0], nil
}

// SubmitBatch submits requests together, so that they can be in the same step. They are accepted in order up to the
// first refused one. SubmitBatch returns the streams of the accepted requests, and the error of the refused one.
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

// prepare creates an inbox for a request and adds the request to the arguments of a submission.
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

// Generate returns an iterator that submits the request when it is ranged over, and yields the events as
// [Stream.Events] does. A refused request yields only the error, with a zero Event. Leaving the loop cancels the
// request.
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
