//! KV blocks in host memory: one mapping, divided into blocks.

use super::memory::{Mapping, out_of_memory};
use crate::backend::{BlockId, BlockStore, KvGeometry, PoolExport};
use crate::bail;
use crate::error::Result;
use crate::sys::bytes::{ByteSource, ByteTarget};
use crate::sys::shared_memory::SharedMemory;
use std::sync::atomic::AtomicU8;

/// All KV blocks of one cache in host memory. They start as zeros; the system allocates each page when it is first
/// written.
pub struct KvSlab {
    geometry: KvGeometry,
    n_blocks: usize,
    block_bytes: usize,
    memory: Memory,
}

enum Memory {
    Private(Mapping),
    PoolExport(SharedMemory),
}

impl Memory {
    fn as_ptr(&self) -> *mut u8 {
        match self {
            Memory::Private(mapping) => mapping.as_ptr(),
            Memory::PoolExport(memory) => memory.as_ptr(),
        }
    }
}

impl KvSlab {
    /// A pool of `n_blocks` blocks in memory private to this process.
    pub fn new(geometry: KvGeometry, n_blocks: usize) -> Result<KvSlab> {
        Self::of(geometry, n_blocks, |len| Mapping::anonymous(len).map(Memory::Private))
    }

    /// A pool of `n_blocks` blocks in shared memory, which other processes can be allowed to read.
    pub fn shared(geometry: KvGeometry, n_blocks: usize) -> Result<KvSlab> {
        Self::of(geometry, n_blocks, |len| SharedMemory::create(len).map(Memory::PoolExport))
    }

    fn of(geometry: KvGeometry, n_blocks: usize, map: impl FnOnce(usize) -> Result<Memory>) -> Result<KvSlab> {
        geometry.validate()?;
        let block_bytes = geometry.block_bytes();
        let total = block_bytes.checked_mul(n_blocks).filter(|&total| total <= isize::MAX as usize);
        let total = total.ok_or_else(|| out_of_memory(usize::MAX))?;
        let memory = map(total).map_err(|error| error.context(format!("KV pool of {n_blocks} blocks")))?;
        Ok(KvSlab { geometry, n_blocks, block_bytes, memory })
    }

    /// Start of the stripe of `(layer, K or V, head)` in block `id`: `[block_tokens][head_dim]` elements, followed by
    /// scales if the KV is int8. Panics if an index is out of range, so that a wrong block table never reaches other
    /// memory.
    pub(super) fn head(&self, id: BlockId, layer: usize, value: bool, head: usize) -> *mut u8 {
        let (layers, heads) = (self.geometry.layers as usize, self.geometry.kv_heads as usize);
        assert!((id as usize) < self.n_blocks, "block {id} of {}", self.n_blocks);
        assert!(layer < layers && head < heads, "layer {layer} of {layers}, KV head {head} of {heads}");
        let offset = self.geometry.stripe_offset(layer, value, head);
        // SAFETY: the offset lies inside the mapping, by the checks above.
        unsafe { self.memory.as_ptr().add(id as usize * self.block_bytes + offset) }
    }

    fn range(&self, id: BlockId, offset: usize, len: usize) -> *mut u8 {
        assert!((id as usize) < self.n_blocks, "block {id} of {}", self.n_blocks);
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.block_bytes), "{len} bytes at {offset} of {}", self.block_bytes);
        // SAFETY: inside the mapping, by the checks above.
        unsafe { self.memory.as_ptr().add(id as usize * self.block_bytes + offset) }
    }
}

impl BlockStore for KvSlab {
    fn geometry(&self) -> &KvGeometry {
        &self.geometry
    }

    fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    fn read(&self, id: BlockId, offset: usize, out: &mut [u8]) -> Result<()> {
        let from = self.range(id, offset, out.len());
        // SAFETY: the range was checked; `kv` never lets a block be written while another reads it; `out` is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    fn write(&self, id: BlockId, offset: usize, data: &[u8]) -> Result<()> {
        let to = self.range(id, offset, data.len());
        // SAFETY: the range was checked; `kv` gives a block being written a single owner; `data` is not in the slab.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
        Ok(())
    }

    fn copy(&self, from: BlockId, to: BlockId) -> Result<()> {
        let (source, target) = (self.range(from, 0, self.block_bytes), self.range(to, 0, self.block_bytes));
        // SAFETY: both ranges were checked, and `copy` allows source and target to be the same block.
        unsafe { std::ptr::copy(source, target, self.block_bytes) };
        Ok(())
    }

    fn source(&self, id: BlockId) -> Option<ByteSource<'_>> {
        // SAFETY: the range was checked, and it stays mapped as long as self lives.
        Some(unsafe { ByteSource::new(self.range(id, 0, self.block_bytes), self.block_bytes) })
    }

    fn target(&self, id: BlockId) -> Option<ByteTarget<'_>> {
        // SAFETY: the range was checked and stays mapped as long as self lives; `kv` gives the block a single owner.
        Some(unsafe { ByteTarget::new(self.range(id, 0, self.block_bytes), self.block_bytes) })
    }

    fn pool(&self) -> Option<&[AtomicU8]> {
        let len = self.n_blocks * self.block_bytes;
        // SAFETY: mapped for this length as long as self lives. The bytes are atomic, because others may write them.
        Some(unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast::<AtomicU8>(), len) })
    }

    fn share(&self) -> Result<PoolExport> {
        match &self.memory {
            Memory::Private(_) => bail!(Unsupported, "the pool's memory is not shared with other processes"),
            Memory::PoolExport(memory) => {
                Ok(PoolExport { fd: memory.descriptor()?, bytes: memory.len(), device: None })
            }
        }
    }

    fn populate(&self) -> Result<()> {
        match &self.memory {
            Memory::Private(_) => Ok(()),
            Memory::PoolExport(memory) => memory.populate(true),
        }
    }
}
