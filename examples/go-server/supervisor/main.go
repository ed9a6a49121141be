// Command supervisor follows the targets of Dynamo's planner (how many prefill, how many decode workers) by switching the
// roles of engines that run. It starts and ends Dynamo's sidecars beside them; engines, weights, caches and streams stay.
//
//	supervisor --etcd http://127.0.0.1:2379 --worker 127.0.0.1:50051 --worker 127.0.0.1:50052 \
//	    -- python -m dynamo.vllm.sidecar
//
// docs/dynamo.md ("A planner without restarts") says how it is used. plan.go decides who gets which role, worker.go
// switches an engine and its sidecar, sidecar.go runs a sidecar, targets.go reads what the planner wants.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const pollEvery = 500 * time.Millisecond

// list is a flag that may be repeated.
type list []string

func (l *list) String() string { return strings.Join(*l, " ") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

func main() {
	log.SetFlags(log.Ltime)
	var endpoints list
	flag.Var(&endpoints, "worker", "`HOST:PORT` of an engine's --grpc on this machine; once for each")
	etcd := flag.String("etcd", "http://127.0.0.1:2379", "`URL` of etcd, where the planner publishes its targets")
	namespace := flag.String("namespace", "dynamo", "Dynamo's `NAMESPACE`")
	ports := flag.Int("system-port", 18100, "first `PORT` for the sidecars' status, at most 32000; each start takes the next")
	drain := flag.Duration("drain", 30*time.Second, "`TIME` that streams of a role have after a switch, before they continue elsewhere")
	flag.Parse()
	if len(endpoints) == 0 || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "supervisor: --worker and, after --, the command of the sidecar are needed")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	fleet := &fleet{targets: targets{etcd: *etcd, namespace: *namespace}}
	launcher := &launcher{command: flag.Args(), nextPort: *ports, drain: *drain}
	for _, endpoint := range endpoints {
		w, err := newWorker(endpoint, launcher)
		if err != nil {
			fmt.Fprintln(os.Stderr, "supervisor:", err)
			os.Exit(1)
		}
		fleet.workers = append(fleet.workers, w)
	}
	fleet.follow(ctx)
	fleet.each(func(w *worker) error { w.retire(); return nil })
	launcher.ended.Wait()
}

// fleet is all workers under one planner.
type fleet struct {
	targets targets
	workers []*worker
}

// follow keeps each engine's sidecar in place, and carries out the planner's decisions, until the context ends.
func (f *fleet) follow(ctx context.Context) {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	last := "" // line of the log
	for ctx.Err() == nil {
		said := ""
		if err := f.step(ctx); err != nil && ctx.Err() == nil {
			said = err.Error()
		}
		if said != last && said != "" {
			log.Print(said)
		}
		last = said
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

// step brings all workers whose engines answer into the roles that they should have.
func (f *fleet) step(ctx context.Context) error {
	decision, unread := f.targets.read(ctx)
	unreachable := f.each(func(w *worker) error { return w.refresh(ctx) })
	live := fleet{workers: slices.DeleteFunc(slices.Clone(f.workers), func(w *worker) bool { return !w.reachable })}
	before := make([]state, len(live.workers))
	for i, w := range live.workers {
		before[i] = w.state
	}
	wanted, short := before, false
	if unread == nil && decision.pending() {
		wanted, short = plan(before, decision.prefill, decision.decode)
	}
	for i, w := range live.workers {
		w.wanted = wanted[i].role
	}
	err := errors.Join(unread, unreachable, live.each(func(w *worker) error { return w.become(ctx, w.wanted) }))
	if short {
		err = errors.Join(err, fmt.Errorf("decision %d: %d + %d workers are wanted, and there are %d", decision.id, decision.prefill, decision.decode, len(before)))
	}
	if err == nil && decision.pending() {
		log.Printf("decision %d: %d prefill, %d decode: done", decision.id, decision.prefill, decision.decode)
		return f.targets.acknowledge(ctx, decision)
	}
	return err
}

// each calls a function for all workers at once.
func (f *fleet) each(do func(*worker) error) error {
	errs := make([]error, len(f.workers))
	var group sync.WaitGroup
	for i, w := range f.workers {
		group.Add(1)
		go func() {
			defer group.Done()
			errs[i] = do(w)
		}()
	}
	group.Wait()
	return errors.Join(errs...)
}
