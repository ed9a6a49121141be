//! The devices of this machine, by ordinal.

use super::{DeviceMemory, PoolExport, cuda};
use crate::error::Result;

/// The device ordinal of the CPU. Accelerators have ordinals from 0 on.
pub const DEVICE_CPU: i32 = -1;

/// What is known of an accelerator.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// The vendor's name for the model.
    pub name: String,
    /// Unique identifier, as the vendor's tools write it ("GPU-...").
    pub uuid: String,
    /// Instruction set of the device: major * 10 + minor.
    pub compute_capability: u32,
    /// Nearest NUMA node.
    pub numa_node: u32,
    /// Size of its memory in bytes.
    pub total_bytes: u64,
    /// Unused bytes of its memory.
    pub free_bytes: u64,
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
