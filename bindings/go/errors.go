package cleave

import (
	"context"
	"errors"

	"cleave/go/internal/capi"
)

// Code is a status of the C API other than CLEAVE_OK. It implements error, so that the constants below can be passed to
// [errors.Is]:
//
//	if errors.Is(err, cleave.ErrWouldBlock) {
//		// answer 429
//	}
//
// Later versions of the library may add codes: treat an unknown code as a general failure.
type Code int32

// The codes of the C API.
const (
	// ErrInvalidArgument: an argument is out of range, not UTF-8, or conflicts with another one.
	ErrInvalidArgument Code = -1
	// ErrNotFound: no such file, device or object. An object that was closed is also [ErrClosed].
	ErrNotFound Code = -2
	// ErrUnsupported: the request is well-formed, but this build, model or device cannot serve it.
	ErrUnsupported Code = -3
	// ErrWouldBlock: too many requests are waiting; try again once a request has ended.
	ErrWouldBlock Code = -4
	// ErrOutOfMemory: host memory, device memory or KV blocks ran out.
	ErrOutOfMemory Code = -5
	// ErrIO: the operating system could not read, write or listen.
	ErrIO Code = -6
	// ErrIncompatible: the other side has another model, weights, dtype, layout or wire version.
	ErrIncompatible Code = -7
	// ErrPermission: the data is not signed with this cache's secret.
	ErrPermission Code = -8
	// ErrExpired: the lease has ended, the handle was consumed, or its exporter was restarted.
	ErrExpired Code = -9
	// ErrCorrupt: a checksum does not match, data is truncated, or a file is malformed.
	ErrCorrupt Code = -10
	// ErrCancelled: the request was cancelled.
	ErrCancelled Code = -11
	// ErrTimeout: a deadline or a timeout has passed.
	ErrTimeout Code = -12
	// ErrDevice: the device failed.
	ErrDevice Code = -13
	// ErrPeer: the peer is gone.
	ErrPeer Code = -14
	// ErrShutdown: the object is draining, is being closed, or was closed during the call.
	ErrShutdown Code = -15
	// ErrInternal: a bug in the library; the text says where.
	ErrInternal Code = -16
	// ErrPrefillElsewhere: the prompt has more uncached tokens than [EngineConfig.LocalPrefillTokens] allows.
	ErrPrefillElsewhere Code = -17
)

// ErrClosed is returned, in addition to the library's code, by methods of an object on which Close was called.
var ErrClosed = errors.New("closed")

// Error returns the code's name after "cleave: ".
func (c Code) Error() string { return "cleave: " + c.String() }

// String returns the code's name in the C API without its prefix, such as "NOT_FOUND".
func (c Code) String() string { return capi.StatusString(int32(c)) }

// Error is a failure that the library reports. Errors of this package have this type unless documented otherwise. Use
// [errors.As] to get the Error, and [errors.Is] to test its code or cause.
type Error struct {
	// Code is the kind of failure. errors.Is(err, code) is true.
	Code Code
	// Message names what is at fault: the argument, file, tensor or id. It may be empty.
	Message string

	// causes are further errors that Unwrap returns: ErrClosed, or a context's error and cause.
	causes []error
}

// Error returns the message and the code's name.
func (e *Error) Error() string {
	text := e.Message
	for _, cause := range e.causes {
		if text != "" {
			text += ": "
		}
		text += cause.Error()
	}
	if text == "" {
		return e.Code.Error()
	}
	return "cleave: " + text + " (" + e.Code.String() + ")"
}

// Unwrap returns the code and any further causes: ErrClosed, or the context's error and cause.
func (e *Error) Unwrap() []error { return append([]error{e.Code}, e.causes...) }

func newError(code Code, message string, causes ...error) *Error {
	return &Error{Code: code, Message: message, causes: causes}
}

// wrap converts an error of package capi to an *Error.
func wrap(e *capi.Error) error {
	if e == nil {
		return nil
	}
	return newError(Code(e.Status), e.Message)
}

// contextError returns the error of an operation whose context has ended.
func contextError(ctx context.Context) *Error {
	code, err := ErrCancelled, ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		code = ErrTimeout
	}
	if cause := context.Cause(ctx); cause != err {
		return newError(code, "", err, cause)
	}
	return newError(code, "", err)
}
