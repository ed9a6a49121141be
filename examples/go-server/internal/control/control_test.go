package control

import (
	"context"
	"io"
	"testing"
	"time"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	vllmpb "cleave/examples/go-server/internal/pb/vllm"
	pb "cleave/examples/go-server/internal/pb/worker"
	"cleave/examples/go-server/internal/rpc"
	"cleave/examples/go-server/internal/testkit"
	"cleave/examples/go-server/internal/vllm"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func start(t *testing.T, role cleave.Role) *testkit.Worker {
	return testkit.Start(t, role, func(server *rpc.Server, host *core.Host) {
		vllm.Register(server, host, nil)
		Register(server, host)
	})
}

func generate(t *testing.T, w *testkit.Worker, tokens uint32, params *structpb.Struct) grpc.ServerStreamingClient[vllmpb.GenerateResponse] {
	t.Helper()
	prompt := testkit.Unsigned(testkit.Tokens(t, "the old farmer"))
	stream, err := vllmpb.NewInferenceClient(w).GenerateStream(testkit.Context(t), &vllmpb.GenerateRequest{
		Prompt:   &vllmpb.GenerateRequest_TokenIds{TokenIds: &vllmpb.TokenIds{Ids: prompt}},
		Stopping: &vllmpb.StoppingCriteria{MaxNewTokens: tokens, IgnoreEos: true},
		Kv:       &vllmpb.KVCacheParameters{KvTransferParams: params},
	})
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func read(t *testing.T, stream grpc.ServerStreamingClient[vllmpb.GenerateResponse]) (text string, finish *vllmpb.FinishInfo) {
	t.Helper()
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			return text, finish
		} else if err != nil {
			t.Fatal(err)
		}
		text, finish = text+r.Outputs.Text, r.Outputs.FinishInfo
	}
}

// Two workers change places under load. Streams go on, and the proof counts them.
func TestRoles(t *testing.T) {
	const tokens = 200
	_, wanted := testkit.Alone(t, cleave.Request{Prompt: testkit.Tokens(t, "the old farmer"), MaxNewTokens: tokens, IgnoreEOS: true})
	one, two := start(t, cleave.RolePrefill), start(t, cleave.RoleDecode)
	disaggregated := func(prefill, decode *testkit.Worker) {
		t.Helper()
		_, finish := read(t, generate(t, prefill, 1, &structpb.Struct{Fields: map[string]*structpb.Value{"do_remote_decode": structpb.NewBoolValue(true)}}))
		if text, _ := read(t, generate(t, decode, tokens, finish.KvTransferParams)); text != wanted {
			t.Errorf("%q, and alone %q", text, wanted)
		}
	}
	disaggregated(one, two)
	running := generate(t, two, 0, nil)
	if _, err := running.Recv(); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	for w, role := range map[*testkit.Worker]pb.Role{one: pb.Role_ROLE_DECODE, two: pb.Role_ROLE_PREFILL} {
		client := pb.NewWorkerClient(w)
		state, err := client.SetRole(testkit.Context(t), &pb.SetRoleRequest{Role: role})
		if err != nil || state.Role != role || time.Unix(0, int64(state.SinceUnixNanos)).Before(before.Add(-time.Second)) {
			t.Fatal(state, err)
		}
		if w == two && (state.Decoding != 1 || state.SinceStep == 0) {
			t.Error("the stream is missing in the proof:", state)
		}
		again, err := client.GetRole(testkit.Context(t), &pb.GetRoleRequest{})
		if err != nil || again.Role != role || again.SinceStep != state.SinceStep {
			t.Error(again, err)
		}
	}
	disaggregated(two, one)
	load, err := pb.NewWorkerClient(two).GetLoad(testkit.Context(t), &pb.GetLoadRequest{})
	if err != nil || load.Role != pb.Role_ROLE_PREFILL || load.Decoding != 1 || load.BlocksFree >= load.BlocksTotal || load.DecodeTokensPerSecond == 0 || load.Draining {
		t.Error(load, err)
	}
	if _, err := running.Recv(); err != nil {
		t.Error("the stream did not go on:", err)
	}
	_, err = pb.NewWorkerClient(two).SetRole(testkit.Context(t), &pb.SetRoleRequest{})
	if status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
}

func TestDrain(t *testing.T) {
	w := start(t, cleave.RoleMixed)
	stream := generate(t, w, 0, nil)
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	client := pb.NewWorkerClient(w)
	r, err := client.Drain(testkit.Context(t), &pb.DrainRequest{TimeoutSeconds: 1})
	if err != nil || r.Running != 1 {
		t.Error(r, err)
	}
	if load, err := client.GetLoad(testkit.Context(t), &pb.GetLoadRequest{}); err != nil || !load.Draining {
		t.Error(load, err)
	}
	if _, err := generate(t, w, 1, nil).Recv(); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	w.Host.Requests.AbortAll(context.Canceled)
	if r, err = client.Drain(testkit.Context(t), &pb.DrainRequest{}); err != nil || r.Running != 0 {
		t.Error(r, err)
	}
}
