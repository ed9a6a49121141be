//go:build cleave_static

package capi

// The archive comes first and resolves every symbol. pkg-config also names the shared library, which is then not
// needed.

// #cgo LDFLAGS: -l:libcleave.a -Wl,--as-needed
// #cgo pkg-config: --static cleave
import "C"
