package cleave

import "testing"

func TestPrefillToDecode(t *testing.T) {
	cache := newCache(t, CacheConfig{})
	prefill := newEngine(t, cache, EngineConfig{Role: RolePrefill})
	decode := newEngine(t, cache, EngineConfig{Role: RoleDecode})
	prompt := tokenize(t, facts+"what does the red box hold?")

	first, end := read(t, submit(t, prefill, Request{Prompt: prompt, MaxNewTokens: 16}))
	if end.Reason != FinishPrefilled || end.KV == nil || len(first) != 1 {
		t.Fatalf("prefilled: %+v after %d tokens", end, len(first))
	}
	rest, end := read(t, submit(t, decode, Request{KV: end.KV}))
	if end.Reason != FinishStop || end.KV != nil {
		t.Fatalf("decoded: %+v", end)
	}
	if got := text(t, append(first, rest...)); got != " a key." {
		t.Fatalf("%q", got)
	}
}
