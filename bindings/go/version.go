package cleave

import "cleave/go/internal/capi"

// Version returns the release of the loaded library, such as "0.1.0".
func Version() string { return capi.VersionString() }

// APIVersion returns the version of the C API that the loaded library implements. It may differ from the version that
// the package was compiled with: see [HeaderVersion].
func APIVersion() (major, minor int) {
	v := capi.APIVersion()
	return int(v >> 16), int(v & 0xffff)
}

// HeaderVersion returns the version of the C API that the package was compiled with.
func HeaderVersion() (major, minor int) {
	v := capi.HeaderVersion()
	return int(v >> 16), int(v & 0xffff)
}
