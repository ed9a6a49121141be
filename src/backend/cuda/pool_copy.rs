//! Copies and conversions of KV blocks between pools, without the host.

use super::driver::check;
use super::layout::KvLayout;
use super::pool::CudaPool;
use super::stream::{Shape, arg};
use crate::backend::{BlockId, ForeignBlocks, KvGeometry};
use crate::error::Result;
use crate::tensor::Dtype;
use cleave_kernels::shapes::{KV_CONVERT_THREADS, KV_COPY_AHEAD, KV_COPY_THREADS};
use cudarc::driver::sys;
use std::ops::Range;
use std::sync::Arc;

impl CudaPool {
    /// Copies blocks `from` of another pool into blocks `to` of this one, and waits.
    pub(super) fn copy_blocks(&self, other: &CudaPool, from: &[BlockId], to: &[BlockId]) -> Result<()> {
        assert_eq!((self.block_bytes, from.len()), (other.block_bytes, to.len()));
        other.check(from)?;
        self.check(to)?;
        if from.is_empty() {
            return Ok(());
        }
        if self.is_beside(other) { self.copy_beside(other, from, to) } else { self.copy_across(other, from, to) }
    }

    fn is_beside(&self, other: &CudaPool) -> bool {
        Arc::ptr_eq(self.memory.device(), other.memory.device())
    }

    /// Copies on one device, by a single kernel: one driver call per block would take longer to start than to run.
    fn copy_beside(&self, other: &CudaPool, from: &[BlockId], to: &[BlockId]) -> Result<()> {
        let device = self.memory.device();
        device.load_kernels()?;
        let transfers = &mut *self.transfers();
        let ids = transfers.send_ids(device, &[to, from])?;
        let (to_ids, from_ids) = (ids, ids + 4 * to.len() as u64);
        let (block_bytes, count) = (self.block_bytes as u64, from.len() as u32);
        let across = Shape::over(self.block_bytes.div_ceil(16 * KV_COPY_AHEAD as usize), KV_COPY_THREADS).grid[0];
        // Enough blocks to fill the device; each goes on until its share is done.
        let most = device.multiprocessors * 8;
        let shape = Shape {
            grid: [across.min(most), count.min(most.div_ceil(across.min(most))), 1],
            threads: KV_COPY_THREADS,
            shared: 0,
        };
        transfers.stream.launch(
            "kv_copy",
            shape,
            &mut [
                arg(&self.address()),
                arg(&to_ids),
                arg(&other.address()),
                arg(&from_ids),
                arg(&block_bytes),
                arg(&count),
            ],
        )?;
        transfers.stream.synchronize()
    }

    /// Copies between devices: over NVLink or PCIe where the target can reach the source; otherwise the driver goes through
    /// the host.
    fn copy_across(&self, other: &CudaPool, from: &[BlockId], to: &[BlockId]) -> Result<()> {
        let transfers = &*self.transfers();
        let (target, source) = (self.memory.device(), other.memory.device());
        let direct = other.readers.reach(&other.memory, target);
        let _current = target.enter()?;
        let doing = || format!("copy KV from CUDA device {} to {}", source.ordinal(), target.ordinal());
        for (from, to) in from.iter().zip(to) {
            let from = other.memory.at(other.offset(*from, 0, self.block_bytes), self.block_bytes);
            let to = self.memory.at(self.offset(*to, 0, self.block_bytes), self.block_bytes);
            let (bytes, stream) = (self.block_bytes, transfers.stream.raw());
            // SAFETY: both in range, in the memory of these contexts, which live as long as the pools.
            let result = unsafe {
                match direct {
                    true => sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream),
                    false => sys::cuMemcpyPeerAsync(to, target.context(), from, source.context(), bytes, stream),
                }
            };
            check(result, &doing())?;
        }
        transfers.stream.synchronize()
    }

    /// See [`DeviceMemory::convert`](crate::backend::DeviceMemory::convert).
    pub(super) fn convert_blocks(
        &self,
        from: &KvGeometry,
        to: &KvGeometry,
        blocks: &ForeignBlocks<'_>,
        table: &[BlockId],
        tokens: Range<u32>,
    ) -> Result<bool> {
        let device = self.memory.device();
        device.load_kernels()?;
        let covered = |tokens: u32, geometry: &KvGeometry| tokens.div_ceil(geometry.block_tokens) as usize;
        let table = &table[..covered(tokens.end, to)];
        self.check(table)?;
        let zeros;
        let transfers = &mut *self.transfers();
        let (source, ids) = match blocks {
            ForeignBlocks::Device(other, ids) => {
                let Some(other) = other.as_any().downcast_ref::<CudaPool>().filter(|other| self.is_beside(other))
                else {
                    return Ok(false);
                };
                let ids = &ids[..covered(tokens.end, from)];
                other.check(ids)?;
                (other.address(), ids)
            }
            ForeignBlocks::Host(index, block) => {
                zeros = vec![0; index + 1];
                (transfers.land(device, block)?, &zeros[..])
            }
        };
        let n_ids = ids.len();
        let ids = transfers.send_ids(device, &[ids, table])?;
        let to_table = ids + 4 * n_ids as u64;
        let kernel = format!("kv_convert_{}_{}", name(from.dtype), name(to.dtype));
        let (from_layout, to_layout) = (KvLayout::of_single(from)?, KvLayout::of(to)?);
        let lanes = (from.head_dim.div_ceil(4)).next_power_of_two().min(32);
        let across = (tokens.len() as u32 * lanes).div_ceil(KV_CONVERT_THREADS).clamp(1, 64);
        let stripes = (2 * from.layers * from.kv_heads).min(65535);
        transfers.stream.launch(
            &kernel,
            Shape { grid: [across, stripes, 1], threads: KV_CONVERT_THREADS, shared: 0 },
            &mut [
                arg(&source),
                arg(&ids),
                arg(&from_layout),
                arg(&self.address()),
                arg(&to_table),
                arg(&to_layout),
                arg(&tokens.start),
                arg(&tokens.end),
            ],
        )?;
        transfers.stream.synchronize()?;
        Ok(true)
    }
}

/// The type's name in the names of kernels.
fn name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
        Dtype::I8 => "int8",
    }
}
