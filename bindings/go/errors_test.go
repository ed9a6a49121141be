package cleave

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCodesAreNamedAsInC(t *testing.T) {
	for code, name := range map[Code]string{
		ErrInvalidArgument: "INVALID_ARGUMENT", ErrNotFound: "NOT_FOUND", ErrUnsupported: "UNSUPPORTED",
		ErrWouldBlock: "WOULD_BLOCK", ErrOutOfMemory: "OUT_OF_MEMORY", ErrIO: "IO", ErrIncompatible: "INCOMPATIBLE",
		ErrPermission: "PERMISSION", ErrExpired: "EXPIRED", ErrCorrupt: "CORRUPT", ErrCancelled: "CANCELLED",
		ErrTimeout: "TIMEOUT", ErrDevice: "DEVICE", ErrPeer: "PEER", ErrShutdown: "SHUTDOWN", ErrInternal: "INTERNAL",
		ErrPrefillElsewhere: "PREFILL_ELSEWHERE", Code(-99): "UNKNOWN",
	} {
		if code.String() != name {
			t.Errorf("%d is %s in C, not %s", code, code, name)
		}
	}
	if Code(-18).String() != "UNKNOWN" {
		t.Error("the library has a code that this package has no name for")
	}
}

func TestErrorsNameWhatIsAtFault(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "nothing"))
	expect(t, err, ErrNotFound)
	var e *Error
	if !errors.As(err, &e) || e.Code != ErrNotFound || !strings.Contains(e.Message, "nothing") {
		t.Errorf("%#v", err)
	}
	if text := err.Error(); !strings.HasPrefix(text, "cleave: ") || !strings.HasSuffix(text, "(NOT_FOUND)") {
		t.Errorf("%q", text)
	}

	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(modelPath())); err != nil {
		t.Fatal(err)
	}
	weights := filepath.Join(dir, "model.safetensors")
	if err := os.Truncate(weights, 1000); err != nil {
		t.Fatal(err)
	}
	_, err = Load(dir)
	expect(t, err, ErrCorrupt)
	if !strings.Contains(err.Error(), "model.safetensors") {
		t.Errorf("%q", err)
	}
}

func TestStringsWithANUL(t *testing.T) {
	cache := newCache(t, CacheConfig{})
	_, load := Load(modelPath() + "\x00/other")
	_, loadKV := cache.LoadKV("a\x00b")
	_, listen := cache.Listen("127.0.0.1:0\x00", ListenConfig{})
	_, advertise := cache.Listen("127.0.0.1:0", ListenConfig{Advertise: "a\x00b"})
	for _, err := range []error{load, loadKV, listen, advertise} {
		expect(t, err, ErrInvalidArgument)
	}
}

func TestNumbersThatDoNotFit(t *testing.T) {
	cache := newCache(t, CacheConfig{})
	engine := newEngine(t, cache, EngineConfig{})
	for _, request := range []Request{
		{MaxNewTokens: -1}, {MinNewTokens: 1 << 32}, {TopK: -1}, {Priority: -1}, {TopLogprobs: 1 << 40}, {Timeout: -time.Second},
	} {
		request.Prompt = []int32{1}
		if _, err := engine.Submit(context.Background(), request); !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("%+v: %v", request, err)
		}
	}
	for _, config := range []CacheConfig{
		{BlockTokens: -1}, {Lease: -1}, {Lease: 1 << 62}, {PeerTimeout: -1}, {Devices: []int{1 << 40}},
	} {
		if _, err := testModel(t).NewCache(config); !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("%+v: %v", config, err)
		}
	}
	for _, config := range []EngineConfig{
		{Role: 7}, {MaxSequences: -1}, {Threads: -1}, {CPUs: []int{-1}}, {CPUs: []int{1024}},
	} {
		if _, err := cache.NewEngine(config); !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("%+v: %v", config, err)
		}
	}
	if _, err := NewQueue(-1); !errors.Is(err, ErrInvalidArgument) {
		t.Error(err)
	}
	if _, err := NewQueue(1); !errors.Is(err, ErrInvalidArgument) {
		t.Error(err)
	}
}

func TestClosedObjects(t *testing.T) {
	model := must[*Model](t)(Load(modelPath()))
	cache := newCache(t, CacheConfig{})
	queue := must[*Queue](t)(NewQueue(0))
	engine := newEngine(t, cache, EngineConfig{Queue: queue})
	detokenizer := must[*Detokenizer](t)(model.NewDetokenizer())
	for range 2 {
		for _, closer := range []interface{ Close() error }{model, detokenizer, engine, queue, cache} {
			if err := closer.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx := context.Background()
	for what, call := range map[string]func() error{
		"Model.Info":         func() error { _, err := model.Info(); return err },
		"Model.Tokenize":     func() error { _, err := model.Tokenize("a"); return err },
		"Model.TokenBytes":   func() error { _, err := model.TokenBytes(1); return err },
		"Model.ChatPrompt":   func() error { _, err := model.ChatPrompt(nil); return err },
		"Model.Detokenize":   func() error { _, err := model.Detokenize(nil); return err },
		"Model.NewCache":     func() error { _, err := model.NewCache(CacheConfig{}); return err },
		"Detokenizer.Push":   func() error { _, err := detokenizer.Push(7); return err },
		"Detokenizer.Flush":  func() error { _, err := detokenizer.Flush(); return err },
		"Cache.NewEngine":    func() error { _, err := cache.NewEngine(EngineConfig{}); return err },
		"Cache.Import":       func() error { _, err := cache.Import([]byte("x")); return err },
		"Cache.LoadKV":       func() error { _, err := cache.LoadKV("x"); return err },
		"Cache.Listen":       func() error { _, err := cache.Listen("127.0.0.1:0", ListenConfig{}); return err },
		"Cache.Address":      func() error { _, err := cache.Address(); return err },
		"Cache.Pair":         func() error { _, err := cache.Pair([]byte("x"), TransportAny); return err },
		"Cache.Audit":        func() error { _, err := cache.Audit(); return err },
		"Engine.Submit":      func() error { _, err := engine.Submit(ctx, Request{Prompt: []int32{1}}); return err },
		"Engine.SetRole":     func() error { return engine.SetRole(RoleMixed) },
		"Engine.Drain":       func() error { return engine.Drain(ctx) },
		"Engine.Metrics":     func() error { _, err := engine.Metrics(); return err },
		"NewEngine on queue": func() error { _, err := newCache(t, CacheConfig{}).NewEngine(EngineConfig{Queue: queue}); return err },
	} {
		if err := call(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
