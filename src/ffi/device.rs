//! devices

use super::boundary::{call, call_int, fixed_text};
use super::error::{cleave_error_t, cleave_status_t};
use super::versioned::{Output, VersionedStruct, sized_struct};
use crate::backend::devices;
use crate::bail;
use libc::c_char;

/// The CPU as a device. CUDA devices are their ordinals 0, 1, ...
pub const CLEAVE_DEVICE_CPU: i32 = -1;

/// What is known of a device. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_device_info_t {
    pub struct_size: u32,
    pub ordinal: i32,
    /// major * 10 + minor; 0 for the CPU.
    pub compute_capability: u32,
    /// The NUMA node nearest to it; 0 for the CPU.
    pub numa_node: u32,
    /// Memory in bytes; of the CPU what this process may use, as its control group limits it.
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// NUL-terminated. "CPU" for the CPU.
    pub uuid: [c_char; 48],
    /// NUL-terminated, as the maker names it.
    pub name: [c_char; 64],
}

sized_struct!(cleave_device_info_t);

/// How many CUDA devices this process has. 0 without a driver for CUDA 12 or newer, or without devices: never an error.
/// What cleave_device_info says of device 0 is why. The CPU is not counted and always there. Callable from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn cleave_device_count() -> i32 {
    call_int(|| Ok(devices::count())).max(0)
}

/// Describes CLEAVE_DEVICE_CPU or a CUDA device. Callable from any thread.
/// [BLOCKING] Of a CUDA device that is not in use, until it is opened and closed again.
/// Errors: NOT_FOUND (no such device, no driver), UNSUPPORTED (the driver is too old), DEVICE, INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_device_info(
    ordinal: i32,
    out: *mut cleave_device_info_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || unsafe {
        let out = Output::new(out, "out")?;
        if ordinal < CLEAVE_DEVICE_CPU {
            bail!(InvalidArgument, "{ordinal} is no device ordinal");
        }
        let mut info = cleave_device_info_t::zeroed();
        info.ordinal = ordinal;
        if ordinal != CLEAVE_DEVICE_CPU {
            let device = devices::info(ordinal)?;
            info.compute_capability = device.compute_capability;
            info.numa_node = device.numa_node;
            info.total_bytes = device.total_bytes;
            info.free_bytes = device.free_bytes;
            info.uuid = fixed_text(&device.uuid);
            info.name = fixed_text(&device.name);
            out.write(&info);
            return Ok(());
        }
        let host = crate::sys::host_info();
        info.total_bytes = host.total_bytes;
        info.free_bytes = host.free_bytes;
        info.uuid = fixed_text("CPU");
        info.name = fixed_text(&host.cpu_name);
        out.write(&info);
        Ok(())
    })
}
