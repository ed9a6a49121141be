package cleave

import (
	"fmt"
	"math"

	"cleave/go/internal/capi"
)

// DeviceCPU identifies the CPU as a device. CUDA devices are identified by their ordinals 0, 1, ...
const DeviceCPU = capi.DeviceCPU

// DeviceInfo describes a device.
type DeviceInfo struct {
	// Ordinal is DeviceCPU or the number of a CUDA device.
	Ordinal int
	// ComputeCapability is major * 10 + minor; 0 for the CPU.
	ComputeCapability int
	// NUMANode is the NUMA node nearest to the device; 0 for the CPU.
	NUMANode int
	// TotalBytes is the device's memory. For the CPU it is the memory that this process may use within its control
	// group's limit.
	TotalBytes uint64
	// FreeBytes is the part of TotalBytes that is free.
	FreeBytes uint64
	// UUID identifies the device; "CPU" for the CPU.
	UUID string
	// Name is the vendor's name for the device.
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

// Device describes one device: [DeviceCPU] or the ordinal of a CUDA device. Errors: [ErrNotFound].
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
