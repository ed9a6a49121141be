//! KV blocks in a device's memory, of this process or of another: copies of them from and to the host, between pools,
//! and into other layouts.

use super::device::Device;
use super::driver::check;
use super::layout::KvLayout;
use super::memory::{DeviceMemory, PinnedMemory};
use super::peer::Readers;
use super::staging::Staging;
use super::stream::{Shape, Stream, arg};
use crate::backend::{BlockId, KvGeometry};
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;
use cudarc::driver::sys;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Of each pinned buffer.
const STAGED: usize = 4 << 20;
/// Threads of a block of the copying kernels, and words of 16 bytes that each takes.
const THREADS: u32 = 256;
const AHEAD: usize = 4;

/// Block after block in one piece of memory.
pub struct DevicePool {
    n_blocks: usize,
    block_bytes: usize,
    /// For copies within the pool: an engine's step waits for those, and so for nothing else.
    within: Stream,
    transfers: Mutex<Transfers>,
    readers: Readers,
    /// After the streams, which wait for their work as they go: unmapping memory does not.
    memory: DeviceMemory,
}

/// What copies from and to elsewhere need.
struct Transfers {
    stream: Stream,
    staging: Staging,
    /// Block ids on their way to the device, and there.
    ids: Option<(PinnedMemory, DeviceMemory)>,
    /// A block of the host's that is to be converted.
    landing: Option<DeviceMemory>,
}

/// Blocks of another layout, to be converted.
pub(crate) enum Foreign<'a> {
    /// Those of a pool on the same device, by the sequence's block table there.
    Pool(&'a DevicePool, &'a [BlockId]),
    /// One block of the sequence, by its index, in host memory.
    Host(usize, &'a [u8]),
}

impl DevicePool {
    /// Zeroes. `shared`: other processes can be given it to read, where the device can do that.
    pub fn new(device: &Arc<Device>, n_blocks: usize, block_bytes: usize, shared: bool) -> Result<DevicePool> {
        let total = block_bytes.checked_mul(n_blocks).filter(|total| *total <= isize::MAX as usize);
        let total = total.ok_or_else(|| crate::error!(OutOfMemory, "KV pool of {n_blocks} blocks"))?;
        let memory = if shared { DeviceMemory::shareable(device, total) } else { DeviceMemory::new(device, total) };
        let memory = memory.map_err(|e| e.context(format!("KV pool of {n_blocks} blocks")))?;
        let pool = Self::of(memory, n_blocks, block_bytes)?;
        pool.memory.clear(&pool.within)?;
        Ok(pool)
    }

    /// StepBuffers for other blocks on the same device.
    pub fn beside(&self, n_blocks: usize, block_bytes: usize) -> Result<DevicePool> {
        Self::new(self.memory.device(), n_blocks, block_bytes, false)
    }

    /// Another process's pool, read-only: what [`DevicePool::descriptor`] gave there, on the device of that UUID.
    pub fn open(fd: OwnedFd, bytes: usize, uuid: &[u8; 16], block_bytes: usize) -> Result<DevicePool> {
        let device = Device::of_uuid(uuid)?;
        Self::of(DeviceMemory::open(&device, fd, bytes)?, bytes / block_bytes.max(1), block_bytes)
    }

    fn of(memory: DeviceMemory, n_blocks: usize, block_bytes: usize) -> Result<DevicePool> {
        let device = memory.device();
        let (stream, staging) = (Stream::new(device)?, Staging::new(device, STAGED, 1));
        let transfers = Mutex::new(Transfers { stream, staging, ids: None, landing: None });
        let within = Stream::new(device)?;
        Ok(DevicePool { n_blocks, block_bytes, within, transfers, readers: Readers::default(), memory })
    }

    fn transfers(&self) -> MutexGuard<'_, Transfers> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    pub fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    /// What another process needs to map it: a descriptor, the bytes, the device. UNSUPPORTED if it cannot.
    pub fn descriptor(&self) -> Result<(OwnedFd, usize, [u8; 16])> {
        let (fd, bytes) = self.memory.descriptor()?;
        Ok((fd, bytes, self.memory.device().uuid()?))
    }

    fn offset(&self, id: BlockId, offset: usize, len: usize) -> usize {
        assert!((id as usize) < self.n_blocks, "block {id} of {}", self.n_blocks);
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.block_bytes), "{len} bytes at {offset} of {}", self.block_bytes);
        id as usize * self.block_bytes + offset
    }

    /// Copies `out.len()` bytes of block `id` from `offset` to the host. Panics out of range.
    pub fn read(&self, id: BlockId, offset: usize, out: &mut [u8]) -> Result<()> {
        let at = self.offset(id, offset, out.len());
        let Transfers { stream, staging, .. } = &mut *self.transfers();
        staging.read(&self.memory, at, out, stream)
    }

    /// Overwrites bytes of block `id` from `offset`. Panics out of range.
    pub fn write(&self, id: BlockId, offset: usize, data: &[u8]) -> Result<()> {
        let at = self.offset(id, offset, data.len());
        let Transfers { stream, staging, .. } = &mut *self.transfers();
        staging.write(&self.memory, at, data, stream)
    }

    /// Copies a block within the pool. Panics out of range.
    pub fn copy(&self, from: BlockId, to: BlockId) -> Result<()> {
        let (source, target) = (self.offset(from, 0, self.block_bytes), self.offset(to, 0, self.block_bytes));
        if source == target {
            return Ok(());
        }
        self.memory.copy(source, target, self.block_bytes, &self.within)
    }

    /// Are `blocks` all of this pool? Another process's numbers are not believed.
    fn check(&self, blocks: &[BlockId]) -> Result<()> {
        match blocks.iter().find(|id| **id as usize >= self.n_blocks) {
            Some(id) => bail!(Corrupt, "block {id} lies outside of its pool of {}", self.n_blocks),
            None => Ok(()),
        }
    }

    /// Blocks `from` of another pool become blocks `to` of this one, on the devices, and waits for it.
    pub fn copy_from(&self, other: &DevicePool, from: &[BlockId], to: &[BlockId]) -> Result<()> {
        assert_eq!((self.block_bytes, from.len()), (other.block_bytes, to.len()));
        other.check(from)?;
        self.check(to)?;
        if from.is_empty() {
            return Ok(());
        }
        if self.is_beside(other) { self.copy_beside(other, from, to) } else { self.copy_across(other, from, to) }
    }

    pub(crate) fn is_beside(&self, other: &DevicePool) -> bool {
        Arc::ptr_eq(self.memory.device(), other.memory.device())
    }

    /// One kernel for all of them: as many copies by the driver would cost more to start than to do.
    fn copy_beside(&self, other: &DevicePool, from: &[BlockId], to: &[BlockId]) -> Result<()> {
        let device = self.memory.device();
        device.load_kernels()?;
        let transfers = &mut *self.transfers();
        let ids = transfers.send_ids(device, &[to, from])?;
        let (to_ids, from_ids) = (ids, ids + 4 * to.len() as u64);
        let (block_bytes, count) = (self.block_bytes as u64, from.len() as u32);
        let across = Shape::over(self.block_bytes.div_ceil(16 * AHEAD), THREADS).grid[0];
        // Enough blocks to fill the device; each goes on until its share is done.
        let most = device.multiprocessors * 8;
        let shape = Shape {
            grid: [across.min(most), count.min(most.div_ceil(across.min(most))), 1],
            threads: THREADS,
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

    /// Between devices: over NVLink or PCIe where the target reaches the source, else the driver goes through the host.
    fn copy_across(&self, other: &DevicePool, from: &[BlockId], to: &[BlockId]) -> Result<()> {
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

    /// Tokens of a sequence, from blocks of the layout `from` into blocks `table` of this pool, whose layout is `to`. No
    /// other token is written. False, and nothing done, if they lie on another device.
    pub(crate) fn convert(
        &self,
        from: &KvGeometry,
        to: &KvGeometry,
        blocks: &Foreign<'_>,
        table: &[BlockId],
        tokens: Range<u32>,
    ) -> Result<bool> {
        let device = self.memory.device();
        device.load_kernels()?;
        let covered = |tokens: u32, geometry: &KvGeometry| tokens.div_ceil(geometry.block_tokens) as usize;
        let table = &table[..covered(tokens.end, to)];
        self.check(table)?;
        let transfers = &mut *self.transfers();
        let zeros;
        let (source, ids) = match blocks {
            Foreign::Pool(other, _) if !self.is_beside(other) => return Ok(false),
            Foreign::Pool(other, ids) => {
                let ids = &ids[..covered(tokens.end, from)];
                other.check(ids)?;
                (other.address(), ids)
            }
            Foreign::Host(index, block) => {
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
        let across = (tokens.len() as u32 * lanes).div_ceil(128).clamp(1, 64);
        let stripes = (2 * from.layers * from.kv_heads).min(65535);
        transfers.stream.launch(
            &kernel,
            Shape { grid: [across, stripes, 1], threads: 128, shared: 0 },
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

fn name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
        Dtype::I8 => "int8",
    }
}

impl Transfers {
    /// Brings lists of block ids to the device, one after the other, in the order of the stream. Nothing that used those
    /// sent before is under way.
    fn send_ids(&mut self, device: &Arc<Device>, lists: &[&[BlockId]]) -> Result<u64> {
        let n: usize = lists.iter().map(|list| list.len()).sum();
        let (pinned, there) = match self.ids.take() {
            Some(ids) if ids.0.words() >= n => self.ids.insert(ids),
            _ => {
                let room = n.next_power_of_two().max(1024);
                self.ids.insert((PinnedMemory::new(device, room)?, DeviceMemory::new(device, room * 4)?))
            }
        };
        let mut words = pinned.as_mut_slice();
        for list in lists {
            let (own, rest) = words.split_at_mut(list.len());
            own.copy_from_slice(list);
            words = rest;
        }
        pinned.send(n * 4, there, 0, &self.stream)?;
        Ok(there.address())
    }

    /// Brings a block of the host's to the device. Nothing that used the one before is under way.
    fn land(&mut self, device: &Arc<Device>, block: &[u8]) -> Result<u64> {
        let there = match self.landing.take() {
            Some(memory) if memory.bytes() >= block.len() => self.landing.insert(memory),
            _ => self.landing.insert(DeviceMemory::new(device, block.len())?),
        };
        self.staging.write(there, 0, block, &self.stream)?;
        Ok(there.address())
    }
}
