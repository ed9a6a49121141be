//! The KV pool on a device: one piece of memory, block after block.

use super::device::Device;
use super::memory::DeviceMemory;
use super::stream::Stream;
use crate::backend::{BlockId, BlockStore, KvGeometry};
use crate::error::Result;
use std::sync::Arc;

/// All KV blocks of one cache on a device.
pub struct CudaSlab {
    geometry: KvGeometry,
    n_blocks: usize,
    block_bytes: usize,
    memory: DeviceMemory,
    /// For copies from and to the host. A block is read only after the step that wrote it was waited for.
    copies: Stream,
}

impl CudaSlab {
    pub fn new(device: &Arc<Device>, geometry: KvGeometry, n_blocks: usize) -> Result<CudaSlab> {
        geometry.validate()?;
        let block_bytes = geometry.block_bytes();
        let total = block_bytes.checked_mul(n_blocks).filter(|total| *total <= isize::MAX as usize);
        let total = total.ok_or_else(|| crate::error!(OutOfMemory, "KV pool of {n_blocks} blocks"))?;
        let memory =
            DeviceMemory::new(device, total).map_err(|e| e.context(format!("KV pool of {n_blocks} blocks")))?;
        let copies = Stream::new(device)?;
        memory.clear(&copies)?;
        Ok(CudaSlab { geometry, n_blocks, block_bytes, memory, copies })
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    fn offset(&self, id: BlockId, offset: usize, len: usize) -> usize {
        assert!((id as usize) < self.n_blocks, "block {id} of {}", self.n_blocks);
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.block_bytes), "{len} bytes at {offset} of {}", self.block_bytes);
        id as usize * self.block_bytes + offset
    }
}

/// `read`, `write` and `copy` panic where the device fails: their callers turn that into an error of what they did.
impl BlockStore for CudaSlab {
    fn geometry(&self) -> &KvGeometry {
        &self.geometry
    }

    fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    fn read(&self, id: BlockId, offset: usize, out: &mut [u8]) {
        let at = self.offset(id, offset, out.len());
        self.memory.read(at, out, &self.copies).unwrap_or_else(|error| panic!("{error}"));
    }

    fn write(&self, id: BlockId, offset: usize, data: &[u8]) {
        let at = self.offset(id, offset, data.len());
        self.memory.write(at, data, &self.copies).unwrap_or_else(|error| panic!("{error}"));
    }

    fn copy(&self, from: BlockId, to: BlockId) {
        let (source, target) = (self.offset(from, 0, self.block_bytes), self.offset(to, 0, self.block_bytes));
        if source != target {
            let copied = self.memory.copy(source, target, self.block_bytes, &self.copies);
            copied.unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
