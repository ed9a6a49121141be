// Package testkit starts workers on the tiny model for the tests of the gRPC services, and runs the library alone to
// compare with.
package testkit

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	"cleave/examples/go-server/internal/rpc"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Facts begins a prompt about which the model answers questions.
const Facts = "the red box holds a key. anna lives in paris. the blue jar holds a coin. tom likes the colour green. "

// Secret is the secret of all caches.
var Secret = []byte("thirty-two bytes for every cache")

// contextTokens is longer than the model was trained for, so that some sequences end only when a test ends them.
const contextTokens = 1 << 14

var model = sync.OnceValues(func() (*cleave.Model, error) {
	dir, err := os.MkdirTemp("", "cleave")
	if err != nil {
		return nil, err
	}
	directory = dir
	source := os.Getenv("CLEAVE_TEST_MODEL")
	if source == "" {
		source = modelPath()
	}
	if err := os.CopyFS(dir, os.DirFS(source)); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var config map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, err
	}
	config["max_position_embeddings"] = contextTokens
	if data, err = json.Marshal(config); err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return nil, err
	}
	return cleave.Load(dir)
})

var directory string

// Main runs the tests of a package and removes what they left. Call it from TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if directory != "" {
		os.RemoveAll(directory)
	}
	os.Exit(code)
}

// Model returns the model and its directory.
func Model(t testing.TB) (*cleave.Model, string) {
	t.Helper()
	m, err := model()
	if err != nil {
		t.Fatal(err)
	}
	return m, directory
}

// Tokens returns the tokens of the facts followed by a question.
func Tokens(t testing.TB, question string) []int32 {
	t.Helper()
	m, _ := Model(t)
	tokens, err := m.Tokenize(Facts + question)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// Unsigned converts tokens for a message.
func Unsigned(tokens []int32) []uint32 {
	ids := make([]uint32, len(tokens))
	for i, token := range tokens {
		ids[i] = uint32(token)
	}
	return ids
}

// Context ends with the test, and long before the test binary's own timeout.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Worker is a worker with a client.
type Worker struct {
	Host   *core.Host
	Server *rpc.Server
	*grpc.ClientConn
}

// Start starts a worker. At the end of the test nothing may be left in its cache.
func Start(t testing.TB, role cleave.Role, register func(*rpc.Server, *core.Host), change ...func(*core.Config)) *Worker {
	t.Helper()
	_, dir := Model(t)
	config := core.Config{Model: dir, Name: "tiny", Role: role, Device: cleave.DeviceCPU, KVBytes: 16 << 20, Threads: 1, Secret: Secret,
		Lease: time.Minute}
	for _, change := range change {
		change(&config)
	}
	host, err := core.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := rpc.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer()
	register(server, host)
	server.Serving(true, server.Services()...)
	go server.Serve(listener)
	client, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	w := &Worker{host, server, client}
	t.Cleanup(func() {
		client.Close()
		server.Stop()
		w.HoldsNothing(t)
		host.Close()
	})
	return w
}

// HoldsNothing waits until nothing but the prefix cache has a block.
func (w *Worker) HoldsNothing(t testing.TB) {
	t.Helper()
	Eventually(t, "an idle cache", func() (bool, any) {
		audit, err := w.Host.Cache.Audit()
		return err == nil && audit.ByRequests == 0 && audit.ByTransfers == 0 && audit.ByExports == 0 && audit.Leaked == 0, audit
	})
}

// Eventually waits for a condition that others bring about.
func Eventually(t testing.TB, what string, done func() (bool, any)) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		ok, seen := done()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s: %+v", what, seen)
		}
	}
}

var alone = sync.OnceValues(func() (*cleave.Engine, error) {
	m, err := model()
	if err != nil {
		return nil, err
	}
	cache, err := m.NewCache(cleave.CacheConfig{BytesPerDevice: 16 << 20})
	if err != nil {
		return nil, err
	}
	return cache.NewEngine(cleave.EngineConfig{Threads: 1})
})

// Alone runs a request on an engine of the library without any server, and returns its tokens and their text.
func Alone(t testing.TB, request cleave.Request) (events []cleave.Event, text string) {
	t.Helper()
	engine, err := alone()
	if err != nil {
		t.Fatal(err)
	}
	var tokens []int32
	for event, err := range engine.Generate(Context(t), request) {
		if err != nil {
			t.Fatal(err)
		}
		if event.Type == cleave.EventToken {
			events, tokens = append(events, event), append(tokens, event.Token)
		}
	}
	m, _ := Model(t)
	text, err = m.Detokenize(tokens)
	if err != nil && !errors.Is(err, cleave.ErrUnsupported) {
		t.Fatal(err)
	}
	return events, text
}

// modelPath looks for the model above the package under test.
func modelPath() string {
	for up := "../.."; ; up = "../" + up {
		path := filepath.Join(up, "models", "tiny")
		if _, err := os.Stat(path); err == nil || len(up) > 100 {
			return path
		}
	}
}
