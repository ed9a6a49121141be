package cleave

import "cleave/go/internal/capi"

// Version returns the release of the library that was loaded, as "0.1.0".
func Version() string { return capi.VersionString() }

// APIVersion returns the version of the C API that the loaded library implements. It may be another one than the
// package was compiled with: see [HeaderVersion].
func APIVersion() (major, minor int) {
	v := capi.APIVersion()
	return int(v >> 16), int(v & 0xffff)
}

// HeaderVersion returns the version of the C API that the package was compiled with.
func HeaderVersion() (major, minor int) {
	v := capi.HeaderVersion()
	return int(v >> 16), int(v & 0xffff)
}
