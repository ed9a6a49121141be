//! Copies between a device and whatever memory of the host, through two pinned buffers: one is filled or emptied by the
//! CPU while the device copies from or to the other.

use super::device::Device;
use super::memory::{DeviceMemory, PinnedMemory};
use super::stream::{Event, Stream};
use crate::error::Result;
use std::sync::Arc;

/// Of each buffer. Large enough that a copy's start costs little beside it.
const BYTES: usize = 4 << 20;

pub(super) struct Staging {
    device: Arc<Device>,
    /// Made when they are first used.
    halves: Option<[Half; 2]>,
}

struct Half {
    pinned: PinnedMemory,
    /// The device is done with it.
    free: Event,
}

impl Half {
    fn new(device: &Arc<Device>) -> Result<Half> {
        Ok(Half { pinned: PinnedMemory::new(device, BYTES / 4)?, free: Event::new(device)? })
    }
}

impl Staging {
    pub fn new(device: &Arc<Device>) -> Staging {
        Staging { device: device.clone(), halves: None }
    }

    fn halves(&mut self) -> Result<&mut [Half; 2]> {
        match self.halves.take() {
            Some(halves) => Ok(self.halves.insert(halves)),
            None => Ok(self.halves.insert([Half::new(&self.device)?, Half::new(&self.device)?])),
        }
    }

    /// Copies `data` to `offset` of `to`, in the order of `stream`, and waits for it.
    pub fn write(&mut self, to: &DeviceMemory, offset: usize, data: &[u8], stream: &Stream) -> Result<()> {
        let halves = self.halves()?;
        for (i, piece) in data.chunks(BYTES).enumerate() {
            let half = &mut halves[i % 2];
            half.free.synchronize()?;
            half.pinned.as_mut_bytes()[..piece.len()].copy_from_slice(piece);
            half.pinned.send(piece.len(), to, offset + i * BYTES, stream)?;
            half.free.record(stream)?;
        }
        stream.synchronize()
    }

    /// Copies `out.len()` bytes from `offset` of `from`, in the order of `stream`, and waits for them.
    pub fn read(&mut self, from: &DeviceMemory, offset: usize, out: &mut [u8], stream: &Stream) -> Result<()> {
        let halves = self.halves()?;
        let (total, pieces) = (out.len(), out.len().div_ceil(BYTES));
        for (i, out) in out.chunks_mut(BYTES).enumerate() {
            // The first piece is asked for here, each later one while the one before it is taken out.
            let ask = |half: &mut Half, i: usize, len: usize| -> Result<()> {
                half.pinned.receive(len, from, offset + i * BYTES, stream)?;
                half.free.record(stream)
            };
            if i == 0 {
                ask(&mut halves[0], 0, out.len())?;
            }
            if i + 1 < pieces {
                ask(&mut halves[(i + 1) % 2], i + 1, BYTES.min(total - (i + 1) * BYTES))?;
            }
            let half = &mut halves[i % 2];
            half.free.synchronize()?;
            out.copy_from_slice(&half.pinned.as_mut_bytes()[..out.len()]);
        }
        Ok(())
    }
}
