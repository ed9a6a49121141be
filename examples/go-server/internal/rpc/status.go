// Package rpc holds what all gRPC services of a worker share: the server, its health and its end, and the translation of
// errors.
package rpc

import (
	"context"
	"errors"
	"fmt"

	cleave "cleave/go"

	"cleave/examples/go-server/internal/core"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Invalid is the status of a request that no worker can serve. It names the field.
func Invalid(field, format string, args ...any) error {
	return status.Error(codes.InvalidArgument, field+": "+fmt.Sprintf(format, args...))
}

// Status translates an error of a request with this context. Routers retry UNAVAILABLE on another worker, and nothing
// else, so it stands for everything that is the worker's fault or misfortune.
func Status(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if _, known := status.FromError(err); known {
		return err
	}
	cause := context.Cause(ctx)
	code := codes.Unavailable
	switch {
	case errors.Is(cause, core.ErrShuttingDown):
		err = core.ErrShuttingDown
	case errors.Is(cause, core.ErrAborted), ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
		code = codes.Canceled
	case ctx.Err() != nil, errors.Is(err, cleave.ErrTimeout):
		code = codes.DeadlineExceeded
	case errors.Is(err, core.ErrLost):
	case errors.Is(err, cleave.ErrInvalidArgument), errors.Is(err, cleave.ErrOutOfMemory), errors.Is(err, cleave.ErrUnsupported):
		code = codes.InvalidArgument
	}
	return status.Error(code, err.Error())
}
