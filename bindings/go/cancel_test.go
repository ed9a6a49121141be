package cleave

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"
)

// idle waits until an engine has no requests.
func idle(t *testing.T, engine *Engine) {
	t.Helper()
	eventually(t, "idle engine", func() (bool, any) {
		m, err := engine.Metrics()
		return err == nil && m.Running == 0 && m.Waiting == 0, m
	})
}

func TestContextCancels(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	ctx, cancel := context.WithCancel(context.Background())
	stream := must[*Stream](t)(engine.Submit(ctx, endless(t)))
	must[Event](t)(stream.Next())
	cancel()
	for {
		event, err := stream.Next()
		if err == nil {
			continue // the event was read before the cancellation took effect
		}
		expect(t, err, context.Canceled, ErrCancelled)
		if event.Type != EventFinished || event.Reason != FinishError {
			t.Errorf("%+v", event)
		}
		break
	}
	_, err := stream.Next()
	expect(t, err, context.Canceled)
	idle(t, engine)
}

func TestDeadlineAndCauseOfAContext(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{MaxBatchTokens: 1})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	var err error
	for _, err = range engine.Generate(ctx, Request{Prompt: slowPrompt(t), IgnoreEOS: true}) {
	}
	expect(t, err, context.DeadlineExceeded, ErrTimeout)

	hungUp := errors.New("the client has hung up")
	caused, cancelWith := context.WithCancelCause(context.Background())
	stream := must[*Stream](t)(engine.Submit(caused, endless(t)))
	cancelWith(hungUp)
	for _, err = range stream.Events() {
	}
	expect(t, err, hungUp, context.Canceled, ErrCancelled)
	_, err = engine.Submit(caused, long(t))
	expect(t, err, hungUp, context.Canceled, ErrCancelled)
	idle(t, engine)
}

func TestContextThatEndsAfterTheRequest(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{Role: RolePrefill})
	ctx, cancel := context.WithCancel(context.Background())
	stream := must[*Stream](t)(engine.Submit(ctx, Request{Prompt: []int32{1, 2, 3}}))
	if err := engine.Drain(testContext(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "event in the stream", func() (bool, any) {
		stream.inbox.mu.Lock()
		defer stream.inbox.mu.Unlock()
		return stream.inbox.ended, nil
	})
	cancel()
	_, end := read(t, stream)
	if end.KV == nil {
		t.Fatalf("%+v", end)
	}
	end.KV.Close()
}

func TestLeavingTheLoopCancels(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	for event, err := range engine.Generate(testContext(t), endless(t)) {
		if err != nil {
			t.Fatal(err)
		}
		if event.Index == 2 {
			break
		}
	}
	idle(t, engine)
	func() {
		defer func() { recover() }()
		for range engine.Generate(testContext(t), endless(t)) {
			panic("in the loop")
		}
	}()
	idle(t, engine)
	if m := must[Metrics](t)(engine.Metrics()); m.GeneratedTokens >= uint64(endless(t).MaxNewTokens) {
		t.Errorf("%d tokens were generated", m.GeneratedTokens)
	}
}

func TestCloseCancels(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	stream := submit(t, engine, endless(t))
	must[Event](t)(stream.Next())
	var readers sync.WaitGroup
	for range 4 {
		readers.Add(2)
		go func() {
			defer readers.Done()
			for {
				if _, err := stream.Next(); err != nil {
					expect(t, err, ErrCancelled, ErrClosed)
					return
				}
			}
		}()
		go func() { defer readers.Done(); stream.Close() }()
	}
	readers.Wait()
	stream.Close()
	idle(t, engine)
}

func TestCloseOfAnEndedStream(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	stream := submit(t, engine, Request{Prompt: []int32{1, 2, 3}, MaxNewTokens: 2})
	read(t, stream)
	stream.Close()
	for range 2 {
		if event, err := stream.Next(); err != io.EOF {
			t.Errorf("%+v %v", event, err)
		}
	}
}

// Closing a stream releases its handle if nobody has read it, whatever state the request is in.
func TestHandlesOfClosedStreams(t *testing.T) {
	cache := newCache(t, CacheConfig{})
	engine := newEngine(t, cache, EngineConfig{Role: RolePrefill})
	for i := range 200 {
		stream := submit(t, engine, Request{Prompt: []int32{1, 2, int32(i)}, StreamKV: i%2 == 0})
		if i%4 < 2 {
			time.Sleep(time.Duration(i) * 10 * time.Microsecond)
		}
		stream.Close()
	}
	idle(t, engine)
	eventually(t, "cache without handles", func() (bool, any) {
		audit, err := cache.Audit()
		return err == nil && audit.ByExports == 0 && audit.ByRequests == 0, audit
	})
}

// The reader owns the handle of EventKVStreamStarted once it has read it. If the request ends well, closing the stream
// afterwards does not release the handle.
func TestHandleThatWasReadOutlivesItsStream(t *testing.T) {
	cache := newCache(t, CacheConfig{})
	kv, stream := filling(t, cache)
	eventually(t, "event in the stream", func() (bool, any) {
		stream.inbox.mu.Lock()
		defer stream.inbox.mu.Unlock()
		return stream.inbox.ended, nil
	})
	stream.Close()
	tokens, _ := generate(t, newEngine(t, cache, EngineConfig{}), Request{KV: kv, EmitPending: true})
	if len(tokens) != 8 {
		t.Errorf("%v", tokens)
	}
}

// Closing the handle while its prompt is computed stops the import, but not the request.
func TestHandleThatIsClosedWhileItFills(t *testing.T) {
	p := newPair(t)
	kv, stream := filling(t, p.from)
	imported := must[*KV](t)(p.to.Import(must[[]byte](t)(kv.Ticket())))
	kv.Close()
	if err := imported.Wait(testContext(t)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("imported a handle that was closed: %v", err)
	}
	_, end := read(t, stream)
	if end.Reason != FinishPrefilled || end.KV == nil {
		t.Fatalf("%+v", end)
	}
	end.KV.Close()
}
