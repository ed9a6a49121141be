package cleave

import (
	"bytes"
	"context"
	"runtime"
	"strings"
	"testing"
)

// collect runs the garbage collector until the condition holds.
func collect(t *testing.T, what string, done func() (bool, any)) {
	t.Helper()
	eventually(t, what, func() (bool, any) {
		runtime.GC()
		return done()
	})
}

func TestForgottenStreamIsCancelled(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	func() {
		stream := submit(t, engine, long(t))
		must[Event](t)(stream.Next())
	}()
	collect(t, "cancelled request", func() (bool, any) {
		m, err := engine.Metrics()
		return err == nil && m.Running == 0, m
	})
	if m := must[Metrics](t)(engine.Metrics()); m.GeneratedTokens >= 400 {
		t.Logf("the request came to its own end before it was found")
	}
}

func TestForgottenHandleIsReleased(t *testing.T) {
	cache := newCache(t, CacheConfig{})
	engine := newEngine(t, cache, EngineConfig{Role: RolePrefill})
	exports := func() int { return must[Metrics](t)(engine.Metrics()).ExportsOpen }
	_, end := generate(t, engine, Request{Prompt: []int32{1, 2, 3}})
	if exports() != 1 {
		t.Fatal(exports())
	}
	runtime.KeepAlive(end.KV)
	end = Event{}
	collect(t, "released handle", func() (bool, any) { return exports() == 0, exports() })

	// This handle is in a last event that nobody has read.
	func() { submit(t, engine, Request{Prompt: []int32{1, 2, 3}}) }()
	idle(t, engine)
	collect(t, "released handle of a stream", func() (bool, any) { return exports() == 0, exports() })
}

// A handle with a ticket is left to its lease, because the ticket may still be in transit.
func TestForgottenHandleWithATicketLives(t *testing.T) {
	p := newPair(t)
	ticket := func() []byte {
		kv, _ := p.prefilled(t)
		return must[[]byte](t)(kv.Ticket())
	}()
	for range 5 {
		runtime.GC()
	}
	p.goesOn(t, p.decode, must[*KV](t)(p.to.Import(ticket)))
}

// dispatchers counts the goroutines that wait for a queue.
func dispatchers() int {
	buf := make([]byte, 1<<20)
	return bytes.Count(buf[:runtime.Stack(buf, true)], []byte(".(*dispatcher).run("))
}

func TestForgottenObjectsAreEnded(t *testing.T) {
	collect(t, "end of what other tests have forgotten", func() (bool, any) { return dispatchers() == 0, dispatchers() })
	func() {
		model, err := Load(modelPath())
		if err != nil {
			t.Fatal(err)
		}
		cache := must[*Cache](t)(model.NewCache(CacheConfig{BytesPerDevice: 1 << 20}))
		engine := must[*Engine](t)(cache.NewEngine(EngineConfig{Threads: 1}))
		must[*Detokenizer](t)(model.NewDetokenizer())
		must[*Queue](t)(NewQueue(0))
		_, err = cache.Import([]byte("no ticket, but a queue for imports"))
		expect(t, err, ErrCorrupt)
		stream := must[*Stream](t)(engine.Submit(context.Background(), long(t)))
		must[Event](t)(stream.Next())
	}()
	if n := dispatchers(); n == 0 {
		t.Fatal("how does this count goroutines that wait?")
	}
	collect(t, "end of all queues", func() (bool, any) { return dispatchers() == 0, dispatchers() })
	eventually(t, "end of all engine threads", func() (bool, any) {
		names := threads(t)
		// A thread that Go starts from within a log sink inherits that thread's name.
		delete(names, "cleave-log")
		for name := range names {
			if strings.HasPrefix(name, "cleave") {
				return false, names
			}
		}
		return true, nil
	})
}

// An object in use is not closed, even if the collector finds the variable that held it dead.
func TestObjectsInUseAreNotForgotten(t *testing.T) {
	stream := func() *Stream {
		model := must[*Model](t)(Load(modelPath()))
		cache := must[*Cache](t)(model.NewCache(CacheConfig{BytesPerDevice: 1 << 20}))
		engine := must[*Engine](t)(cache.NewEngine(EngineConfig{Threads: 1, Queue: must[*Queue](t)(NewQueue(0))}))
		return submit(t, engine, Request{Prompt: []int32{1, 2, 3}, MaxNewTokens: 200, IgnoreEOS: true})
	}()
	n := 0
	for event, err := range stream.Events() {
		if err != nil {
			t.Fatal(err)
		}
		if n++; event.Index%20 == 0 {
			runtime.GC()
		}
	}
	if n != 201 {
		t.Errorf("%d events", n)
	}
}
