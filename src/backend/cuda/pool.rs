//! KV blocks in a device's memory: this process's own pool, or a peer's that is mapped.

use super::device::Device;
use super::memory::Allocation;
use super::peer::Readers;
use super::stream::Stream;
use super::transfers::Transfers;
use crate::backend::{BlockId, DeviceMemory, ForeignBlocks, KvGeometry};
use crate::bail;
use crate::error::Result;
use std::any::Any;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// KV blocks, one after the other, in one allocation on a device.
pub struct CudaPool {
    n_blocks: usize,
    pub(super) block_bytes: usize,
    /// Stream for copies within the pool. An engine's step waits for those and for nothing else.
    within: Stream,
    transfers: Mutex<Transfers>,
    pub(super) readers: Readers,
    /// Declared last: streams wait for their work when dropped, unmapping memory does not.
    pub(super) memory: Allocation,
}

impl CudaPool {
    /// Allocates zeroed blocks. `shared`: other processes may map them, where the device supports that.
    pub fn new(device: &Arc<Device>, n_blocks: usize, block_bytes: usize, shared: bool) -> Result<CudaPool> {
        let total = block_bytes.checked_mul(n_blocks).filter(|total| *total <= isize::MAX as usize);
        let total = total.ok_or_else(|| crate::error!(OutOfMemory, "KV pool of {n_blocks} blocks"))?;
        let memory = if shared { Allocation::shareable(device, total) } else { Allocation::new(device, total) };
        let memory = memory.map_err(|e| e.context(format!("KV pool of {n_blocks} blocks")))?;
        let pool = Self::of(memory, n_blocks, block_bytes)?;
        pool.memory.clear(&pool.within)?;
        Ok(pool)
    }

    /// Maps another process's pool read-only, from what [`CudaPool::descriptor`] returned there, on the device with that
    /// UUID.
    pub fn open(fd: OwnedFd, bytes: usize, uuid: &[u8; 16], block_bytes: usize) -> Result<CudaPool> {
        let device = Device::of_uuid(uuid)?;
        Self::of(Allocation::open(&device, fd, bytes)?, bytes / block_bytes.max(1), block_bytes)
    }

    fn of(memory: Allocation, n_blocks: usize, block_bytes: usize) -> Result<CudaPool> {
        let transfers = Mutex::new(Transfers::new(memory.device())?);
        let within = Stream::new(memory.device())?;
        Ok(CudaPool { n_blocks, block_bytes, within, transfers, readers: Readers::default(), memory })
    }

    pub(super) fn transfers(&self) -> MutexGuard<'_, Transfers> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    /// A descriptor of the pool, its size and the device's UUID, with which another process can map it. UNSUPPORTED if the
    /// memory cannot be shared.
    pub fn descriptor(&self) -> Result<(OwnedFd, usize, [u8; 16])> {
        let (fd, bytes) = self.memory.descriptor()?;
        Ok((fd, bytes, self.memory.device().uuid()?))
    }

    pub(super) fn offset(&self, id: BlockId, offset: usize, len: usize) -> usize {
        assert!((id as usize) < self.n_blocks, "block {id} of {}", self.n_blocks);
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.block_bytes), "{len} bytes at {offset} of {}", self.block_bytes);
        id as usize * self.block_bytes + offset
    }

    /// Copies a block within the pool. Panics out of range.
    pub fn copy(&self, from: BlockId, to: BlockId) -> Result<()> {
        let (source, target) = (self.offset(from, 0, self.block_bytes), self.offset(to, 0, self.block_bytes));
        if source == target {
            return Ok(());
        }
        self.memory.copy(source, target, self.block_bytes, &self.within)
    }

    /// CORRUPT unless all `blocks` lie in this pool: their numbers may come from another process.
    pub(super) fn check(&self, blocks: &[BlockId]) -> Result<()> {
        match blocks.iter().find(|id| **id as usize >= self.n_blocks) {
            Some(id) => bail!(Corrupt, "block {id} lies outside of its pool of {}", self.n_blocks),
            None => Ok(()),
        }
    }
}

impl DeviceMemory for CudaPool {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    fn beside(&self, n_blocks: usize, block_bytes: usize) -> Result<Box<dyn DeviceMemory>> {
        Ok(Box::new(Self::new(self.memory.device(), n_blocks, block_bytes, false)?))
    }

    fn read(&self, id: BlockId, offset: usize, out: &mut [u8]) -> Result<()> {
        let at = self.offset(id, offset, out.len());
        let Transfers { stream, staging, .. } = &mut *self.transfers();
        staging.read(&self.memory, at, out, stream)
    }

    fn write(&self, id: BlockId, offset: usize, data: &[u8]) -> Result<()> {
        let at = self.offset(id, offset, data.len());
        let Transfers { stream, staging, .. } = &mut *self.transfers();
        staging.write(&self.memory, at, data, stream)
    }

    fn copy_from(&self, source: &dyn DeviceMemory, from: &[BlockId], to: &[BlockId]) -> Result<bool> {
        match source.as_any().downcast_ref() {
            Some(source) => self.copy_blocks(source, from, to).map(|()| true),
            None => Ok(false),
        }
    }

    fn convert(
        &self,
        from: &KvGeometry,
        to: &KvGeometry,
        source: &ForeignBlocks<'_>,
        table: &[BlockId],
        tokens: Range<u32>,
    ) -> Result<bool> {
        self.convert_blocks(from, to, source, table, tokens)
    }
}
