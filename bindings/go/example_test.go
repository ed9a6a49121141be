package cleave_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"

	"cleave/go"
)

const facts = "the red box holds a key. anna lives in paris. the blue jar holds a coin. "

// modelDir is models/tiny. The model answers questions from facts in the prompt.
func modelDir() string {
	if dir := os.Getenv("CLEAVE_TEST_MODEL"); dir != "" {
		return dir
	}
	return "../../models/tiny"
}

// open loads the model and creates a cache for it. Examples leave error handling to check.
func open(config cleave.CacheConfig) (*cleave.Model, *cleave.Cache) {
	model, err := cleave.Load(modelDir())
	check(err)
	config.BytesPerDevice = 16 << 20
	cache, err := model.NewCache(config)
	check(err)
	return model, cache
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// One engine computes a prompt and another engine generates the answer. No KV is copied.
func Example() {
	ctx := context.Background()
	model, cache := open(cleave.CacheConfig{})
	defer model.Close()
	defer cache.Close()
	prefill, err := cache.NewEngine(cleave.EngineConfig{Role: cleave.RolePrefill})
	check(err)
	defer prefill.Close()
	decode, err := cache.NewEngine(cleave.EngineConfig{Role: cleave.RoleDecode})
	check(err)
	defer decode.Close()

	prompt, err := model.Tokenize(facts + "what does the red box hold?")
	check(err)
	var answer []int32
	var kv *cleave.KV
	for event, err := range prefill.Generate(ctx, cleave.Request{Prompt: prompt, MaxNewTokens: 16}) {
		check(err)
		if event.Type == cleave.EventToken {
			answer = append(answer, event.Token)
		}
		kv = event.KV // the last event has the handle
	}
	for event, err := range decode.Generate(ctx, cleave.Request{KV: kv}) {
		check(err)
		if event.Type == cleave.EventToken {
			answer = append(answer, event.Token)
		}
	}
	text, err := model.Detokenize(answer)
	check(err)
	fmt.Println(text)
	// Output: a key.
}

// This example runs a chat and prints its text as it is generated.
func ExampleEngine_Generate() {
	model, cache := open(cleave.CacheConfig{})
	defer model.Close()
	defer cache.Close()
	engine, err := cache.NewEngine(cleave.EngineConfig{})
	check(err)
	defer engine.Close()

	prompt, err := model.ChatPrompt([]cleave.Message{{Role: "user", Content: facts + "where does anna live?"}})
	check(err)
	tokens, err := model.TokenizeNoSpecial(prompt)
	check(err)
	text, err := model.NewDetokenizer()
	check(err)
	defer text.Close()
	for event, err := range engine.Generate(context.Background(), cleave.Request{Prompt: tokens, MaxNewTokens: 16}) {
		check(err)
		switch event.Type {
		case cleave.EventToken:
			piece, err := text.Push(event.Token)
			check(err)
			fmt.Print(piece)
		case cleave.EventFinished:
			fmt.Printf(" (%v)\n", event.Reason)
		}
	}
	// Output: in paris. (stop)
}

// The end of a context cancels its requests.
func ExampleEngine_Submit() {
	model, cache := open(cleave.CacheConfig{})
	defer model.Close()
	defer cache.Close()
	engine, err := cache.NewEngine(cleave.EngineConfig{})
	check(err)
	defer engine.Close()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := engine.Submit(ctx, cleave.Request{Prompt: []int32{1, 2, 3}, MaxNewTokens: 10000, IgnoreEOS: true})
	check(err)
	defer stream.Close()
	for {
		event, err := stream.Next()
		if err == io.EOF {
			break
		}
		if errors.Is(err, context.Canceled) {
			fmt.Println("cancelled")
			break
		}
		check(err)
		if event.Index == 2 {
			cancel()
		}
	}
	// Output: cancelled
}

// This example moves a sequence from one cache to another, which may be in another process or on another host. The
// server sends the ticket over its own protocol as soon as the prompt's computation begins. The KV is fetched while the
// rest of the prompt is computed.
func ExampleCache_Import() {
	ctx := context.Background()
	secret := [32]byte{1, 2, 3} // shared by all caches that may import from each other
	model, exporter := open(cleave.CacheConfig{Secret: secret})
	defer model.Close()
	defer exporter.Close()
	importer, err := model.NewCache(cleave.CacheConfig{Secret: secret, BytesPerDevice: 16 << 20})
	check(err)
	defer importer.Close()
	prefill, err := exporter.NewEngine(cleave.EngineConfig{Role: cleave.RolePrefill})
	check(err)
	defer prefill.Close()
	decode, err := importer.NewEngine(cleave.EngineConfig{Role: cleave.RoleDecode})
	check(err)
	defer decode.Close()

	wire := make(chan []byte)
	go func() {
		prompt, err := model.Tokenize(facts + "what does the blue jar hold?")
		check(err)
		request := cleave.Request{Prompt: prompt, MaxNewTokens: 16, StreamKV: true}
		for event, err := range prefill.Generate(ctx, request) {
			check(err)
			if event.Type == cleave.EventKVStreamStarted {
				ticket, err := event.KV.Ticket()
				check(err)
				wire <- ticket
			}
		}
	}()

	kv, err := importer.Import(<-wire)
	check(err)
	defer kv.Close() // releases the handle if it was not submitted
	var answer []int32
	for event, err := range decode.Generate(ctx, cleave.Request{KV: kv, EmitPending: true, Recompute: true}) {
		check(err)
		if event.Type == cleave.EventToken {
			answer = append(answer, event.Token)
		}
	}
	text, err := model.Detokenize(answer)
	check(err)
	fmt.Println(text, kv.Wait(ctx))
	// Output: a coin. <nil>
}

// Pair checks two caches before there is any traffic.
func ExampleCache_Pair() {
	secret := [32]byte{1, 2, 3}
	model, exporter := open(cleave.CacheConfig{Secret: secret})
	defer model.Close()
	defer exporter.Close()
	_, err := exporter.Listen("127.0.0.1:0", cleave.ListenConfig{})
	check(err)
	address, err := exporter.Address()
	check(err)

	_, importer := open(cleave.CacheConfig{Secret: secret})
	defer importer.Close()
	report, err := importer.Pair(address, cleave.TransportTCP)
	fmt.Println(err, report.Transport == cleave.TransportTCP, report.BytesPerSecond > 0)

	_, stranger := open(cleave.CacheConfig{Secret: [32]byte{9}})
	defer stranger.Close()
	report, err = stranger.Pair(address, cleave.TransportAny)
	fmt.Println(errors.Is(err, cleave.ErrPermission), report.Reason == cleave.PairSecret)
	// Output:
	// <nil> true true
	// true true
}

// An image is a sequence as bytes, for a server's own protocol or store.
func ExampleKV_Image() {
	ctx := context.Background()
	model, cache := open(cleave.CacheConfig{})
	defer model.Close()
	defer cache.Close()
	engine, err := cache.NewEngine(cleave.EngineConfig{})
	check(err)
	defer engine.Close()

	prompt, err := model.Tokenize(facts)
	check(err)
	var kv *cleave.KV
	for event, err := range engine.Generate(ctx, cleave.Request{Prompt: prompt, MaxNewTokens: 1, KeepKV: true}) {
		check(err)
		kv = event.KV
	}
	image, err := kv.Image()
	check(err)
	var store bytes.Buffer
	_, err = io.Copy(&store, image)
	check(err)
	kv.Close()

	kv, err = cache.Import(store.Bytes())
	check(err)
	defer kv.Close()
	info, err := kv.Info()
	check(err)
	fmt.Println(info.Tokens == len(prompt)+1, int64(store.Len()) == image.Size())
	// Output: true true
}

// The library's log messages go to log/slog.
func ExampleSetLog() {
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.MessageKey {
				return slog.Attr{}
			}
			return a
		},
	}))
	check(cleave.SetLog(cleave.LogDebug, func(level cleave.LogLevel, target, message string) {
		if target == "api" { // failed calls
			logger.Log(context.Background(), level.Level(), message, "target", target)
		}
	}))
	_, err := cleave.Load("/no/such/model")
	check(cleave.SetLog(cleave.LogOff, nil)) // waits until queued messages are delivered
	fmt.Println(errors.Is(err, cleave.ErrNotFound))
	// Output:
	// level=DEBUG target=api
	// true
}
