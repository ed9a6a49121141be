//! Copies between a device and ordinary host memory through two pinned buffers: the CPU fills or empties one while the
//! device copies from or to the other.

use super::device::Device;
use super::memory::{Allocation, PinnedMemory};
use super::stream::{Event, Stream};
use crate::error::Result;
use std::sync::Arc;

/// Bytes below which a second thread is not worth starting.
const SMALL: usize = 1 << 20;

pub(super) struct Staging {
    device: Arc<Device>,
    /// Size of each buffer.
    bytes: usize,
    /// Threads that fill a buffer.
    threads: usize,
    /// Allocated at first use.
    halves: Option<[Half; 2]>,
    /// Index of the buffer to fill next.
    next: usize,
}

struct Half {
    pinned: PinnedMemory,
    /// Recorded behind the device's last copy from or to the buffer.
    free: Event,
}

impl Half {
    fn new(device: &Arc<Device>, bytes: usize) -> Result<Half> {
        Ok(Half { pinned: PinnedMemory::new(device, bytes / 4)?, free: Event::new(device)? })
    }
}

impl Staging {
    /// `bytes` is the size of a buffer, large enough to make the start of a copy cheap in comparison. `threads` fill it: one
    /// thread reading the page cache is slower than the bus.
    pub fn new(device: &Arc<Device>, bytes: usize, threads: usize) -> Staging {
        Staging { device: device.clone(), bytes, threads, halves: None, next: 0 }
    }

    fn halves(&mut self) -> Result<&mut [Half; 2]> {
        match self.halves.take() {
            Some(halves) => Ok(self.halves.insert(halves)),
            None => {
                Ok(self.halves.insert([Half::new(&self.device, self.bytes)?, Half::new(&self.device, self.bytes)?]))
            }
        }
    }

    /// Copies `data` to `offset` of `to` in stream order, without waiting for the device; `data` is no longer needed when this
    /// returns. `each` is called with the bytes of every piece.
    pub fn send(
        &mut self,
        to: &Allocation,
        offset: usize,
        data: &[u8],
        stream: &Stream,
        mut each: impl FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let (bytes, threads) = (self.bytes, self.threads);
        for (i, piece) in data.chunks(bytes).enumerate() {
            let next = self.next;
            self.next = 1 - next;
            let half = &mut self.halves()?[next];
            half.free.synchronize()?;
            copy(half.pinned.as_mut_bytes(), piece, threads);
            half.pinned.send(piece.len(), to, offset + i * bytes, stream)?;
            half.free.record(stream)?;
            each(piece.len())?;
        }
        Ok(())
    }

    /// Copies `data` to `offset` of `to`, and waits.
    pub fn write(&mut self, to: &Allocation, offset: usize, data: &[u8], stream: &Stream) -> Result<()> {
        self.send(to, offset, data, stream, |_| Ok(()))?;
        stream.synchronize()
    }

    /// Copies `out.len()` bytes from `offset` of `from` in stream order, and waits. No earlier copy may be in progress.
    pub fn read(&mut self, from: &Allocation, offset: usize, out: &mut [u8], stream: &Stream) -> Result<()> {
        let bytes = self.bytes;
        let halves = self.halves()?;
        let (total, pieces) = (out.len(), out.len().div_ceil(bytes));
        for (i, out) in out.chunks_mut(bytes).enumerate() {
            // The first piece is asked for here, each later one while the one before it is taken out.
            let ask = |half: &mut Half, i: usize, len: usize| -> Result<()> {
                half.pinned.receive(0, len, from, offset + i * bytes, stream)?;
                half.free.record(stream)
            };
            if i == 0 {
                ask(&mut halves[0], 0, out.len())?;
            }
            if i + 1 < pieces {
                ask(&mut halves[(i + 1) % 2], i + 1, bytes.min(total - (i + 1) * bytes))?;
            }
            let half = &mut halves[i % 2];
            half.free.synchronize()?;
            out.copy_from_slice(&half.pinned.as_mut_bytes()[..out.len()]);
        }
        Ok(())
    }
}

/// Copies from memory whose pages may still be on disk, so this can take long.
fn copy(to: &mut [u8], from: &[u8], threads: usize) {
    let to = &mut to[..from.len()];
    if from.len() < SMALL || threads < 2 {
        return to.copy_from_slice(from);
    }
    let part = from.len().div_ceil(threads);
    std::thread::scope(|scope| {
        for (to, from) in to.chunks_mut(part).zip(from.chunks(part)) {
            scope.spawn(move || to.copy_from_slice(from));
        }
    });
}
