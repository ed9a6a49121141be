package vllm

import (
	"context"
	"io"
	"testing"
	"time"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	pb "cleave/examples/go-server/internal/pb/vllm"
	"cleave/examples/go-server/internal/rpc"
	"cleave/examples/go-server/internal/testkit"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// waitFor reads until a stream has given a number of tokens.
func waitFor(t testing.TB, stream testkit.Stream, tokens int) {
	t.Helper()
	for tokens > 0 {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		tokens -= int(r.Outputs.NumTokens)
	}
}

// rest reads a stream to its end and returns the last message.
func rest(stream testkit.Stream) (last *pb.GenerateResponse, err error) {
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			return last, nil
		} else if err != nil {
			return last, err
		}
		last = r
	}
}

func TestCancelAndAbort(t *testing.T) {
	prefill, decode := start(t, cleave.RolePrefill), start(t, cleave.RoleDecode)
	for _, w := range []*testkit.Worker{decode, prefill} {
		ctx, cancel := context.WithCancel(testkit.Context(t))
		stream := testkit.Open(t, ctx, w, testkit.Unstoppable(t, 0))
		waitFor(t, stream, 3)
		cancel()
		_, err := rest(stream)
		code(t, err, codes.Canceled, "")
		w.HoldsNothing(t)

		stream = testkit.Open(t, testkit.Context(t), w, testkit.Unstoppable(t, 0))
		waitFor(t, stream, 3)
		if _, err := pb.NewControlClient(w).Abort(testkit.Context(t), &pb.AbortRequest{RequestIds: []string{"unknown", t.Name()}}); err != nil {
			t.Error(err)
		}
		last, err := rest(stream)
		if err != nil {
			t.Fatal(err)
		}
		if last.GetOutputs().GetFinishInfo().GetFinishReason() != pb.FinishInfo_ABORTED {
			t.Error(last)
		}
		w.HoldsNothing(t)
	}
}

func TestLostTickets(t *testing.T) {
	decode := start(t, cleave.RoleDecode)
	var prefill *testkit.Worker
	var a testkit.Answer
	// A lease that is as short as it can be on this machine, on which it must not end before the ticket is made.
	err := io.ErrNoProgress
	for lease := 50 * time.Millisecond; err != nil; lease *= 2 {
		prefill = start(t, cleave.RolePrefill, func(c *core.Config) { c.Lease = lease })
		if a, err = testkit.Ask(t, prefill, testkit.RemoteDecode(testkit.Request(t, "", 9))); err != nil && lease > time.Minute {
			t.Fatal(err)
		}
	}
	prefill.HoldsNothing(t) // the lease is over
	q := testkit.Request(t, "", 9)
	q.Kv.KvTransferParams = a.Finish.KvTransferParams
	_, err = testkit.Ask(t, decode, q)
	code(t, err, codes.Unavailable, "lost")

	q.Kv.KvTransferParams = params(t, map[string]any{"cleave_ticket": "AAAA"})
	_, err = testkit.Ask(t, decode, q)
	code(t, err, codes.Unavailable, "lost")

	// A ticket serves once.
	prefill = start(t, cleave.RolePrefill)
	a = testkit.Answered(t, prefill, testkit.RemoteDecode(testkit.Request(t, "", 9)))
	q.Kv.KvTransferParams = a.Finish.KvTransferParams
	testkit.Answered(t, decode, q)
	_, err = testkit.Ask(t, decode, q)
	code(t, err, codes.Unavailable, "lost")

	// A ticket of another prompt.
	a = testkit.Answered(t, prefill, testkit.RemoteDecode(testkit.Request(t, "", 9)))
	q = testkit.Request(t, "another", 9)
	q.Kv.KvTransferParams = a.Finish.KvTransferParams
	_, err = testkit.Ask(t, decode, q)
	code(t, err, codes.InvalidArgument, "another prompt")
}

func TestDrain(t *testing.T) {
	w := start(t, cleave.RoleMixed)
	short, long := testkit.Open(t, testkit.Context(t), w, testkit.Request(t, "the old farmer", 30)), testkit.Open(t, testkit.Context(t), w, testkit.Unstoppable(t, 0))
	waitFor(t, short, 1)
	waitFor(t, long, 1)
	w.Server.Leave()
	r, err := grpc_health_v1.NewHealthClient(w).Check(testkit.Context(t), &grpc_health_v1.HealthCheckRequest{Service: "vllm.Inference"})
	if err != nil || r.Status != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Error(r, err)
	}
	ctx, end := context.WithCancel(testkit.Context(t))
	done := make(chan struct{})
	go func() {
		defer close(done)
		rpc.Drain(ctx, w.Host)
	}()
	testkit.Eventually(t, "refusal", func() (bool, any) { return w.Host.Requests.Closing(), nil })
	_, err = testkit.Ask(t, w, testkit.Request(t, "", 1))
	code(t, err, codes.Unavailable, "shutting down")
	if _, err := rest(short); err != nil {
		t.Fatal("a running request did not end by itself:", err)
	}
	end() // the time for draining is over
	_, err = rest(long)
	code(t, err, codes.Unavailable, "shutting down")
	<-done
}

// A change of role does not end a stream.
func TestStreamsSurviveRoles(t *testing.T) {
	w := start(t, cleave.RolePrefill)
	q := testkit.Unstoppable(t, 300)
	_, text := testkit.Alone(t, testkit.Same(q))
	stream := testkit.Open(t, testkit.Context(t), w, q)
	got := ""
	for _, role := range []cleave.Role{cleave.RoleDecode, cleave.RolePrefill, cleave.RoleMixed} {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got += r.Outputs.Text
		if err := w.Host.Engine.SetRole(role); err != nil {
			t.Fatal(err)
		}
	}
	for r, err := stream.Recv(); err != io.EOF; r, err = stream.Recv() {
		if err != nil {
			t.Fatal(err)
		}
		got += r.Outputs.Text
	}
	if got != text {
		t.Errorf("%q, and alone %q", got, text)
	}
}
