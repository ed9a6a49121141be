package core_test

import (
	"context"
	"testing"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	"cleave/examples/go-server/internal/rpc"
	"cleave/examples/go-server/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func start(t *testing.T, role cleave.Role) *testkit.Worker {
	return testkit.Start(t, role, func(*rpc.Server, *core.Host) {})
}

// A client that left during prefill: the decode request still comes, and takes the KV although nobody listens.
func TestResumeWithoutAClient(t *testing.T) {
	prefill, decode := start(t, cleave.RolePrefill), start(t, cleave.RoleDecode)
	request := core.Request{Request: cleave.Request{Prompt: testkit.Tokens(t, "the old farmer"), IgnoreEOS: true}}
	prefilled, err := prefill.Host.Prefill(testkit.Context(t), request)
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(testkit.Context(t))
	cancel()
	generation, err := decode.Host.Resume(gone, request, prefilled.Ticket)
	if err != nil {
		t.Fatal(err)
	}
	for _, err = range generation.Pieces() {
	}
	if err == nil {
		t.Error("a generation without a client ended by itself")
	}
	prefill.HoldsNothing(t)
	decode.HoldsNothing(t)
}

// A ticket of a prompt that is still being computed, as a front passes it on, gives the same tokens. If the prefill worker
// gives up, the prompt is computed here.
func TestResumeWhileThePromptIsComputed(t *testing.T) {
	prefill, decode := start(t, cleave.RolePrefill), start(t, cleave.RoleDecode)
	request := core.Request{Request: cleave.Request{Prompt: testkit.Tokens(t, "the old farmer"), MaxNewTokens: 30, MinNewTokens: 20}}
	_, wanted := testkit.Alone(t, request.Request)
	for _, givesUp := range []bool{false, true} {
		streaming := request.Request
		streaming.StreamKV = true
		stream, err := prefill.Host.Engine.Submit(testkit.Context(t), streaming)
		if err != nil {
			t.Fatal(err)
		}
		event, err := stream.Next()
		if err != nil || event.Type != cleave.EventKVStreamStarted {
			t.Fatal(event, err)
		}
		ticket, err := event.KV.Ticket()
		if err != nil {
			t.Fatal(err)
		}
		if givesUp {
			event.KV.Close()
		}
		generation, err := decode.Host.Resume(testkit.Context(t), request, core.Ticket{Ticket: ticket, Streaming: true})
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for piece, err := range generation.Pieces() {
			if err != nil {
				t.Fatal(err)
			}
			text += piece.Text
		}
		if err := generation.Arrived(testkit.Context(t)); (err != nil) != givesUp {
			t.Error(givesUp, err)
		}
		if text != wanted {
			t.Errorf("%q, and alone %q", text, wanted)
		}
		for event := range stream.Events() {
			if event.KV != nil {
				event.KV.Close()
			}
		}
	}
}
