package cleave

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// slowPrompt is a prompt that takes an engine with MaxBatchTokens 1 some thousand steps.
func slowPrompt(t testing.TB) []int32 {
	question := "what does the red box hold?"
	tokens := ask(t, question)
	return tokenize(t, strings.Repeat(facts, 3000/len(tokens))+question)
}

// filling returns a handle whose prompt is slowly being computed, and the stream that delivered it.
func filling(t *testing.T, cache *Cache) (*KV, *Stream) {
	t.Helper()
	engine := newEngine(t, cache, EngineConfig{Role: RolePrefill, MaxBatchTokens: 1})
	stream := submit(t, engine, Request{Prompt: slowPrompt(t), MaxNewTokens: 8, IgnoreEOS: true, StreamKV: true})
	event := must[Event](t)(stream.Next())
	if event.Type != EventKVStreamStarted || event.KV == nil {
		t.Fatalf("%+v", event)
	}
	return event.KV, stream
}

func TestImportBeforeItHasLanded(t *testing.T) {
	p := newPair(t)
	kv, stream := filling(t, p.from)
	imported := must[*KV](t)(p.to.Import(must[[]byte](t)(kv.Ticket())))
	if info := must[KVInfo](t)(imported.Info()); !info.Importing {
		t.Errorf("%+v", info)
	}
	if info := must[KVInfo](t)(kv.Info()); !info.Streaming {
		t.Errorf("%+v", info)
	}
	select {
	case <-imported.Landed():
		t.Error("landed already")
	case <-kv.Landed():
	}
	short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	expect(t, imported.Wait(short), context.DeadlineExceeded, ErrTimeout)

	decoding := submit(t, p.decode, Request{KV: imported, EmitPending: true})
	_, end := read(t, stream)
	if err := imported.Wait(testContext(t)); err != nil {
		t.Error(err)
	}
	tokens, _ := read(t, decoding)
	if end.KV != kv || len(tokens) != 8 {
		t.Errorf("%d tokens, %+v", len(tokens), end)
	}
}

func TestKVThatDoesNotCome(t *testing.T) {
	p := newPair(t)
	want, _ := generate(t, newEngine(t, newCache(t, CacheConfig{}), EngineConfig{}),
		Request{Prompt: slowPrompt(t), MaxNewTokens: 8, IgnoreEOS: true})
	for _, recompute := range []bool{true, false} {
		kv, stream := filling(t, p.from)
		imported := must[*KV](t)(p.to.Import(must[[]byte](t)(kv.Ticket())))
		decoding := submit(t, p.decode, Request{KV: imported, EmitPending: true, Recompute: recompute})
		stream.Close()
		expect(t, imported.Wait(testContext(t)), ErrCancelled)
		var tokens []int32
		var last Event
		var err error
		for last, err = range decoding.Events() {
			if last.Type == EventToken {
				tokens = append(tokens, last.Token)
			}
		}
		if recompute && (err != nil || !last.Recomputed || !slices.Equal(tokens, want)) {
			t.Errorf("%v, %+v, %v instead of %v", err, last, tokens, want)
		}
		if !recompute {
			expect(t, err, ErrCancelled)
		}
		if _, err = kv.Info(); err == nil {
			t.Error("the exporter's handle is there still")
		}
	}
}

func TestImportsThatAreRefused(t *testing.T) {
	p := newPair(t)
	kv, _ := p.prefilled(t)
	ticket := must[[]byte](t)(kv.Ticket())
	_, err := p.to.Import(nil)
	expect(t, err, ErrInvalidArgument)
	_, err = p.to.Import([]byte("no ticket"))
	expect(t, err, ErrCorrupt)
	_, err = p.to.Import(ticket[:len(ticket)-1])
	if err == nil {
		t.Error("a ticket that was cut was taken")
	}
	_, err = newCache(t, CacheConfig{Secret: [32]byte{9}}).Import(ticket)
	expect(t, err, ErrPermission)
	_, err = newCache(t, CacheConfig{Secret: secret, DType: DTypeF32, NoConvert: true}).Import(ticket)
	expect(t, err, ErrIncompatible)

	first := must[*KV](t)(p.to.Import(ticket))
	if err := first.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	second, err := p.to.Import(ticket)
	if err == nil {
		err = second.Wait(testContext(t))
		second.Close()
	}
	expect(t, err, ErrExpired)
	p.goesOn(t, p.decode, first)
}

func TestImportThatIsClosedOnItsWay(t *testing.T) {
	p := newPair(t)
	kv, stream := filling(t, p.from)
	imported := must[*KV](t)(p.to.Import(must[[]byte](t)(kv.Ticket())))
	imported.Close()
	if err := imported.Wait(testContext(t)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited for a handle that was closed: %v", err)
	}
	stream.Close()
	kv.Close()
}

func TestCacheThatIsClosedWithImportsOnTheirWay(t *testing.T) {
	p := newPair(t)
	kv, stream := filling(t, p.from)
	ticket := must[[]byte](t)(kv.Ticket())
	imported := must[*KV](t)(p.to.Import(ticket))
	decoding := submit(t, p.decode, Request{KV: imported})
	p.to.Close()
	if err := imported.Wait(testContext(t)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited on a cache that was closed: %v", err)
	}
	_, err := p.to.Import(ticket)
	expect(t, err, ErrNotFound, ErrClosed)
	var last error
	for _, last = range decoding.Events() {
	}
	if last == nil || errors.Is(last, context.DeadlineExceeded) {
		t.Errorf("decoded from a cache that was closed: %v", last)
	}
	stream.Close()
	kv.Close()
}

func TestLease(t *testing.T) {
	cache := newCache(t, CacheConfig{Lease: 2 * time.Hour})
	engine := newEngine(t, cache, EngineConfig{Role: RolePrefill})
	_, end := generate(t, engine, Request{Prompt: []int32{1, 2, 3}})
	_, kept := generate(t, engine, Request{Prompt: []int32{4, 5, 6}})
	if info := must[KVInfo](t)(kept.KV.Info()); info.LeaseLeft < time.Hour || info.LeaseLeft > 2*time.Hour {
		t.Error(info.LeaseLeft)
	}
	for kv, lease := range map[*KV]time.Duration{kept.KV: time.Hour, end.KV: time.Millisecond} {
		if err := kv.Renew(lease); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "end of a lease", func() (bool, any) { _, err := end.KV.Info(); return errors.Is(err, ErrExpired), err })
	expect(t, end.KV.Renew(time.Second), ErrExpired)
	if info := must[KVInfo](t)(kept.KV.Info()); info.LeaseLeft < 30*time.Minute || info.LeaseLeft > time.Hour {
		t.Error(info.LeaseLeft)
	}
	expect(t, kept.KV.Renew(0), ErrInvalidArgument)
	expect(t, kept.KV.Renew(-1), ErrInvalidArgument)
	kept.KV.Close()
}
