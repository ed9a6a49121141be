package control

import (
	"context"
	"testing"
	"time"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"
	pb "cleave/examples/go-server/internal/pb/worker"
	"cleave/examples/go-server/internal/rpc"
	"cleave/examples/go-server/internal/testkit"
	"cleave/examples/go-server/internal/vllm"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func start(t *testing.T, role cleave.Role) *testkit.Worker {
	return testkit.Start(t, role, func(server *rpc.Server, host *core.Host) {
		vllm.Register(server, host, nil)
		Register(server, host)
	})
}

// Two workers change places under load. Streams go on, and the proof counts them.
func TestRoles(t *testing.T) {
	q := testkit.Unstoppable(t, 200)
	_, wanted := testkit.Alone(t, testkit.Same(q))
	one, two := start(t, cleave.RolePrefill), start(t, cleave.RoleDecode)
	disaggregated := func(prefill, decode *testkit.Worker) {
		t.Helper()
		params := testkit.Answered(t, prefill, testkit.RemoteDecode(q)).Finish.KvTransferParams
		if a := testkit.Answered(t, decode, testkit.WithKV(q, params)); a.Text != wanted {
			t.Errorf("%q, and alone %q", a.Text, wanted)
		}
	}
	disaggregated(one, two)
	running := testkit.Open(t, testkit.Context(t), two, testkit.Unstoppable(t, 0))
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
	stream := testkit.Open(t, testkit.Context(t), w, testkit.Unstoppable(t, 0))
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
	if _, err := testkit.Ask(t, w, testkit.Request(t, "", 1)); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	w.Host.Requests.AbortAll(context.Canceled)
	if r, err = client.Drain(testkit.Context(t), &pb.DrainRequest{}); err != nil || r.Running != 0 {
		t.Error(r, err)
	}
}
