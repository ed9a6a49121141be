//go:build cleave_static

package capi

// The archive comes first, so that nothing is left for the shared library, which pkg-config names too.

// #cgo LDFLAGS: -l:libcleave.a -Wl,--as-needed
// #cgo pkg-config: --static cleave
import "C"
