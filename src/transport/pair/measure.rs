//! The self-test of a pair: blocks with a known pattern are fetched, compared, and timed.

use crate::backend::{BlockId, DeviceMemory};
use crate::bail;
use crate::error::Result;
use crate::kv::Cache;
use crate::sys::bytes::{ByteSource as Bytes, ByteTarget, copy};
use crate::sys::shared_memory::SharedMemory;
use crate::transport::server::pattern;
use crate::transport::source::{Destination, TransferSource, Wanted};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Duration of a bandwidth measurement.
const MEASURE: Duration = Duration::from_millis(30);

/// Fetches `n` blocks of the self-test, compares them with the pattern, and measures the bandwidth in bytes per second.
pub(super) fn measure(
    source: &mut dyn TransferSource,
    room: &SelfTestBuffer,
    n: usize,
    seed: &[u8; 32],
    wanted: Wanted<'_>,
) -> Result<f64> {
    source.fetch(0..n, room, wanted)?;
    let mut block = vec![0; room.size];
    for index in 0..n {
        room.read(index, &mut block)?;
        if block != pattern(seed, index, room.size) {
            bail!(Corrupt, "self-test: block {index} of {n} came otherwise than it was sent");
        }
    }
    let (begun, mut bytes) = (Instant::now(), 0);
    while begun.elapsed() < MEASURE {
        source.fetch(0..n, room, wanted)?;
        bytes += n * room.size;
    }
    Ok(bytes as f64 / begun.elapsed().as_secs_f64())
}

/// Memory for the blocks of a self-test, of the same kind as the pool but not part of it.
pub(super) struct SelfTestBuffer {
    place: BufferPlace,
    size: usize,
}

enum BufferPlace {
    Host(SharedMemory),
    Device(Box<dyn DeviceMemory>),
}

impl SelfTestBuffer {
    pub fn new(cache: &Cache, n: usize, size: usize) -> Result<SelfTestBuffer> {
        let place = match cache.store().device_memory() {
            Some(pool) => BufferPlace::Device(pool.beside(n, size)?),
            None => {
                let memory = SharedMemory::create(n * size)?;
                memory.populate(true)?;
                BufferPlace::Host(memory)
            }
        };
        Ok(SelfTestBuffer { place, size })
    }

    fn read(&self, index: usize, out: &mut [u8]) -> Result<()> {
        match &self.place {
            BufferPlace::Host(memory) => memory.source().slice(index * self.size, self.size).read(out),
            BufferPlace::Device(pool) => pool.read(index as BlockId, 0, out)?,
        }
        Ok(())
    }
}

impl Destination for SelfTestBuffer {
    fn direct(&self, index: usize) -> Option<ByteTarget<'_>> {
        match &self.place {
            BufferPlace::Host(memory) => Some(memory.target(index * self.size, self.size)),
            BufferPlace::Device(_) => None,
        }
    }

    fn write_block(&self, index: usize, data: &[u8]) -> Result<()> {
        match &self.place {
            BufferPlace::Host(memory) => copy(Bytes::of(data), memory.target(index * self.size, self.size)),
            BufferPlace::Device(pool) => pool.write(index as BlockId, 0, data)?,
        }
        Ok(())
    }

    fn take_from_device(&self, pool: &dyn DeviceMemory, ids: &[BlockId], blocks: Range<usize>) -> Result<bool> {
        let BufferPlace::Device(own) = &self.place else { return Ok(false) };
        let to: Vec<BlockId> = blocks.clone().map(|index| index as BlockId).collect();
        own.copy_from(pool, &ids[blocks], &to)
    }

    fn count(&self, _: usize) {}
}
