package capi

// #include "bridge.h"
import "C"

import (
	"strings"
	"unsafe"
)

// enough calls fill until its buffer is large enough. fill gets a buffer and returns the length of the result and an
// error. The result may grow between two calls.
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

// cString returns a copy of s with a NUL at its end. It refuses an s that contains a NUL, because the library would see
// only the text before it.
func cString(what, s string) (*C.char, *Error) {
	if strings.IndexByte(s, 0) >= 0 {
		return nil, &Error{Status: C.CLEAVE_ERR_INVALID_ARGUMENT, Message: what + " has a NUL in it"}
	}
	return chars(unsafe.SliceData(append([]byte(s), 0))), nil
}
