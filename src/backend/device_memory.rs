//! KV blocks in a device's memory, for whoever moves them without knowing what kind of device it is.

use super::{BlockId, KvGeometry};
use crate::error::Result;
use std::any::Any;
use std::ops::Range;

/// KV blocks in the memory of a device, one after the other: a cache's own pool, a peer's pool mapped read-only, or a
/// buffer beside a pool.
pub trait DeviceMemory: Send + Sync {
    /// Lets an implementation recognise memory of its own kind of device.
    fn as_any(&self) -> &dyn Any;

    /// Number of blocks.
    fn n_blocks(&self) -> usize;

    /// Allocates zeroed memory for other blocks on the same device.
    fn beside(&self, n_blocks: usize, block_bytes: usize) -> Result<Box<dyn DeviceMemory>>;

    /// Copies `out.len()` bytes of block `id`, from `offset` on, to the host. Panics out of range.
    fn read(&self, id: BlockId, offset: usize, out: &mut [u8]) -> Result<()>;

    /// Overwrites bytes of block `id` from `offset` on. Panics out of range.
    fn write(&self, id: BlockId, offset: usize, data: &[u8]) -> Result<()>;

    /// Copies blocks `from` of `source` into blocks `to` of this memory and waits for the copies. Returns false, having
    /// done nothing, if no path between the two devices bypasses the host. CORRUPT if `source` has no such blocks.
    fn copy_from(&self, source: &dyn DeviceMemory, from: &[BlockId], to: &[BlockId]) -> Result<bool>;

    /// Converts `tokens` of a sequence from `source`, laid out as `from`, into blocks `table` of this memory, laid out as
    /// `to`, and waits. No other token is written. Returns false, having done nothing, if `source` is on another device.
    fn convert(
        &self,
        from: &KvGeometry,
        to: &KvGeometry,
        source: &ForeignBlocks<'_>,
        table: &[BlockId],
        tokens: Range<u32>,
    ) -> Result<bool>;
}

/// Blocks of another layout, to be converted.
pub enum ForeignBlocks<'a> {
    /// The sequence's block table in another device's or pool's memory.
    Device(&'a dyn DeviceMemory, &'a [BlockId]),
    /// One block of the sequence, by its index in the sequence, in host memory.
    Host(usize, &'a [u8]),
}
