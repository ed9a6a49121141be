package rpc

import (
	"context"
	"fmt"
	"io"
	"testing"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestStatus(t *testing.T) {
	alive := context.Background()
	ended := func(cause error) context.Context {
		ctx, cancel := context.WithCancelCause(alive)
		cancel(cause)
		return ctx
	}
	late, cancel := context.WithTimeout(alive, 0)
	defer cancel()
	for _, c := range []struct {
		ctx  context.Context
		err  error
		code codes.Code
	}{
		{alive, nil, codes.OK},
		{alive, Invalid("field", "wrong"), codes.InvalidArgument},
		{alive, cleave.ErrInvalidArgument, codes.InvalidArgument},
		{alive, fmt.Errorf("more than the cache holds: %w", cleave.ErrOutOfMemory), codes.InvalidArgument},
		{alive, cleave.ErrTimeout, codes.DeadlineExceeded},
		// Failures of this worker: a router may try another one.
		{alive, cleave.ErrWouldBlock, codes.Unavailable},
		{alive, cleave.ErrShutdown, codes.Unavailable},
		{alive, cleave.ErrInternal, codes.Unavailable},
		{alive, cleave.ErrDevice, codes.Unavailable},
		{alive, io.ErrUnexpectedEOF, codes.Unavailable},
		{alive, fmt.Errorf("%w: %w", core.ErrLost, cleave.ErrOutOfMemory), codes.Unavailable},
		{alive, core.ErrShuttingDown, codes.Unavailable},
		{ended(core.ErrShuttingDown), cleave.ErrCancelled, codes.Unavailable},
		{ended(core.ErrAborted), cleave.ErrCancelled, codes.Canceled},
		{ended(nil), cleave.ErrCancelled, codes.Canceled},
		{late, cleave.ErrTimeout, codes.DeadlineExceeded},
	} {
		if err := Status(c.ctx, c.err); status.Code(err) != c.code {
			t.Errorf("%v: %v, and %v was wanted", c.err, err, c.code)
		}
	}
}

func TestPanics(t *testing.T) {
	_, err := guardCall(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: "/call"}, func(context.Context, any) (any, error) { panic("fault") })
	if status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	err = guardStream(nil, nil, &grpc.StreamServerInfo{FullMethod: "/stream"}, func(any, grpc.ServerStream) error { panic("fault") })
	if status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
}

func TestPriority(t *testing.T) {
	last := -1
	for _, given := range []int64{-1 << 31, -5, 0, 5, 1<<31 - 1, 1 << 31} { // the last is vLLM's lowest number, negated
		got := Priority(given)
		if got < last || got == last && given < 1<<31 || got > 1<<32-1 {
			t.Errorf("%d: %d after %d", given, got, last)
		}
		last = got
	}
}
