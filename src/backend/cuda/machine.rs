//! The CUDA devices of this machine, as the driver lists them.

use super::driver::{check, ready};
use crate::bail;
use crate::error::Result;
use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute as Attribute};

/// Number of devices; 0 without a usable driver.
pub fn count() -> i32 {
    all().unwrap_or(0)
}

pub(super) fn all() -> Result<i32> {
    ready()?;
    let mut count = 0;
    // SAFETY: writes one int.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, "count the CUDA devices")?;
    Ok(count)
}

/// A UUID as NVIDIA's tools write it.
pub(super) fn written(uuid: &[u8; 16]) -> String {
    let mut text = String::from("GPU");
    for (i, byte) in uuid.iter().enumerate() {
        if [0, 4, 6, 8, 10].contains(&i) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

pub(super) fn handle(ordinal: i32) -> Result<CUdevice> {
    let count = all().map_err(|error| error.context(format!("CUDA device {ordinal}")))?;
    if !(0..count).contains(&ordinal) {
        bail!(NotFound, "there is no CUDA device {ordinal}: this process has {count}");
    }
    let mut handle = 0;
    // SAFETY: writes one int.
    check(unsafe { sys::cuDeviceGet(&mut handle, ordinal) }, "find a CUDA device")?;
    Ok(handle)
}

pub(super) fn uuid(handle: CUdevice) -> Result<[u8; 16]> {
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: writes the 16 bytes of its argument.
    check(unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, handle) }, "ask for the UUID of a CUDA device")?;
    Ok(uuid.bytes.map(|byte| byte as u8))
}

pub(super) fn attribute(handle: CUdevice, which: Attribute) -> Result<i32> {
    let mut value = 0;
    // SAFETY: writes one int.
    check(unsafe { sys::cuDeviceGetAttribute(&mut value, which, handle) }, "ask for what a CUDA device is")?;
    Ok(value)
}
