package cleave

import (
	"context"
	"errors"
	"io"
	"testing"
)

// TestStreamCancel checks that a cancelled stream can be read to its end, which has the usual fields.
func TestStreamCancel(t *testing.T) {
	engine := newEngine(t, newCache(t, CacheConfig{}), EngineConfig{})
	prompt, err := testModel(t).Tokenize(facts)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 { // the second round finds the first one's prompt in the prefix cache
		stream, err := engine.Submit(context.Background(), Request{Prompt: prompt, IgnoreEOS: true})
		if err != nil {
			t.Fatal(err)
		}
		if event, err := stream.Next(); err != nil || event.Type != EventToken {
			t.Fatalf("%+v, %v", event, err)
		}
		stream.Cancel()
		stream.Cancel()
		tokens := 1
		event, err := stream.Next()
		for ; err == nil && event.Type == EventToken; event, err = stream.Next() {
			tokens++
		}
		if event.Type != EventFinished || !errors.Is(err, ErrCancelled) || event.Index != tokens || (event.CachedTokens > 0) != (round > 0) {
			t.Errorf("round %d: after %d tokens %+v, %v", round, tokens, event, err)
		}
		stream.Cancel() // cancels a request that has ended
		if _, err := stream.Next(); !errors.Is(err, ErrCancelled) || err == io.EOF {
			t.Error(err)
		}
	}
}
