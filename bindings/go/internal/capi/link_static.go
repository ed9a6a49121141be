//go:build cleave_static

package capi

// #cgo pkg-config: --static cleave
import "C"
