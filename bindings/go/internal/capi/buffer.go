package capi

// #include "bridge.h"
import "C"

import (
	"strings"
	"unsafe"
)

// enough asks fill for a result of unknown length: fill gets a buffer, and says how long the result is and how the call
// ended. A result that grew since its length was asked for is asked for again.
func enough[T any](guess int, fill func(buf *T, capacity C.size_t, n *C.size_t) *Error) ([]T, *Error) {
	buf := make([]T, guess)
	for {
		var n C.size_t
		err := fill(unsafe.SliceData(buf), C.size_t(len(buf)), &n)
		if int(n) > len(buf) {
			buf = make([]T, int(n)+int(n)/8)
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

func chars(b *byte) *C.char { return (*C.char)(unsafe.Pointer(b)) }

func bytes(b *byte) *C.uint8_t { return (*C.uint8_t)(unsafe.Pointer(b)) }

// cString is a copy of s with a NUL behind it. One within s would cut it: the library would see another text than the
// caller gave.
func cString(what, s string) (*C.char, *Error) {
	if strings.IndexByte(s, 0) >= 0 {
		return nil, &Error{Status: C.CLEAVE_ERR_INVALID_ARGUMENT, Message: what + " has a NUL in it"}
	}
	return chars(unsafe.SliceData(append([]byte(s), 0))), nil
}
