package cleave

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// world holds one object of each type, and running streams.
type world struct {
	closers map[string]io.Closer
	streams []*Stream
}

func newWorld(t *testing.T) *world {
	t.Helper()
	model := must[*Model](t)(Load(modelPath()))
	cache := must[*Cache](t)(model.NewCache(CacheConfig{BytesPerDevice: 16 << 20, Secret: secret}))
	other := must[*Cache](t)(model.NewCache(CacheConfig{BytesPerDevice: 16 << 20, Secret: secret}))
	queue := must[*Queue](t)(NewQueue(0))
	prefill := must[*Engine](t)(cache.NewEngine(EngineConfig{Role: RolePrefill, Queue: queue, Threads: 1, MaxBatchTokens: 2}))
	mixed := must[*Engine](t)(cache.NewEngine(EngineConfig{Queue: queue, Threads: 1}))
	alone := must[*Engine](t)(other.NewEngine(EngineConfig{Threads: 1}))

	started := submit(t, prefill, Request{Prompt: slowPrompt(t), StreamKV: true})
	filling := must[Event](t)(started.Next()).KV
	ticket, err := filling.Ticket()
	if err != nil {
		t.Fatal(err)
	}
	imported := must[*KV](t)(other.Import(ticket))
	w := &world{closers: map[string]io.Closer{
		"model": model, "cache": cache, "other cache": other, "queue": queue, "prefill engine": prefill, "engine": mixed,
		"engine of its own queue": alone, "handle": filling, "import": imported,
	}}
	w.streams = []*Stream{started, submit(t, alone, Request{KV: imported, Recompute: true})}
	for range 4 {
		w.streams = append(w.streams, submit(t, mixed, long(t)), submit(t, alone, long(t)))
	}
	w.closers["stream"] = w.streams[3]
	return w
}

// ends reads a stream until it ends in any way. It must end before its reader's patience does.
func ends(t *testing.T, stream *Stream, order fmt.Stringer) {
	for {
		event, err := stream.Next()
		if event.KV != nil {
			event.KV.Close()
		}
		if err == nil {
			continue
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: a stream does not end", order)
		}
		return
	}
}

// order describes the order in which objects were closed, for failure messages.
type order []string

func (o order) String() string { return fmt.Sprint([]string(o)) }

func TestCloseInEveryOrder(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	for seed := range rounds {
		w := newWorld(t)
		random := rand.New(rand.NewPCG(uint64(seed), 0))
		var names order
		for name := range w.closers {
			names = append(names, name)
		}
		random.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
		var readers sync.WaitGroup
		for _, stream := range w.streams {
			readers.Add(1)
			go func() { defer readers.Done(); ends(t, stream, names) }()
		}
		time.Sleep(time.Duration(random.IntN(4000)) * time.Microsecond)
		for _, name := range names {
			if err := w.closers[name].Close(); err != nil {
				t.Errorf("%v: close %s: %v", names, name, err)
			}
		}
		readers.Wait()
	}
}

func TestCloseEverythingAtOnce(t *testing.T) {
	for range 10 {
		w := newWorld(t)
		var all sync.WaitGroup
		for _, stream := range w.streams {
			all.Add(1)
			go func() { defer all.Done(); ends(t, stream, order{"at once"}) }()
		}
		for _, closer := range w.closers {
			for range 2 {
				all.Add(1)
				go func() { defer all.Done(); closer.Close() }()
			}
		}
		all.Wait()
	}
}

func TestEngineThatIsClosedGivesWhatItHas(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	stream := submit(t, engine, endless(t))
	must[Event](t)(stream.Next())
	engine.Close()
	n := 1
	for event, err := range stream.Events() {
		if err != nil {
			expect(t, err, ErrShutdown)
			if event.Type != EventFinished || event.Index != n {
				t.Errorf("%d tokens: %+v", n, event)
			}
			return
		}
		n++
	}
	t.Error("no error")
}

func TestQueueThatIsClosedFailsItsStreams(t *testing.T) {
	queue := must[*Queue](t)(NewQueue(0))
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{Queue: queue})
	stream := submit(t, engine, endless(t))
	must[Event](t)(stream.Next())
	queue.Close()
	var err error
	for _, err = range stream.Events() {
	}
	expect(t, err, ErrShutdown, ErrClosed)
	idle(t, engine)
	_, err = engine.Submit(testContext(t), long(t))
	expect(t, err, ErrShutdown, ErrClosed)
}

func TestDrain(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	request := long(t)
	request.MaxNewTokens = 2000
	stream := submit(t, engine, request)
	soon, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	expect(t, engine.Drain(soon), context.DeadlineExceeded, ErrTimeout)
	_, err := engine.Submit(testContext(t), long(t))
	expect(t, err, ErrShutdown)
	if err := engine.Drain(testContext(t)); err != nil {
		t.Error(err)
	}
	if tokens, _ := read(t, stream); len(tokens) != request.MaxNewTokens {
		t.Errorf("%d tokens", len(tokens))
	}

	engine = newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	stream = submit(t, engine, long(t))
	go func() { time.Sleep(5 * time.Millisecond); engine.Close() }()
	if err := engine.Drain(testContext(t)); err != nil {
		expect(t, err, ErrClosed)
	}
	stream.Close()
}
