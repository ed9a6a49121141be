// Command go-server is an OpenAI-compatible server on cleave: alone, or as prefill worker, decode worker or front of a
// set of processes. ../README.md has its options, what it answers, and what its processes tell each other. With cleave
// installed where pkg-config finds it, `go build` builds it, and `go test -race` tests what needs no model.
//
// What is cleave's is in engine.go (model, cache, engine), completion.go (requests), prefill.go (the other half of one)
// and worker.go (pairing). The rest is a server as any other: http.go, reply.go and stats.go answer, openai.go,
// answer.go and stop.go know OpenAI's API, front.go, relay.go and registry.go pass requests on to workers.
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

var started = time.Now()

func main() {
	log.SetFlags(log.Ltime)
	options, usage, err := parseOptions(os.Args[1:])
	if err == flag.ErrHelp {
		fmt.Fprint(os.Stderr, "usage: go-server [options]\n", usage)
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "go-server: %v\n", err)
		os.Exit(2)
	}
	told, forget := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	if err := run(told, forget, options); err != nil {
		fmt.Fprintf(os.Stderr, "go-server: %v\n", err)
		os.Exit(1)
	}
}

// run serves until `told` to end. After `forget` another signal ends the process at once.
func run(told context.Context, forget func(), o *options) error {
	var page []byte
	if o.page != "" {
		var err error
		if page, err = os.ReadFile(o.page); err != nil {
			return err
		}
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	self := o.advertise
	if self == "" {
		self = "http://" + listener.Addr().String()
	}

	var server *server
	leave, idle := func() {}, func() bool { return true }
	var broken <-chan struct{} // never, of a front
	if o.role == "front" {
		front := newFront()
		server = newServer(front, page)
		server.routes["/workers"] = front.routes()
	} else {
		host, err := openEngine(o, self)
		if err != nil {
			return err
		}
		defer host.close()
		server = newServer(host, page)
		idle, broken = host.idle, host.engine.Failed()
		if o.worker() {
			if leave, err = join(o, self, host); err != nil {
				return err
			}
		}
	}

	requests, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	web := http.Server{
		Handler:           server,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          log.Default(),
	}
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
	forget()

	log.Print("ending")
	server.closing.Store(true)
	leave()
	done := func() bool { return server.stats.running.Load() == 0 && idle() }
	if !wait(done, drainTimeout) {
		log.Print("what still runs is cancelled")
		cancel(errShuttingDown)
		wait(func() bool { return server.stats.running.Load() == 0 }, time.Second)
	}
	ending, release := context.WithTimeout(context.Background(), time.Second)
	defer release()
	web.Shutdown(ending) // answers that are being sent, health checks
	web.Close()
	return nil
}

func wait(done func() bool, most time.Duration) bool {
	for end := time.Now().Add(most); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}
