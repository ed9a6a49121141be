//! A peer's pool mapped into this process: host memory, or memory of a CUDA device.

use crate::backend::{BlockId, DeviceMemory, PoolExport, devices};
use crate::error::{Error, Result, Status};
use crate::sys::bytes::copy;
use crate::sys::shared_memory::SharedMemory;
use crate::transport::source::{Destination, Transport};
use std::ops::Range;

/// Bytes that are copied on a device at a time, before the transfer is checked for being wanted. Large enough that starting a
/// copy costs nothing.
const PIECE: usize = 512 << 20;

/// A peer's pool, mapped read-only.
pub(in crate::transport) struct Mapped {
    memory: Memory,
    pub block_bytes: usize,
}

enum Memory {
    Host(SharedMemory),
    Device(Box<dyn DeviceMemory>),
}

impl Mapped {
    pub fn open(shared: PoolExport, block_bytes: usize) -> Result<Mapped> {
        let memory = match shared.device {
            None => Memory::Host(SharedMemory::open(shared.fd, shared.bytes)?),
            Some(uuid) => Memory::Device(devices::open_memory(shared, &uuid, block_bytes).map_err(not_from_here)?),
        };
        Ok(Mapped { memory, block_bytes })
    }

    pub fn transport(&self) -> Transport {
        match self.memory {
            Memory::Host(_) => Transport::SharedMemory,
            Memory::Device(_) => Transport::DeviceMemory,
        }
    }

    /// Takes the page faults of the mapping now rather than in the first transfer.
    pub fn populate(&self) -> Result<()> {
        match &self.memory {
            Memory::Host(memory) => memory.populate(false),
            Memory::Device(_) => Ok(()),
        }
    }

    /// Copies the sequence's blocks of this range; `ids` has the peer's numbers of all its blocks. `between` is called
    /// before each piece and may end the copy.
    pub fn fetch(
        &self,
        ids: &[BlockId],
        blocks: Range<usize>,
        into: &dyn Destination,
        between: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut scratch = Vec::new();
        match &self.memory {
            Memory::Host(memory) => {
                for index in blocks {
                    between()?;
                    self.block_of(memory, ids[index], index, into, &mut scratch)?;
                }
            }
            Memory::Device(pool) => {
                let at_once = (PIECE / self.block_bytes.max(1)).max(1);
                for first in blocks.clone().step_by(at_once) {
                    between()?;
                    let piece = first..blocks.end.min(first + at_once);
                    if into.take_from_device(&**pool, ids, piece.clone()).map_err(of_peer)? {
                        continue;
                    }
                    for index in piece {
                        between()?;
                        if ids[index] as usize >= pool.n_blocks() {
                            return Err(outside(ids[index]));
                        }
                        scratch.resize(self.block_bytes, 0);
                        pool.read(ids[index], 0, &mut scratch)?;
                        into.write_block(index, &scratch)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn block_of(
        &self,
        memory: &SharedMemory,
        id: BlockId,
        index: usize,
        into: &dyn Destination,
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let pool = memory.source();
        let begin = id as usize * self.block_bytes;
        if begin.checked_add(self.block_bytes).is_none_or(|end| end > pool.len()) {
            return Err(outside(id));
        }
        let source = pool.slice(begin, self.block_bytes);
        match into.direct(index) {
            Some(target) => {
                copy(source, target);
                into.count(self.block_bytes);
            }
            None => {
                scratch.resize(self.block_bytes, 0);
                source.read(scratch);
                into.write_block(index, scratch)?;
            }
        }
        Ok(())
    }
}

/// Marks a failure to map device memory as one after which another transport may work: the device may not be visible to
/// this process, or there may be no driver.
fn not_from_here(error: Error) -> Error {
    match error.status {
        Status::OutOfMemory => error,
        _ => Error::new(Status::Unsupported, error.message),
    }
}

fn of_peer(error: Error) -> Error {
    error.context("the peer's pool")
}

fn outside(id: BlockId) -> Error {
    crate::error!(Corrupt, "the peer: block {id} lies outside of its pool")
}
