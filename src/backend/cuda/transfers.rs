//! The stream and the buffers through which a pool's blocks move.

use super::device::Device;
use super::memory::{Allocation, PinnedMemory};
use super::staging::Staging;
use super::stream::Stream;
use crate::backend::BlockId;
use crate::error::Result;
use std::sync::Arc;

/// Size of each pinned buffer.
const STAGED: usize = 4 << 20;

/// Everything that one copy into or out of a pool needs. Copies of a pool run one at a time.
pub(super) struct Transfers {
    pub stream: Stream,
    pub staging: Staging,
    /// Block ids, on the host and on the device.
    ids: Option<(PinnedMemory, Allocation)>,
    /// A block from the host that is to be converted.
    landing: Option<Allocation>,
}

impl Transfers {
    pub fn new(device: &Arc<Device>) -> Result<Transfers> {
        Ok(Transfers {
            stream: Stream::new(device)?,
            staging: Staging::new(device, STAGED, 1),
            ids: None,
            landing: None,
        })
    }

    /// Sends lists of block ids to the device, one after the other, in stream order. Work that used earlier ones must be
    /// over.
    pub fn send_ids(&mut self, device: &Arc<Device>, lists: &[&[BlockId]]) -> Result<u64> {
        let n: usize = lists.iter().map(|list| list.len()).sum();
        let (pinned, there) = match self.ids.take() {
            Some(ids) if ids.0.words() >= n => self.ids.insert(ids),
            _ => {
                let room = n.next_power_of_two().max(1024);
                self.ids.insert((PinnedMemory::new(device, room)?, Allocation::new(device, room * 4)?))
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

    /// Copies a block from the host to the device. Work that used the one before must be over.
    pub fn land(&mut self, device: &Arc<Device>, block: &[u8]) -> Result<u64> {
        let there = match self.landing.take() {
            Some(memory) if memory.bytes() >= block.len() => self.landing.insert(memory),
            _ => self.landing.insert(Allocation::new(device, block.len())?),
        };
        self.staging.write(there, 0, block, &self.stream)?;
        Ok(there.address())
    }
}
