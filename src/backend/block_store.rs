//! The memory of a KV pool.

use super::{BlockId, DeviceMemory, KvGeometry};
use crate::bail;
use crate::error::Result;
use crate::sys::bytes::{ByteSource, ByteTarget};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU8;

/// The memory of a KV pool. `kv` decides who may touch which block: a block is written by its one owner and read
/// afterwards by those it was shared with, so the store itself needs no lock.
pub trait BlockStore: Send + Sync {
    /// Layout of the blocks.
    fn geometry(&self) -> &KvGeometry;
    /// Number of blocks.
    fn n_blocks(&self) -> usize;
    /// Copies `out.len()` bytes of block `id`, from `offset` on. Panics out of range; fails if the device does.
    fn read(&self, id: BlockId, offset: usize, out: &mut [u8]) -> Result<()>;
    /// Overwrites bytes of block `id` from `offset` on. Panics out of range; fails if the device does.
    fn write(&self, id: BlockId, offset: usize, data: &[u8]) -> Result<()>;
    /// Copies a whole block. Fails if the device does.
    fn copy(&self, from: BlockId, to: BlockId) -> Result<()>;

    /// The block itself, where it lies in host memory. Panics out of range.
    fn source(&self, _id: BlockId) -> Option<ByteSource<'_>> {
        None
    }

    /// The block itself, where it lies in host memory, to be written by its one owner. Panics out of range.
    fn target(&self, _id: BlockId) -> Option<ByteTarget<'_>> {
        None
    }

    /// The whole pool, block after block, where it is host memory: for hardware that accesses it beside the CPU.
    fn pool(&self) -> Option<&[AtomicU8]> {
        None
    }

    /// The pool's memory where it lies on a device: for copies that bypass the host.
    fn device_memory(&self) -> Option<&dyn DeviceMemory> {
        None
    }

    /// A description from which another process of this machine can map the pool read-only. UNSUPPORTED if it cannot.
    fn share(&self) -> Result<PoolExport> {
        bail!(Unsupported, "the pool's memory cannot be shared with other processes")
    }

    /// Takes the page faults of the pool's memory now rather than in the first transfer.
    fn populate(&self) -> Result<()> {
        Ok(())
    }
}

/// A pool's memory, block after block, for another process to map.
pub struct PoolExport {
    /// Descriptor of the memory.
    pub fd: OwnedFd,
    /// Size in bytes.
    pub bytes: usize,
    /// UUID of the device whose memory it is; None for host memory.
    pub device: Option<[u8; 16]>,
}
