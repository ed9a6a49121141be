package cleave

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"
)

var secret = [32]byte{1, 2, 3}

// pair holds a cache with a prefill engine, another cache with a decode engine, and the tokens that a mixed engine
// generates.
type pair struct {
	from, to        *Cache
	prefill, decode *Engine
	prompt, want    []int32
}

func newPair(t *testing.T) pair {
	t.Helper()
	p := pair{from: newCache(t, CacheConfig{Secret: secret}), to: newCache(t, CacheConfig{Secret: secret})}
	p.prefill = newEngine(t, p.from, EngineConfig{Role: RolePrefill, MaxBatchTokens: 32})
	p.decode = newEngine(t, p.to, EngineConfig{Role: RoleDecode})
	p.prompt = ask(t, "what does the red box hold?")
	mixed := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	p.want, _ = generate(t, mixed, p.request())
	return p
}

func (p *pair) request() Request { return Request{Prompt: p.prompt, MaxNewTokens: 12, IgnoreEOS: true} }

// prefilled returns the handle of the prompt, and the first token.
func (p *pair) prefilled(t *testing.T) (*KV, []int32) {
	t.Helper()
	tokens, end := generate(t, p.prefill, p.request())
	if end.Reason != FinishPrefilled || end.KV == nil || len(tokens) != 1 {
		t.Fatalf("%v %+v", tokens, end)
	}
	return end.KV, tokens
}

// goesOn continues a handle and compares the tokens, the pending one included, with the expected ones.
func (p *pair) goesOn(t *testing.T, engine *Engine, kv *KV) {
	t.Helper()
	tokens, end := generate(t, engine, Request{KV: kv, EmitPending: true})
	if !slices.Equal(tokens, p.want) || end.Reason != FinishLength || end.KV != nil {
		t.Errorf("%v instead of %v, %+v", tokens, p.want, end)
	}
}

func TestPrefillToDecode(t *testing.T) {
	cache := newCache(t, CacheConfig{})
	queue := must[*Queue](t)(NewQueue(0))
	defer queue.Close()
	prefill := newEngine(t, cache, EngineConfig{Role: RolePrefill, Queue: queue})
	decode := newEngine(t, cache, EngineConfig{Role: RoleDecode, Queue: queue})

	first, end := generate(t, prefill, Request{Prompt: ask(t, "what does the red box hold?"), MaxNewTokens: 16})
	if end.Reason != FinishPrefilled || end.KV == nil || len(first) != 1 {
		t.Fatalf("prefilled: %+v after %d tokens", end, len(first))
	}
	rest, end := generate(t, decode, Request{KV: end.KV})
	if end.Reason != FinishStop || end.KV != nil || text(t, append(first, rest...)) != " a key." {
		t.Fatalf("decoded: %q, %+v", text(t, append(first, rest...)), end)
	}
	if metrics := must[Metrics](t)(decode.Metrics()); metrics.Handoffs != 1 || metrics.KVBytesIn != 0 || metrics.Role != RoleDecode {
		t.Errorf("%+v", metrics)
	}
	prefill.Close()
	decode.Close()
}

func TestTicketToAnotherCache(t *testing.T) {
	p := newPair(t)
	kv, _ := p.prefilled(t)
	info := must[KVInfo](t)(kv.Info())
	ticket := must[[]byte](t)(kv.Ticket())
	if info.Tokens != len(p.prompt)+1 || info.Computed != len(p.prompt) || info.Blocks == 0 || info.Importing || info.Streaming ||
		info.TicketBytes != int64(len(ticket)) || info.LeaseLeft <= 0 || info.Fingerprint == [32]byte{} {
		t.Errorf("%+v", info)
	}
	imported := must[*KV](t)(p.to.Import(ticket))
	p.goesOn(t, p.decode, imported)
	if err := imported.Wait(testContext(t)); err != nil {
		t.Error(err)
	}
	eventually(t, "consumed handle", func() (bool, any) { _, err := kv.Info(); return err != nil, err })
	_, err := kv.Info()
	expect(t, err, ErrExpired)
	if metrics := must[Metrics](t)(p.decode.Metrics()); metrics.KVBytesIn == 0 || metrics.Imports != 1 {
		t.Errorf("%+v", metrics)
	}
}

func TestHostData(t *testing.T) {
	p := newPair(t)
	kv, first := p.prefilled(t)
	defer kv.Close() // the handle still exists if the import ends before it has fetched the KV
	if tokens := must[[]int32](t)(kv.Tokens()); !slices.Equal(tokens, append(slices.Clone(p.prompt), first...)) {
		t.Errorf("%v", tokens)
	}
	if data := must[[]byte](t)(kv.HostData()); len(data) != 0 {
		t.Errorf("%q", data)
	}
	expect(t, kv.SetHostData(make([]byte, MaxHostData+1)), ErrInvalidArgument)
	most := bytes.Repeat([]byte{0xc3}, MaxHostData)
	if err := kv.SetHostData(most); err != nil {
		t.Fatal(err)
	}
	imported := must[*KV](t)(p.to.Import(must[[]byte](t)(kv.Ticket())))
	defer imported.Close()
	if data := must[[]byte](t)(imported.HostData()); !bytes.Equal(data, most) {
		t.Errorf("%d bytes", len(data))
	}
}

func TestStreamedKV(t *testing.T) {
	p := newPair(t)
	request := p.request()
	request.StreamKV = true
	var started, last *KV
	var decoding *Stream
	for event, err := range submit(t, p.prefill, request).Events() {
		if err != nil {
			t.Fatal(err)
		}
		switch event.Type {
		case EventKVStreamStarted:
			started = event.KV
			imported := must[*KV](t)(p.to.Import(must[[]byte](t)(started.Ticket())))
			decoding = submit(t, p.decode, Request{KV: imported, EmitPending: true, Recompute: true})
		case EventFinished:
			last = event.KV
		}
	}
	if started == nil || started != last {
		t.Fatalf("started with %p, finished with %p", started, last)
	}
	tokens, end := read(t, decoding)
	if !slices.Equal(tokens, p.want) || end.Recomputed {
		t.Errorf("%v instead of %v, %+v", tokens, p.want, end)
	}
}

func TestImage(t *testing.T) {
	p := newPair(t)
	kv, _ := p.prefilled(t)
	image := must[*Image](t)(kv.Image())
	whole := must[[]byte](t)(io.ReadAll(image))
	if int64(len(whole)) != image.Size() || image.Size() != must[KVInfo](t)(kv.Info()).ImageBytes {
		t.Fatalf("%d bytes of %d", len(whole), image.Size())
	}
	if err := iotest.TestReader(must[*Image](t)(kv.Image()), whole); err != nil {
		t.Error(err)
	}
	var written bytes.Buffer
	image = must[*Image](t)(kv.Image())
	if n, err := image.WriteTo(&written); n != image.Size() || err != nil || !bytes.Equal(written.Bytes(), whole) {
		t.Errorf("%d bytes written, %v", n, err)
	}
	p.goesOn(t, p.decode, must[*KV](t)(p.to.Import(whole)))

	damaged := bytes.Clone(whole)
	damaged[len(damaged)/2] ^= 1
	_, err := p.to.Import(damaged)
	expect(t, err, ErrCorrupt)
	image = must[*Image](t)(kv.Image())
	kv.Close()
	_, err = io.ReadAll(image)
	expect(t, err, ErrNotFound, ErrClosed)
	_, err = kv.Image()
	expect(t, err, ErrNotFound, ErrClosed)
}

func TestParkedInAFile(t *testing.T) {
	p := newPair(t)
	kv, _ := p.prefilled(t)
	path := filepath.Join(t.TempDir(), "parked.kv")
	if err := kv.Save(path); err != nil {
		t.Fatal(err)
	}
	kv.Close()
	p.goesOn(t, p.decode, must[*KV](t)(p.to.LoadKV(path)))
	_, err := p.to.LoadKV(path + ".other")
	expect(t, err, ErrNotFound)
	expect(t, kv.Save(path), ErrNotFound, ErrClosed)
}

func TestDuplicate(t *testing.T) {
	p := newPair(t)
	kv, _ := p.prefilled(t)
	second := must[*KV](t)(kv.Duplicate())
	decode := newEngine(t, p.from, EngineConfig{Role: RoleDecode})
	p.goesOn(t, decode, kv)
	p.goesOn(t, decode, second)
	_, err := kv.Duplicate()
	expect(t, err, ErrExpired)
}

func TestExportOfARunningGeneration(t *testing.T) {
	cache := newCache(t, CacheConfig{})
	first, second := newEngine(t, cache, EngineConfig{}), newEngine(t, cache, EngineConfig{})
	request := long(t)
	request.MaxNewTokens = 2000
	want, _ := generate(t, first, request)
	stream := submit(t, first, request)
	var tokens []int32
	for event, err := range stream.Events() {
		if err != nil {
			t.Fatal(err)
		}
		switch event.Type {
		case EventToken:
			if tokens = append(tokens, event.Token); len(tokens) == 3 {
				if err := stream.Export(); err != nil {
					t.Fatal(err)
				}
			}
		case EventFinished:
			if event.Reason != FinishExported || event.KV == nil || event.Index != len(tokens) {
				t.Fatalf("%+v after %d tokens", event, len(tokens))
			}
			rest, _ := generate(t, second, Request{KV: event.KV})
			if !slices.Equal(append(tokens, rest...), want) {
				t.Errorf("%d and %d tokens are not the %d wanted", len(tokens), len(rest), len(want))
			}
		}
	}
	if err := stream.Export(); err != nil {
		t.Error("of a request that has ended:", err)
	}
	first.Close()
	expect(t, stream.Export(), ErrClosed)
}

func TestKeptKVAndAnotherTurn(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	turn := must[[]int32](t)(testModel(t).TokenizeNoSpecial(" where does anna live?"))
	_, end := generate(t, engine, Request{Prompt: ask(t, "what does the red box hold?"), KeepKV: true, Stop: tokenize(t, ".")[1:]})
	if end.KV == nil {
		t.Fatalf("%+v", end)
	}
	answer, end := generate(t, engine, Request{KV: end.KV, Prompt: turn, OverrideSampling: true})
	if got := text(t, answer); got != " in paris." || end.KV != nil {
		t.Errorf("%q %+v", got, end)
	}
}

func TestRefusedSubmitLeavesTheHandle(t *testing.T) {
	p := newPair(t)
	kv, _ := p.prefilled(t)
	ctx := testContext(t)
	local := newEngine(t, p.from, EngineConfig{Role: RoleDecode})

	_, err := p.decode.Submit(ctx, Request{KV: kv})
	expect(t, err, ErrInvalidArgument) // the handle belongs to another cache
	_, err = local.Submit(ctx, Request{KV: kv, MaxNewTokens: -1})
	expect(t, err, ErrInvalidArgument) // the Go package refuses it
	_, err = local.Submit(ctx, Request{KV: kv, Temperature: -1, OverrideSampling: true})
	expect(t, err, ErrInvalidArgument) // the library refuses it
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = local.Submit(ended, Request{KV: kv})
	expect(t, err, ErrCancelled, context.Canceled)
	closed := newEngine(t, p.from, EngineConfig{Role: RoleDecode})
	closed.Close()
	_, err = closed.Submit(ctx, Request{KV: kv})
	expect(t, err, ErrClosed)

	p.goesOn(t, local, kv)
	_, err = local.Submit(ctx, Request{KV: kv})
	expect(t, err, ErrExpired)
	kv.Close() // a second Close does nothing
}

func TestBatchIsAcceptedUpToTheFirstThatIsRefused(t *testing.T) {
	p := newPair(t)
	kv, _ := p.prefilled(t)
	twice, _ := p.prefilled(t)
	engine := newEngine(t, p.from, EngineConfig{Role: RoleDecode})
	good := p.request()
	bad := p.request()
	bad.TopP = 7
	streams, err := engine.SubmitBatch(testContext(t), []Request{good, {KV: twice, EmitPending: true}, bad, {KV: kv}})
	expect(t, err, ErrInvalidArgument)
	if len(streams) != 2 {
		t.Fatal(len(streams))
	}
	for _, stream := range streams {
		if tokens, _ := read(t, stream); !slices.Equal(tokens, p.want) {
			t.Errorf("%v", tokens)
		}
	}
	streams, err = engine.SubmitBatch(testContext(t), []Request{{KV: kv, EmitPending: true}, {KV: kv}, good})
	expect(t, err, ErrExpired)
	if len(streams) != 1 {
		t.Fatal(len(streams))
	}
	if tokens, _ := read(t, streams[0]); !slices.Equal(tokens, p.want) {
		t.Errorf("%v", tokens)
	}
	if streams, err := engine.SubmitBatch(testContext(t), nil); len(streams) != 0 || err != nil {
		t.Errorf("%d of none, %v", len(streams), err)
	}
}
