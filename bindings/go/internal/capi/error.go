// Package capi is the C API of cleave in Go's types. It has one function for each function of cleave.h and adds
// nothing.
//
// The package holds all of the cgo. Objects are uintptr (see bridge.h), results are copied, and a failure is an *Error.
package capi

// #include "bridge.h"
import "C"

import "unsafe"

// Error is a status other than CLEAVE_OK, and the text that came with it.
type Error struct {
	Status  int32
	Message string
}

// failure makes an Error of a status and the text that came with it.
func failure(status C.cleave_status_t, err *C.cleave_error_t) *Error {
	if status == C.CLEAVE_OK {
		return nil
	}
	return &Error{Status: int32(status), Message: text(err.message[:])}
}

// text returns the content of a fixed array up to its NUL.
func text(chars []C.char) string {
	n := 0
	for n < len(chars) && chars[n] != 0 {
		n++
	}
	return string(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(chars))), n))
}

// StatusString returns the name of a status, such as "NOT_FOUND".
func StatusString(status int32) string {
	return C.GoString(C.cleave_status_string(C.cleave_status_t(status)))
}

// APIVersion returns (major << 16) | minor of the loaded library.
func APIVersion() uint32 { return uint32(C.cleave_api_version()) }

// HeaderVersion returns (major << 16) | minor of the header that this package was compiled with.
func HeaderVersion() uint32 { return C.CLEAVE_API_MAJOR<<16 | C.CLEAVE_API_MINOR }

// VersionString returns the library's release.
func VersionString() string { return C.GoString(C.cleave_version_string()) }
