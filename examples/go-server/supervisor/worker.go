package main

import (
	"context"
	"fmt"
	"log"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	pb "cleave/examples/go-server/internal/pb/worker"
)

const (
	becomeTimeout = 2 * time.Minute  // for a switch; the other workers wait for it
	goneAfter     = 30 * time.Second // without an answer; an engine that restarts is back before

	firstPause   = time.Second // after a sidecar that failed to start
	longestPause = time.Minute // after several
)

// connecting lets a restarted engine be found soon.
var connecting = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
	MinConnectTimeout: 5 * time.Second,
}

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
	silent bool      // the engine did not answer
	heard  time.Time // when it last did; the supervisor's start before
	engine role      // the engine's own; it starts with that of its command line after a crash
	state  state

	wanted  role
	parked  bool     // idle on purpose
	sidecar *sidecar // nil if there is none

	failed error         // of the last start of a sidecar, if it failed
	pause  time.Duration // between that and the next one
	next   time.Time     // earliest time of the next one
}

func newWorker(endpoint string, l *launcher) (*worker, error) {
	connection, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(connecting))
	if err != nil {
		return nil, err
	}
	return &worker{endpoint: endpoint, control: pb.NewWorkerClient(connection), launcher: l, heard: time.Now()}, nil
}

// refresh asks the engine what it is and how busy.
func (w *worker) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	load, err := w.control.GetLoad(ctx, &pb.GetLoadRequest{})
	if err != nil {
		if !w.silent && ctx.Err() != context.Canceled {
			log.Printf("worker %s: no answer: %v", w.endpoint, err)
		}
		w.silent = true
		return
	}
	if w.silent {
		log.Printf("worker %s: answers", w.endpoint)
	}
	w.silent, w.heard = false, time.Now()
	w.engine = fromProto[load.Role]
	w.state = state{role: w.engine, running: int(load.Prefilling + load.Decoding + load.Waiting + load.Importing)}
	if w.sidecar != nil {
		w.state.role = w.sidecar.role
	} else if w.parked {
		w.state.role = idle
	}
}

// gone reports whether the engine has not answered for so long that others take its place.
func (w *worker) gone() bool { return w.silent && time.Since(w.heard) > goneAfter }

// become switches the engine at a step boundary, starts a sidecar of the new role, and lets the old one drain. The engine
// serves requests of both roles meanwhile, so there is no moment in which it serves none.
func (w *worker) become(ctx context.Context, to role) error {
	if w.parked = to == idle; w.parked {
		w.retire()
		return nil
	}
	if w.silent {
		return fmt.Errorf("worker %s: no answer yet", w.endpoint)
	}
	stays := w.sidecar != nil && w.sidecar.role == to && w.sidecar.running()
	if stays && w.engine == to {
		return nil
	}
	if time.Now().Before(w.next) {
		return w.failed
	}
	ctx, cancel := context.WithTimeout(ctx, w.launcher.timeout)
	defer cancel()
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
			w.failed = fmt.Errorf("worker %s: %w", w.endpoint, err)
			w.pause = min(max(2*w.pause, firstPause), longestPause)
			w.next = time.Now().Add(w.pause)
			return w.failed
		}
		w.pause = 0
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
