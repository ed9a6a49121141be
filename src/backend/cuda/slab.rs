//! The KV pool of a cache on a device.

use super::device::Device;
use super::pool::CudaPool;
use crate::backend::{BlockId, BlockStore, DeviceMemory, KvGeometry, PoolExport};
use crate::error::Result;
use std::sync::Arc;

/// All KV blocks of one cache on a device.
pub struct CudaSlab {
    geometry: KvGeometry,
    pool: CudaPool,
}

impl CudaSlab {
    /// A pool of `n_blocks` blocks on `device`, private to this process.
    pub fn new(device: &Arc<Device>, geometry: KvGeometry, n_blocks: usize) -> Result<CudaSlab> {
        Self::of(device, geometry, n_blocks, false)
    }

    /// A pool of `n_blocks` blocks that other processes may map for reading, where the device supports that.
    pub fn shared(device: &Arc<Device>, geometry: KvGeometry, n_blocks: usize) -> Result<CudaSlab> {
        Self::of(device, geometry, n_blocks, true)
    }

    fn of(device: &Arc<Device>, geometry: KvGeometry, n_blocks: usize, shared: bool) -> Result<CudaSlab> {
        geometry.validate()?;
        Ok(CudaSlab { geometry, pool: CudaPool::new(device, n_blocks, geometry.block_bytes(), shared)? })
    }

    pub(super) fn address(&self) -> u64 {
        self.pool.address()
    }
}

/// Callers read a block only after they have waited for the step that wrote it.
impl BlockStore for CudaSlab {
    fn geometry(&self) -> &KvGeometry {
        &self.geometry
    }

    fn n_blocks(&self) -> usize {
        self.pool.n_blocks()
    }

    fn read(&self, id: BlockId, offset: usize, out: &mut [u8]) -> Result<()> {
        self.pool.read(id, offset, out)
    }

    fn write(&self, id: BlockId, offset: usize, data: &[u8]) -> Result<()> {
        self.pool.write(id, offset, data)
    }

    fn copy(&self, from: BlockId, to: BlockId) -> Result<()> {
        self.pool.copy(from, to)
    }

    fn device_memory(&self) -> Option<&dyn DeviceMemory> {
        Some(&self.pool)
    }

    fn share(&self) -> Result<PoolExport> {
        let (fd, bytes, device) = self.pool.descriptor()?;
        Ok(PoolExport { fd, bytes, device: Some(device) })
    }
}
