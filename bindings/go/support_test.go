package cleave

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"
)

// facts is a prompt that the model in models/tiny answers questions to.
const facts = "the red box holds a key. anna lives in paris. the blue jar holds a coin. tom likes the colour green. "

func modelPath() string {
	if path := os.Getenv("CLEAVE_TEST_MODEL"); path != "" {
		return path
	}
	return "../../models/tiny"
}

var tiny = sync.OnceValues(func() (*Model, error) { return Load(modelPath()) })

func testModel(t testing.TB) *Model {
	t.Helper()
	m, err := tiny()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func newCache(t testing.TB, config CacheConfig) *Cache {
	t.Helper()
	if config.BytesPerDevice == 0 {
		config.BytesPerDevice = 16 << 20
	}
	cache, err := testModel(t).NewCache(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cache.Close() })
	return cache
}

func newEngine(t testing.TB, cache *Cache, config EngineConfig) *Engine {
	t.Helper()
	if config.Threads == 0 {
		config.Threads = 1
	}
	engine, err := cache.NewEngine(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	return engine
}

func tokenize(t testing.TB, text string) []int32 {
	t.Helper()
	tokens, err := testModel(t).Tokenize(text)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// testContext ends with the test, and long before the test binary loses patience.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func submit(t testing.TB, engine *Engine, request Request) *Stream {
	t.Helper()
	stream, err := engine.Submit(testContext(t), request)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// read reads a stream to its end, which has to be a good one.
func read(t testing.TB, stream *Stream) (tokens []int32, last Event) {
	t.Helper()
	for event, err := range stream.Events() {
		if err != nil {
			t.Fatal(err)
		}
		switch event.Type {
		case EventToken:
			tokens = append(tokens, event.Token)
		case EventFinished:
			last = event
		}
	}
	if last.Type != EventFinished {
		t.Fatal("a stream without an end")
	}
	return tokens, last
}

func text(t testing.TB, tokens []int32) string {
	t.Helper()
	s, err := testModel(t).Detokenize(tokens)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
