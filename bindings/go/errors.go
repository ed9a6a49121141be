package cleave

import (
	"context"
	"errors"

	"cleave/go/internal/capi"
)

// Code is a status of the C API other than CLEAVE_OK. It is an error itself, so that the constants below are what
// [errors.Is] compares with:
//
//	if errors.Is(err, cleave.ErrWouldBlock) {
//		// answer 429
//	}
//
// Later versions of the library may add codes: treat an unknown one as a failure of its own kind.
type Code int32

// The codes of the C API.
const (
	// ErrInvalidArgument: an argument is out of range, not UTF-8, or cannot be together with another one.
	ErrInvalidArgument Code = -1
	// ErrNotFound: no such file, device or object. An object that was closed is also [ErrClosed].
	ErrNotFound Code = -2
	// ErrUnsupported: well-formed, but not something that this build, model or device can do.
	ErrUnsupported Code = -3
	// ErrWouldBlock: admission is full; try again once a request has ended.
	ErrWouldBlock Code = -4
	// ErrOutOfMemory: host memory, device memory or KV blocks.
	ErrOutOfMemory Code = -5
	// ErrIO: the system refused to read, write, listen.
	ErrIO Code = -6
	// ErrIncompatible: other model, weights, dtype, layout or wire version.
	ErrIncompatible Code = -7
	// ErrPermission: not signed with the secret of this cache.
	ErrPermission Code = -8
	// ErrExpired: the lease is over, the handle was consumed, or its exporter was restarted.
	ErrExpired Code = -9
	// ErrCorrupt: checksum, truncation, malformed file.
	ErrCorrupt Code = -10
	// ErrCancelled: of a request that was cancelled.
	ErrCancelled Code = -11
	// ErrTimeout: a deadline or a timeout has passed.
	ErrTimeout Code = -12
	// ErrDevice: the device failed.
	ErrDevice Code = -13
	// ErrPeer: the other side is gone.
	ErrPeer Code = -14
	// ErrShutdown: the object is being closed, or was while the call waited, or drains.
	ErrShutdown Code = -15
	// ErrInternal: a bug in the library; the text says where.
	ErrInternal Code = -16
	// ErrPrefillElsewhere: more prompt tokens are to be computed than [EngineConfig.LocalPrefillTokens] allows.
	ErrPrefillElsewhere Code = -17
)

// ErrClosed is returned by methods of an object after Close was called on it, in addition to the library's code.
var ErrClosed = errors.New("closed")

// Error returns "cleave: " and the code's name.
func (c Code) Error() string { return "cleave: " + c.String() }

// String returns the name that the C API gives it, without its prefix, as "NOT_FOUND".
func (c Code) String() string { return capi.StatusString(int32(c)) }

// Error is a failure that the library reports. Errors of this package are of this type, unless their documentation
// says otherwise; get at it with [errors.As], or at its parts with [errors.Is].
type Error struct {
	// Code is what kind of failure it is. errors.Is(err, code) is true.
	Code Code
	// Message names what is at fault: the argument, file, tensor or id. It may be empty.
	Message string

	// Why a caller sees it: ErrClosed, the error and the cause of a context.
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

// Unwrap returns the code, and what else caused the error: ErrClosed, or the context's error and cause.
func (e *Error) Unwrap() []error { return append([]error{e.Code}, e.causes...) }

func newError(code Code, message string, causes ...error) *Error {
	return &Error{Code: code, Message: message, causes: causes}
}

// wrap makes an error of what the library said.
func wrap(e *capi.Error) error {
	if e == nil {
		return nil
	}
	return newError(Code(e.Status), e.Message)
}

// contextError is the end of something whose context ended.
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
