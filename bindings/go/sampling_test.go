package cleave

import (
	"math"
	"slices"
	"testing"
	"time"
)

// generate runs a request and requires that it ends without an error.
func generate(t *testing.T, engine *Engine, request Request) ([]int32, Event) {
	t.Helper()
	return read(t, submit(t, engine, request))
}

func TestStops(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	prompt := ask(t, "what does the red box hold?")
	all, end := generate(t, engine, Request{Prompt: prompt, MaxNewTokens: 8, IgnoreEOS: true})
	if len(all) != 8 || end.Index != 8 || end.Reason != FinishLength {
		t.Fatalf("%v %+v", all, end)
	}
	for what, request := range map[string]Request{
		"id":       {Stop: all[2:3]},
		"sequence": {StopSequences: [][]int32{{all[3], all[2]}, all[1:3]}},
	} {
		request.Prompt, request.MaxNewTokens, request.IgnoreEOS = prompt, 8, true
		some, end := generate(t, engine, request)
		if end.Reason != FinishStop || !slices.Equal(some, all[:3]) {
			t.Errorf("%s: %v of %v, %v", what, some, all, end.Reason)
		}
	}
	some, end := generate(t, engine, Request{Prompt: prompt, MaxNewTokens: 8, MinNewTokens: 5})
	if end.Reason != FinishStop && end.Reason != FinishLength || len(some) < 5 {
		t.Errorf("%v %v", some, end.Reason)
	}
	if some, end = generate(t, engine, Request{Prompt: prompt, MaxNewTokens: 8}); end.Reason != FinishStop || text(t, some) != " a key." {
		t.Errorf("%q %v", text(t, some), end.Reason)
	}
}

func TestLogprobs(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	for _, top := range []int{0, 1, 5, 128} {
		stream := submit(t, engine, Request{
			Prompt: ask(t, "where does anna live?"), MaxNewTokens: 40, IgnoreEOS: true, Logprobs: true, TopLogprobs: top,
		})
		n := 0
		var kept []Event
		for event, err := range stream.Events() {
			if err != nil {
				t.Fatal(err)
			}
			if event.Type != EventToken {
				continue
			}
			if event.Index != n || event.Logprob > 0 || len(event.Top) != top {
				t.Fatalf("%d: %+v", n, event)
			}
			kept = append(kept, event)
			n++
		}
		// Alternatives that were handed out must not change later.
		for _, event := range kept {
			sum := 0.0
			for i, alternative := range event.Top {
				sum += math.Exp(float64(alternative.Logprob))
				if i > 0 && alternative.Logprob > event.Top[i-1].Logprob {
					t.Fatalf("%d alternatives out of order: %+v", top, event)
				}
			}
			if top > 0 && (event.Top[0].Token != event.Token || event.Top[0].Logprob != event.Logprob) || sum > 1.001 {
				t.Fatalf("greedy, %d alternatives: %+v", top, event)
			}
		}
		if n != 40 {
			t.Errorf("%d tokens", n)
		}
	}
}

func TestSeeds(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	sample := func(seed uint64) []int32 {
		tokens, _ := generate(t, engine, Request{
			Prompt: tokenize(t, "the old farmer"), MaxNewTokens: 24, IgnoreEOS: true, Temperature: 1.5, TopP: 0.99, Seed: seed,
		})
		return tokens
	}
	if a, b, c := sample(7), sample(7), sample(8); !slices.Equal(a, b) || slices.Equal(a, c) {
		t.Errorf("%v\n%v\n%v", a, b, c)
	}
	if slices.Equal(sample(0), sample(0)) {
		t.Error("no seed is the same seed twice")
	}
}

func TestShapingOfSamples(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	prompt := ask(t, "what does the red box hold?")
	greedy, _ := generate(t, engine, Request{Prompt: prompt, MaxNewTokens: 4, IgnoreEOS: true})
	base := Request{Prompt: prompt, MaxNewTokens: 4, IgnoreEOS: true, Temperature: 2, Seed: 3}
	free, _ := generate(t, engine, base)
	if slices.Equal(free, greedy) {
		t.Fatal("the seed happens to give the greedy tokens")
	}
	for what, change := range map[string]func(*Request){
		"TopK": func(r *Request) { r.TopK = 1 }, "TopP": func(r *Request) { r.TopP = 1e-6 }, "MinP": func(r *Request) { r.MinP = 1 },
	} {
		request := base
		change(&request)
		if got, _ := generate(t, engine, request); !slices.Equal(got, greedy) {
			t.Errorf("%s: %v, not %v", what, got, greedy)
		}
	}
	biased, _ := generate(t, engine, Request{
		Prompt: prompt, MaxNewTokens: 4, IgnoreEOS: true, LogitBias: map[int32]float32{100: 50, 101: 100, 102: -100},
	})
	if !slices.Equal(biased, []int32{101, 101, 101, 101}) {
		t.Errorf("biased to 101: %v", biased)
	}
	for what, request := range map[string]Request{
		"frequency": {FrequencyPenalty: 2}, "presence": {PresencePenalty: 2},
	} {
		request.Prompt, request.MaxNewTokens, request.IgnoreEOS = prompt, 2, true
		request.LogitBias = map[int32]float32{100: 98.5, 101: 100}
		if got, _ := generate(t, engine, request); !slices.Equal(got, []int32{101, 100}) {
			t.Errorf("%s penalty: %v", what, got)
		}
	}
	repeated, _ := generate(t, engine, Request{
		Prompt: prompt, MaxNewTokens: 2, IgnoreEOS: true, RepetitionPenalty: 1000, LogitBias: map[int32]float32{100: 50, 101: 100},
	})
	if repeated[0] != 101 || repeated[1] == 101 {
		t.Errorf("repetition penalty: %v", repeated)
	}
}

func TestTimeoutOfTheRequest(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	request := long(t)
	request.Timeout = time.Microsecond
	var last Event
	var err error
	for last, err = range submit(t, engine, request).Events() {
	}
	expect(t, err, ErrTimeout)
	if last.Type != EventFinished || last.Reason != FinishError {
		t.Errorf("%+v", last)
	}
}

func TestPrefixCacheAndSalt(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	request := Request{Prompt: ask(t, "where does anna live?"), MaxNewTokens: 2}
	cached := func() int {
		_, end := generate(t, engine, request)
		return end.CachedTokens
	}
	first, second := cached(), cached()
	request.CacheSalt = 1
	salted := cached()
	if first != 0 || second == 0 || second%16 != 0 || salted != 0 {
		t.Errorf("cached: %d, %d, with another salt %d", first, second, salted)
	}
	request.CacheSalt = 0
	engine = newEngine(t, newCache(t, CacheConfig{NoPrefix: true}), EngineConfig{})
	if first, second := cached(), cached(); first != 0 || second != 0 {
		t.Errorf("without a prefix index: %d, %d", first, second)
	}
}

func TestTimesOfEvents(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	before := time.Now()
	last := before
	stream := submit(t, engine, Request{Prompt: []int32{1, 2, 3}, MaxNewTokens: 3, IgnoreEOS: true})
	for event, err := range stream.Events() {
		if err != nil || event.Time.Before(last) || time.Now().Before(event.Time) {
			t.Errorf("%v: after %v: %+v", err, last, event)
		}
		last = event.Time
	}
	if stream.ID() == 0 || last.Equal(before) {
		t.Error("no id, or no events")
	}
}
