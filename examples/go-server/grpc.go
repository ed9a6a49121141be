package main

import (
	"context"
	"fmt"
	"net"
	"os/signal"
	"syscall"
	"time"

	"cleave/examples/go-server/internal/control"
	"cleave/examples/go-server/internal/core"
	"cleave/examples/go-server/internal/isolate"
	"cleave/examples/go-server/internal/kvevents"
	"cleave/examples/go-server/internal/openengine"
	"cleave/examples/go-server/internal/rpc"
	"cleave/examples/go-server/internal/vllm"
)

// serveGRPC serves until `stop` is called, which returns at `end`, or when the requests that run have ended.
func serveGRPC(listener net.Listener, o *options, host *core.Host, events *kvevents.Publisher) (stop func(end time.Time)) {
	server := rpc.NewServer()
	vllm.Register(server, host, events)
	control.Register(server, host)
	if o.openengine {
		openengine.Register(server, host, events)
	}
	server.Serving(true, server.Services()...)
	go server.Serve(listener)
	fmt.Printf("gRPC at %s\n", listener.Addr())
	return func(end time.Time) {
		ctx, cancel := context.WithDeadline(context.Background(), end)
		defer cancel()
		server.Leave()
		rpc.Drain(ctx, host)
		rest := time.AfterFunc(time.Second, server.Stop) // for clients that do not read
		defer rest.Stop()
		server.GracefulStop()
	}
}

// runIsolated serves with the engine in a child process.
func runIsolated(o *options) error {
	told, forget := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer forget()
	services := append(vllm.Services, control.ServiceName)
	if o.openengine {
		services = append(services, openengine.Services...)
	}
	return isolate.Run(told, isolate.Options{
		Web:      o.listen,
		GRPC:     o.grpc,
		Drain:    time.Duration(o.drain) * time.Second,
		Services: services,
		Ready:    "listening on http://",
	})
}
