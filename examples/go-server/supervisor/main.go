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
	port := flag.Int("system-port", 18100, fmt.Sprintf("first `PORT` for the sidecars' status, at most %d; they use it and the %d after it", highestFirstPort, portWindow-1))
	drain := flag.Duration("drain", 30*time.Second, "`TIME` that streams of a role have after a switch, before they continue elsewhere")
	flag.Parse()
	if len(endpoints) == 0 || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "supervisor: --worker and, after --, the command of the sidecar are needed")
		os.Exit(2)
	}
	if *port < 1 || *port > highestFirstPort {
		fmt.Fprintf(os.Stderr, "supervisor: --system-port %d: expected a port from 1 to %d\n", *port, highestFirstPort)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	fleet := &fleet{targets: targets{etcd: *etcd, namespace: *namespace}}
	launcher := &launcher{command: flag.Args(), firstPort: *port, drain: *drain, timeout: becomeTimeout}
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
	targets  targets
	workers  []*worker
	decision *decision // the last one that could be read
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

// step brings all workers whose engines answer into the roles that they should have: those of the planner's last decision,
// or until there is one, their own. Nothing is started before etcd has answered once, because an engine without a sidecar
// may be idle on purpose.
func (f *fleet) step(ctx context.Context) error {
	read, unread := f.targets.read(ctx)
	if unread == nil {
		f.adopt(read)
	} else if f.decision == nil {
		return unread
	}
	decision := *f.decision
	f.each(func(w *worker) error { w.refresh(ctx); return nil })
	// A decision that needs fewer engines than there are is carried out without those that are gone.
	var live fleet
	for _, w := range f.workers {
		if w.gone() {
			w.retire()
		} else {
			live.workers = append(live.workers, w)
		}
	}
	wanted, short := make([]state, len(live.workers)), false
	for i, w := range live.workers {
		wanted[i] = w.state
	}
	if decision.complete() {
		wanted, short = plan(wanted, decision.prefill, decision.decode)
	}
	for i, w := range live.workers {
		w.wanted = wanted[i].role
	}
	err := errors.Join(unread, live.each(func(w *worker) error { return w.become(ctx, w.wanted) }))
	if short && decision.pending() {
		err = errors.Join(err, fmt.Errorf("decision %d: %d + %d workers are wanted, and %d answer", decision.id, decision.prefill, decision.decode, len(live.workers)))
	}
	if err == nil && decision.pending() {
		log.Printf("decision %d: %d prefill, %d decode: done", decision.id, decision.prefill, decision.decode)
		return f.targets.acknowledge(ctx, decision)
	}
	return err
}

// adopt replaces the last decision. The planner writes its numbers one by one and the id last, so numbers that come with
// the id of the last decision may be half of the next one.
func (f *fleet) adopt(read decision) {
	if last := f.decision; last != nil && last.complete() && last.id == read.id {
		read.prefill, read.decode = last.prefill, last.decode
	}
	f.decision = &read
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
