//go:build !cleave_static

package capi

// #cgo pkg-config: cleave
import "C"
