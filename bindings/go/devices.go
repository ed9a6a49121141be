package cleave

import (
	"fmt"
	"math"

	"cleave/go/internal/capi"
)

// DeviceCPU is the CPU as a device. CUDA devices are their ordinals 0, 1, ...
const DeviceCPU = capi.DeviceCPU

// DeviceInfo describes a device.
type DeviceInfo struct {
	// Ordinal is DeviceCPU or the number of a CUDA device.
	Ordinal int
	// ComputeCapability is major * 10 + minor; 0 for the CPU.
	ComputeCapability int
	// NUMANode is the node nearest to it; 0 for the CPU.
	NUMANode int
	// TotalBytes is its memory; of the CPU what this process may use, as its control group limits it.
	TotalBytes uint64
	// FreeBytes is how much of that is free.
	FreeBytes uint64
	// UUID is "CPU" for the CPU.
	UUID string
	// Name is as the maker names it.
	Name string
}

// Devices returns the devices that this process can use: the CPU first, then CUDA devices by ordinal.
func Devices() ([]DeviceInfo, error) {
	var devices []DeviceInfo
	for ordinal := DeviceCPU; ordinal < capi.DeviceCount(); ordinal++ {
		device, err := Device(ordinal)
		if err != nil {
			return nil, err
		}
		devices = append(devices, device)
	}
	return devices, nil
}

// Device returns what is known of one device: [DeviceCPU] or the ordinal of a CUDA device. Errors: [ErrNotFound].
func Device(ordinal int) (DeviceInfo, error) {
	if ordinal < DeviceCPU || ordinal > math.MaxInt32 {
		return DeviceInfo{}, newError(ErrNotFound, fmt.Sprintf("no device %d", ordinal))
	}
	info, e := capi.GetDeviceInfo(int32(ordinal))
	if e != nil {
		return DeviceInfo{}, newError(Code(e.Status), fmt.Sprintf("device %d", ordinal))
	}
	return DeviceInfo(info), nil
}
