//! Brings weights to a device: from wherever they are mapped through two pinned buffers, one of which is filled while
//! the device copies from the other.

use super::device::Device;
use super::memory::{DeviceMemory, PinnedMemory};
use super::stream::{Event, Stream};
use crate::error::Result;
use std::sync::Arc;

/// Of each buffer. Large enough that a copy's start costs nothing beside it.
const WORDS: usize = 4 << 20;
/// Copies from page cache to pinned memory take as many threads to keep up with the bus.
const THREADS: usize = 4;

/// One loading of weights.
pub struct Loader {
    device: Arc<Device>,
    stream: Stream,
    halves: [Half; 2],
    next: usize,
}

struct Half {
    pinned: PinnedMemory,
    /// The device has copied what was in it.
    free: Event,
}

impl Half {
    fn new(device: &Arc<Device>) -> Result<Half> {
        Ok(Half { pinned: PinnedMemory::new(device, WORDS)?, free: Event::new(device)? })
    }
}

impl Loader {
    pub fn new(device: &Arc<Device>) -> Result<Loader> {
        Ok(Loader {
            stream: Stream::new(device)?,
            halves: [Half::new(device)?, Half::new(device)?],
            next: 0,
            device: device.clone(),
        })
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Copies `bytes` to `offset` of `to`. They are there once [`Loader::finish`] has returned.
    pub(super) fn load(&mut self, to: &DeviceMemory, offset: usize, bytes: &[u8]) -> Result<()> {
        for (i, piece) in bytes.chunks(WORDS * 4).enumerate() {
            let half = &mut self.halves[self.next];
            self.next = 1 - self.next;
            half.free.synchronize()?;
            copy(half.pinned.as_mut_bytes(), piece);
            half.pinned.send(piece.len(), to, offset + i * WORDS * 4, &self.stream)?;
            half.free.record(&self.stream)?;
        }
        Ok(())
    }

    /// Waits until everything is there.
    pub fn finish(self) -> Result<()> {
        self.stream.synchronize()
    }
}

/// Touches pages that are still on disk, so it may take its time.
fn copy(to: &mut [u8], from: &[u8]) {
    let to = &mut to[..from.len()];
    if from.len() < 1 << 20 {
        return to.copy_from_slice(from);
    }
    let part = from.len().div_ceil(THREADS);
    std::thread::scope(|scope| {
        for (to, from) in to.chunks_mut(part).zip(from.chunks(part)) {
            scope.spawn(move || to.copy_from_slice(from));
        }
    });
}
