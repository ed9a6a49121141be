// Command go-server is an OpenAI-compatible server on cleave: alone, or as prefill worker, decode worker or front of a
// set of processes. ../README.md describes its options, its HTTP interface and the protocol between its processes.
//
// The calls of cleave are in internal/core (model, cache, engine; text and stop strings; handing prompts over), engine.go
// and completion.go (requests that came by HTTP), prefill.go (the prefill half of a request) and worker.go (pairing).
//
// The other files here are a usual HTTP server: http.go, connections.go and reply.go answer; fields.go, openai.go,
// messages.go and answer.go implement OpenAI's API; front.go, relay.go, registry.go and auth.go pass requests on to
// workers.
//
// gRPC begins in grpc.go: internal/vllm is vLLM's protocol, internal/openengine OpenEngine's, internal/rpc what services
// have in common, internal/isolate the process in front of the engine's, internal/control switches roles, and internal/pb is generated.
// internal/kvevents publishes what is in the prefix cache, over internal/zmtp.
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

	"cleave/examples/go-server/internal/core"
	"cleave/examples/go-server/internal/isolate"
	"cleave/examples/go-server/internal/kvevents"
	"cleave/examples/go-server/internal/rpc"
)

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
	if child := isolate.ExitError(0); errors.As(err, &child) {
		os.Exit(int(child)) // the child has said why
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "go-server:", err)
		os.Exit(status)
	}
}

// run serves until a signal tells the process to end.
func run(o *options) error {
	listener, grpcListener, err := isolate.Child()
	if err != nil {
		return err
	}
	if o.isolate && listener == nil {
		return runIsolated(o)
	}
	if listener == nil {
		if listener, err = net.Listen("tcp", o.listen); err != nil {
			return err
		}
	}
	defer listener.Close()
	url := o.advertise
	if url == "" {
		url = "http://" + listener.Addr().String()
	}

	var server *server
	stopGRPC := func(end time.Time) {}
	leave, idle := func(time.Time) {}, func() bool { return true }
	var broken <-chan struct{} // a front never closes it
	requests, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	if o.role == "front" {
		secret, err := readSecret(o.secretFile)
		if err != nil {
			return err
		}
		inside, err := net.Listen("tcp", o.workersListen)
		if err != nil {
			return err
		}
		front := newFront(secret, time.Duration(o.forgetAfter)*time.Second)
		server = newServer(front, o.page, nil, "")
		if o.page != "" {
			server.handle("/workers", map[string]handler{"GET": front.getWorkers})
		}
		mux := http.NewServeMux()
		server.handleIn(mux, "/workers", map[string]handler{"GET": front.getWorkers, "POST": front.postReport})
		server.handleIn(mux, "/workers/leave", map[string]handler{"POST": front.postLeave})
		go newHTTPServer(int(o.maxConnections), mux, requests).Serve(inside)
		fmt.Printf("workers join at http://%s\n", inside.Addr())
	} else {
		host, err := openEngine(o, url)
		if err != nil {
			return err
		}
		defer host.Close()
		var authenticator *authenticator
		if o.front != "" {
			secret, err := readSecret(o.secretFile)
			if err != nil {
				return err
			}
			authenticator = newAuthenticator(secret)
		}
		server = newServer(host, o.page, authenticator, url)
		server.worker = o.worker() || o.grpc != "" // with gRPC, the role can be switched
		if o.worker() || o.grpc != "" {
			serveRole(server, host)
		}
		idle, broken = host.idle, host.Engine.Failed()
		var events *kvevents.Publisher
		if o.kvEvents != "" {
			if events, err = kvevents.Start(host.Cache, o.kvEvents, o.kvEventsReplay, host.Salts.Text); err != nil {
				return err
			}
			defer events.Close()
			fmt.Printf("KV events at %s\n", events.Address())
		}
		if o.grpc != "" {
			if grpcListener == nil {
				if grpcListener, err = rpc.Listen(o.grpc); err != nil {
					return err
				}
			}
			stopGRPC = serveGRPC(grpcListener, o, host.Host, events)
		}
		if o.front != "" {
			if leave, err = join(host, authenticator); err != nil {
				return err
			}
		}
	}

	web := newHTTPServer(int(o.maxConnections), server.mux, requests)
	told, forget := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(listener) }()
	fmt.Printf("listening on http://%s\n", listener.Addr())
	select {
	case err := <-failed:
		return err
	case <-broken:
		stopGRPC(time.Now())
		return errors.New("the engine has failed")
	case <-told.Done():
	}
	forget() // another signal ends the process at once

	end := time.Now().Add(time.Duration(o.drain) * time.Second)
	stopped := make(chan struct{})
	go func() { // the front may take all the time to let this worker go
		defer close(stopped)
		stopGRPC(end)
	}()
	leave(end)
	server.closing.Store(true)
	<-stopped
	for ; time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if server.stats.running.Load() == 0 && idle() {
			break
		}
	}
	cancel(core.ErrShuttingDown)
	ending, release := context.WithTimeout(context.Background(), time.Second)
	defer release()
	web.Shutdown(ending)
	return nil
}
