package main

import (
	"context"
	"fmt"
	"time"

	"cleave/examples/go-server/internal/core"
	"cleave/examples/go-server/internal/rpc"
	"cleave/examples/go-server/internal/vllm"
)

// serveGRPC serves until `stop` is called, which returns at `end`, or when the requests that run have ended.
func serveGRPC(address string, host *core.Host) (stop func(end time.Time), err error) {
	listener, err := rpc.Listen(address)
	if err != nil {
		return nil, err
	}
	server := rpc.NewServer()
	vllm.Register(server, host)
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
	}, nil
}
