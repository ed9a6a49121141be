// Command go-server is an OpenAI-compatible server on cleave: alone, or as prefill worker, decode worker or front of a
// set of processes. ../README.md has its options, what it answers, and what its processes tell each other.
//
// What is cleave's is in engine.go (model, cache, engine), completion.go (requests), prefill.go (the other half of one)
// and worker.go (pairing). The rest is a server as any other: http.go and reply.go answer, openai.go, answer.go and
// stop.go know OpenAI's API, front.go, relay.go and registry.go pass requests on to workers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const drainTimeout = 10 * time.Second // for what runs when the server is told to end

func main() {
	log.SetFlags(log.Ltime)
	options, err := parseOptions(os.Args[1:])
	if err == flag.ErrHelp {
		return
	}
	status := 2
	if err == nil {
		status = 1
		err = run(options)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "go-server:", err)
		os.Exit(status)
	}
}

// run serves until a signal tells the process to end.
func run(o *options) error {
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	url := o.advertise
	if url == "" {
		url = "http://" + listener.Addr().String()
	}

	var server *server
	leave, idle := func(time.Time) {}, func() bool { return true }
	var broken <-chan struct{} // never, of a front
	if o.role == "front" {
		front := newFront()
		server = newServer(front, o.page)
		server.handle("/workers", front.methods())
	} else {
		host, err := openEngine(o, url)
		if err != nil {
			return err
		}
		defer host.close()
		server = newServer(host, o.page)
		idle, broken = host.idle, host.engine.Failed()
		if o.worker() {
			if leave, err = join(host); err != nil {
				return err
			}
		}
	}

	requests, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	web := http.Server{
		Handler:           server.mux,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
	}
	told, forget := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(listener) }()
	fmt.Printf("listening on http://%s\n", listener.Addr())
	select {
	case err := <-failed:
		return err
	case <-broken:
		return errors.New("the engine has failed")
	case <-told.Done():
	}
	forget() // another signal ends the process at once

	end := time.Now().Add(drainTimeout)
	leave(end)
	server.closing.Store(true)
	for ; time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if server.stats.running.Load() == 0 && idle() {
			break
		}
	}
	cancel(errShuttingDown)
	ending, release := context.WithTimeout(context.Background(), time.Second)
	defer release()
	web.Shutdown(ending)
	return nil
}
