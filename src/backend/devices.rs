//! The devices of this machine, by ordinal.

pub use super::device::{DEVICE_CPU, DeviceInfo};

use super::cpu::CpuDevice;
use super::{DeviceMemory, DeviceVisitor, PoolExport, cuda};
use crate::error::Result;

/// Opens a device and hands it to `visitor`. This is the one place that knows which kinds of device there are.
pub fn open<V: DeviceVisitor>(ordinal: i32, visitor: V) -> Result<V::Output> {
    match ordinal {
        DEVICE_CPU => visitor.visit(CpuDevice),
        _ => visitor.visit(cuda::Device::open(ordinal)?),
    }
}

/// Number of accelerators; 0 where there is no usable driver.
pub fn count() -> i32 {
    cuda::count()
}

/// Describes an accelerator. NOT_FOUND if there is none with this ordinal.
pub fn info(ordinal: i32) -> Result<DeviceInfo> {
    cuda::info(ordinal)
}

/// Maps another process's pool read-only, on the device that its memory belongs to. NOT_FOUND if this process does not see
/// that device.
pub fn open_memory(pool: PoolExport, uuid: &[u8; 16], block_bytes: usize) -> Result<Box<dyn DeviceMemory>> {
    Ok(Box::new(cuda::CudaPool::open(pool.fd, pool.bytes, uuid, block_bytes)?))
}
