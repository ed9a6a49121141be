//! devices

use super::boundary::{call, call_int, fixed_text};
use super::error::{cleave_error_t, cleave_status_t};
use super::versioned::{Output, VersionedStruct, sized_struct};
use crate::backend::devices;
use crate::bail;
use libc::c_char;

/// The CPU as a device. CUDA devices are their ordinals 0, 1, ...
pub const CLEAVE_DEVICE_CPU: i32 = -1;

/// Description of a device. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_device_info_t {
    /// sizeof this struct, set by the caller.
    pub struct_size: u32,
    /// The ordinal that was asked for.
    pub ordinal: i32,
    /// major * 10 + minor; 0 for the CPU.
    pub compute_capability: u32,
    /// The nearest NUMA node; 0 for the CPU.
    pub numa_node: u32,
    /// Memory in bytes. For the CPU, what the control group of this process allows.
    pub total_bytes: u64,
    /// Memory that is not in use, in bytes.
    pub free_bytes: u64,
    /// NUL-terminated; "CPU" for the CPU.
    pub uuid: [c_char; 48],
    /// Name of the product, NUL-terminated.
    pub name: [c_char; 64],
}

sized_struct!(cleave_device_info_t);

/// Returns the number of CUDA devices of this process: 0 without devices, or without a driver for CUDA 12 or newer.
/// The call cannot fail; cleave_device_info of device 0 says why there is none. The CPU is always there and does not
/// count. Callable from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn cleave_device_count() -> i32 {
    call_int(|| Ok(devices::count())).max(0)
}

/// Describes CLEAVE_DEVICE_CPU or a CUDA device.
///
/// Callable from any thread. [BLOCKING] Opens and closes a CUDA device that is not in use. Errors: NOT_FOUND (no such
/// device, no driver), UNSUPPORTED (the driver is too old), DEVICE, INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_device_info(
    ordinal: i32,
    out: *mut cleave_device_info_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
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
