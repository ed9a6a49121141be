package main

import (
	"context"
	"fmt"
	"log"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "cleave/examples/go-server/internal/pb/worker"
)

var (
	fromProto = map[pb.Role]role{pb.Role_ROLE_PREFILL: prefill, pb.Role_ROLE_DECODE: decode, pb.Role_ROLE_MIXED: mixed}
	toProto   = map[role]pb.Role{prefill: pb.Role_ROLE_PREFILL, decode: pb.Role_ROLE_DECODE, mixed: pb.Role_ROLE_MIXED}
)

// worker is an engine and the sidecar that makes Dynamo know it.
type worker struct {
	endpoint string
	control  pb.WorkerClient
	launcher *launcher

	// At the last refresh.
	reachable bool
	engine    role // the engine's own; it starts with that of its command line after a crash
	state     state

	wanted  role
	parked  bool     // idle on purpose
	sidecar *sidecar // nil if there is none
}

func newWorker(endpoint string, l *launcher) (*worker, error) {
	connection, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &worker{endpoint: endpoint, control: pb.NewWorkerClient(connection), launcher: l}, nil
}

// refresh asks the engine what it is and how busy.
func (w *worker) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	load, err := w.control.GetLoad(ctx, &pb.GetLoadRequest{})
	if w.reachable = err == nil; err != nil {
		return fmt.Errorf("worker %s: %w", w.endpoint, err)
	}
	w.engine = fromProto[load.Role]
	w.state = state{role: w.engine, running: int(load.Prefilling + load.Decoding + load.Waiting + load.Importing)}
	if w.sidecar != nil {
		w.state.role = w.sidecar.role
	} else if w.parked {
		w.state.role = idle
	}
	return nil
}

// become switches the engine at a step boundary, starts a sidecar of the new role, and lets the old one drain. The engine
// serves requests of both roles meanwhile, so there is no moment in which it serves none.
func (w *worker) become(ctx context.Context, to role) error {
	if w.parked = to == idle; w.parked {
		w.retire()
		return nil
	}
	stays := w.sidecar != nil && w.sidecar.role == to && w.sidecar.running()
	if stays && w.engine == to {
		return nil
	}
	proof, err := w.control.SetRole(ctx, &pb.SetRoleRequest{Role: toProto[to]})
	if err != nil {
		return fmt.Errorf("worker %s: %w", w.endpoint, err)
	}
	if proof.Role != toProto[to] {
		return fmt.Errorf("worker %s: still %s", w.endpoint, fromProto[proof.Role])
	}
	if !stays {
		next, err := w.launcher.start(ctx, w.endpoint, to)
		if err != nil {
			return fmt.Errorf("worker %s: %w", w.endpoint, err)
		}
		w.retire()
		w.sidecar = next
	}
	log.Printf("worker %s: %s since step %d, with %d requests open then", w.endpoint, to, proof.SinceStep, proof.Prefilling+proof.Decoding+proof.Waiting+proof.Importing)
	return nil
}

// retire lets the sidecar drain in the background.
func (w *worker) retire() {
	if w.sidecar != nil {
		w.sidecar.retire()
		w.sidecar = nil
	}
}
