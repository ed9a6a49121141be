package capi

// #include "bridge.h"
import "C"

import "reflect"

// EngineMetrics is cleave_engine_metrics. It sets each field of *out from the field of the C struct that its tag `c`
// names.
func EngineMetrics(engine uintptr, out any) *Error {
	var c C.cleave_metrics_t
	var err C.cleave_error_t
	c.struct_size = C.sizeof_cleave_metrics_t
	if status := C.bridge_engine_metrics(C.name_t(engine), &c, &err); status != C.CLEAVE_OK {
		return failure(status, &err)
	}
	copyFields(reflect.ValueOf(c), reflect.ValueOf(out).Elem())
	return nil
}

// EngineLoad is cleave_engine_load. It sets each field of *out from the field of the C struct that its tag `c` names.
func EngineLoad(engine uintptr, out any) *Error {
	var c C.cleave_engine_load_t
	var err C.cleave_error_t
	c.struct_size = C.sizeof_cleave_engine_load_t
	if status := C.bridge_engine_load(C.name_t(engine), &c, &err); status != C.CLEAVE_OK {
		return failure(status, &err)
	}
	copyFields(reflect.ValueOf(c), reflect.ValueOf(out).Elem())
	return nil
}

// Flags of a load.
const (
	LoadDraining = C.CLEAVE_LOAD_DRAINING
	LoadFailed   = C.CLEAVE_LOAD_FAILED
)

// copyFields sets the numbers of `to` from the fields of the C struct `from` that their tags name.
func copyFields(from, to reflect.Value) {
	for i := range to.NumField() {
		value := from.FieldByName(to.Type().Field(i).Tag.Get("c"))
		switch field := to.Field(i); {
		case field.CanFloat():
			field.SetFloat(value.Float())
		case field.CanInt():
			field.SetInt(int64(value.Uint()))
		default:
			field.SetUint(value.Uint())
		}
	}
}

// MetricsText is cleave_metrics_text.
func MetricsText() ([]byte, *Error) {
	return enough(8192, func(buf *byte, capacity C.size_t, n *C.size_t) *Error {
		var err C.cleave_error_t
		return failure(C.cleave_metrics_text(chars(buf), capacity, n, &err), &err)
	})
}

// DeviceCPU is CLEAVE_DEVICE_CPU.
const DeviceCPU = C.CLEAVE_DEVICE_CPU

// DeviceInfo is cleave_device_info_t.
type DeviceInfo struct {
	Ordinal           int
	ComputeCapability int
	NUMANode          int
	TotalBytes        uint64
	FreeBytes         uint64
	UUID              string
	Name              string
}

// DeviceCount is cleave_device_count.
func DeviceCount() int { return int(C.cleave_device_count()) }

// GetDeviceInfo is cleave_device_info.
func GetDeviceInfo(ordinal int32) (DeviceInfo, *Error) {
	var c C.cleave_device_info_t
	c.struct_size = C.sizeof_cleave_device_info_t
	var err C.cleave_error_t
	status := C.cleave_device_info(C.int32_t(ordinal), &c, &err)
	return DeviceInfo{
		Ordinal:           int(c.ordinal),
		ComputeCapability: int(c.compute_capability),
		NUMANode:          int(c.numa_node),
		TotalBytes:        uint64(c.total_bytes),
		FreeBytes:         uint64(c.free_bytes),
		UUID:              text(c.uuid[:]),
		Name:              text(c.name[:]),
	}, failure(status, &err)
}
