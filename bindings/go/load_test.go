package cleave

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestManyStreamsAtOnce(t *testing.T) {
	const streams = 64
	queue := must[*Queue](t)(NewQueue(0))
	defer queue.Close()
	cache := newCache(t, CacheConfig{BytesPerDevice: 64 << 20})
	prefill := newEngine(t, cache, EngineConfig{Role: RolePrefill, Queue: queue})
	decode := newEngine(t, cache, EngineConfig{Role: RoleDecode, Queue: queue})
	questions := []string{"what does the red box hold?", "where does anna live?", "what does the blue jar hold?"}
	want := make([][]int32, len(questions))
	for i, question := range questions {
		want[i], _ = generate(t, newEngine(t, newCache(t, CacheConfig{}), EngineConfig{}),
			Request{Prompt: ask(t, question), MaxNewTokens: 32, IgnoreEOS: true})
	}
	var all sync.WaitGroup
	for i := range streams {
		all.Add(1)
		go func() {
			defer all.Done()
			request := Request{Prompt: ask(t, questions[i%3]), MaxNewTokens: 32, IgnoreEOS: true}
			var tokens []int32
			var kv *KV
			for event, err := range prefill.Generate(testContext(t), request) {
				if err != nil {
					t.Error(err)
					return
				}
				kv = event.KV
			}
			for event, err := range decode.Generate(testContext(t), Request{KV: kv, EmitPending: true}) {
				if err != nil {
					t.Error(err)
					return
				}
				if event.Type == EventToken {
					tokens = append(tokens, event.Token)
				}
			}
			if !slices.Equal(tokens, want[i%3]) {
				t.Errorf("%d: %v instead of %v", i, tokens, want[i%3])
			}
		}()
	}
	all.Wait()
	prefill.Close()
	decode.Close()
}

// Streams that nobody reads must not delay streams that are read, on a queue that has room for a few events only.
func TestSlowReaders(t *testing.T) {
	queue := must[*Queue](t)(NewQueue(16))
	defer queue.Close()
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{Queue: queue})
	var slow []*Stream
	for range 6 {
		slow = append(slow, submit(t, engine, long(t)))
	}
	if tokens, _ := generate(t, engine, long(t)); len(tokens) != 400 {
		t.Errorf("%d tokens", len(tokens))
	}
	for _, stream := range slow {
		if tokens, _ := read(t, stream); len(tokens) != 400 {
			t.Errorf("%d tokens", len(tokens))
		}
	}
	engine.Close()
}

func TestWouldBlock(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{MaxSequences: 1, MaxWaiting: 2})
	var streams []*Stream
	var err error
	for len(streams) < 10 {
		var stream *Stream
		if stream, err = engine.Submit(testContext(t), endless(t)); err != nil {
			break
		}
		streams = append(streams, stream)
	}
	expect(t, err, ErrWouldBlock)
	for _, stream := range streams {
		stream.Close()
	}
	eventually(t, "place for a request", func() (bool, any) {
		stream, err := engine.Submit(testContext(t), Request{Prompt: []int32{1}, MaxNewTokens: 1})
		if err == nil {
			read(t, stream)
		}
		return err == nil, err
	})

	queue := must[*Queue](t)(NewQueue(4))
	defer queue.Close()
	engine = newEngine(t, newCache(t, CacheConfig{}), EngineConfig{Queue: queue})
	streams, err = engine.SubmitBatch(testContext(t), []Request{long(t), long(t), long(t), long(t), long(t)})
	expect(t, err, ErrWouldBlock)
	for _, stream := range streams {
		if tokens, _ := read(t, stream); len(tokens) != 400 {
			t.Errorf("%d tokens", len(tokens))
		}
	}
	engine.Close()
}

func TestPrefillElsewhere(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{Role: RoleDecode, LocalPrefillTokens: 8})
	_, err := engine.Submit(testContext(t), long(t))
	expect(t, err, ErrPrefillElsewhere)
	generate(t, engine, Request{Prompt: []int32{1, 2, 3}, MaxNewTokens: 1})
	if err := engine.SetRole(RoleMixed); err != nil {
		t.Fatal(err)
	}
	generate(t, engine, Request{Prompt: ask(t, "the old farmer"), MaxNewTokens: 1})
	expect(t, engine.SetRole(9), ErrInvalidArgument)
}

// Many goroutines submit, cancel and read while engines change their roles. Everything must end, and nothing may leak.
func TestChurn(t *testing.T) {
	cache := newCache(t, CacheConfig{})
	queue := must[*Queue](t)(NewQueue(64))
	defer queue.Close()
	engines := []*Engine{
		newEngine(t, cache, EngineConfig{Queue: queue, MaxSequences: 4, MaxWaiting: 8}),
		newEngine(t, cache, EngineConfig{Queue: queue, MaxSequences: 4, MaxWaiting: 8}),
	}
	until := time.Now().Add(time.Second)
	var all sync.WaitGroup
	for i := range 16 {
		all.Add(1)
		go func() {
			defer all.Done()
			for n := 0; time.Now().Before(until); n++ {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(n*i%7)*time.Millisecond+20*time.Millisecond)
				for event, err := range engines[n%2].Generate(ctx, Request{
					Prompt: []int32{1, int32(i), int32(n % 700)}, MaxNewTokens: 40, IgnoreEOS: true, KeepKV: n%3 == 0,
				}) {
					if err != nil && !errors.Is(err, ErrWouldBlock) && !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
					if event.KV != nil {
						event.KV.Close()
					}
					if event.Type == EventToken && (event.Index == n%50) {
						break
					}
				}
				cancel()
				if n%11 == 0 {
					engines[i%2].SetRole(Role(n % 3))
				}
			}
		}()
	}
	all.Wait()
	for _, engine := range engines {
		idle(t, engine)
		engine.Close()
	}
}
