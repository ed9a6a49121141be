package cleave

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"sync"
	"testing"
	"time"
)

// facts is a prompt about which the model in models/tiny answers questions.
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
	t.Cleanup(func() {
		// The cleanup runs after the engines were closed: the cache must then hold no blocks.
		eventually(t, "clean cache", func() (bool, any) {
			audit, err := cache.Audit()
			clean := audit.ByRequests == 0 && audit.ByTransfers == 0 && audit.ByExports == 0 && audit.Leaked == 0
			return errors.Is(err, ErrClosed) || err == nil && clean, audit
		})
		cache.Close()
	})
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

// ask returns the tokens of facts followed by a question.
func ask(t testing.TB, question string) []int32 { return tokenize(t, facts+question) }

// long is a request that takes some time.
func long(t testing.TB) Request {
	return Request{Prompt: ask(t, "the old farmer"), IgnoreEOS: true, MaxNewTokens: 400}
}

// endless returns a request that a test stops before its end, even on a slow machine. It may need a whole cache.
func endless(t testing.TB) Request {
	request := long(t)
	request.MaxNewTokens = 12000
	return request
}

func tokenize(t testing.TB, text string) []int32 {
	t.Helper()
	tokens, err := testModel(t).Tokenize(text)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// eventually waits for a condition that other goroutines and threads bring about.
func eventually(t testing.TB, what string, done func() (bool, any)) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		ok, seen := done()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s: %+v", what, seen)
		}
	}
}

// expect checks that an error matches all of these.
func expect(t testing.TB, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Errorf("%v is not %v", err, target)
		}
	}
}

// must unwraps a call that returns a value and an error.
func must[T any](t testing.TB) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// contextTokens is the context length in the tests. It is longer than the model was trained for, so that some sequences
// never end.
const contextTokens = 1 << 14

// stretch copies the model to a directory of its own, with a longer context.
func stretch() (string, error) {
	dir, err := os.MkdirTemp("", "cleave")
	if err != nil {
		return "", err
	}
	if err := os.CopyFS(dir, os.DirFS(modelPath())); err != nil {
		return dir, err
	}
	path := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return dir, err
	}
	var config map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		return dir, err
	}
	config["max_position_embeddings"] = contextTokens
	if data, err = json.Marshal(config); err != nil {
		return dir, err
	}
	return dir, os.WriteFile(path, data, 0o644)
}

// TestMain runs the tests and examples on that copy, and looks for leaked goroutines.
func TestMain(m *testing.M) {
	dir, err := stretch()
	if err == nil {
		err = os.Setenv("CLEAVE_TEST_MODEL", dir)
	}
	code := 1
	before := runtime.NumGoroutine()
	if err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, err)
	}
	os.RemoveAll(dir)
	for range 20000 {
		if code != 0 || runtime.NumGoroutine() <= before {
			os.Exit(code)
		}
		time.Sleep(time.Millisecond)
	}
	pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
	fmt.Fprintln(os.Stderr, "goroutines are left")
	os.Exit(1)
}

// testContext returns a context that ends with the test, and long before the test binary's own timeout.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// submit submits a request, and again while the queue has no place for it: until its poller runs, events of others fill it.
func submit(t testing.TB, engine *Engine, request Request) (stream *Stream) {
	t.Helper()
	ctx := testContext(t)
	eventually(t, "place for a request", func() (bool, any) {
		var err error
		if stream, err = engine.Submit(ctx, request); err != nil && !errors.Is(err, ErrWouldBlock) {
			t.Fatal(err)
		}
		return err == nil, err
	})
	return stream
}

// read reads a stream to its end and requires that it ends without an error.
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
