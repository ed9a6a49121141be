//! Brings weights to a device: from wherever they are mapped through two pinned buffers, one of which is filled while
//! the device copies from the other.

use super::depot::{Depot, Weight};
use super::device::Device;
use super::memory::PinnedMemory;
use super::stream::{Event, Stream};
use crate::backend::Progress;
use crate::error::Result;
use std::sync::Arc;

/// Of each buffer. Large enough that a copy's start costs nothing beside it.
const WORDS: usize = 4 << 20;
/// Copies from page cache to pinned memory take as many threads to keep up with the bus.
const THREADS: usize = 4;

/// One loading of weights.
pub struct Loader<'a> {
    depot: Depot,
    stream: Stream,
    halves: [Half; 2],
    next: usize,
    watched: Option<Watched<'a>>,
}

struct Watched<'a> {
    progress: &'a mut Progress<'a>,
    done: u64,
    total: u64,
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

impl<'a> Loader<'a> {
    pub fn new(device: &Arc<Device>) -> Result<Loader<'a>> {
        Self::into(Depot::Apart(device.clone()))
    }

    fn into(depot: Depot) -> Result<Loader<'a>> {
        let device = depot.device();
        Ok(Loader {
            stream: Stream::new(device)?,
            halves: [Half::new(device)?, Half::new(device)?],
            next: 0,
            watched: None,
            depot,
        })
    }

    /// One of `total` bytes into a depot, whose progress is told from none to all of them; once, if they are there.
    pub fn watched(depot: Depot, total: u64, progress: &'a mut Progress<'a>) -> Result<Loader<'a>> {
        if !depot.is_filled() {
            progress(0, total)?;
        }
        Ok(Loader { watched: Some(Watched { progress, done: 0, total }), ..Loader::into(depot)? })
    }

    pub(super) fn place(&mut self, bytes: usize) -> Result<Weight> {
        self.depot.place(bytes)
    }

    /// Whether all weights are there, and [`Loader::load`] has nothing to do.
    pub(super) fn is_filled(&self) -> bool {
        self.depot.is_filled()
    }

    /// Copies `bytes` to `offset` of `to`. They are there once [`Loader::finish`] has returned.
    pub(super) fn load(&mut self, to: &Weight, offset: usize, bytes: &[u8]) -> Result<()> {
        if self.is_filled() {
            return Ok(());
        }
        let (to, begin) = to.memory();
        let offset = begin + offset;
        for (i, piece) in bytes.chunks(WORDS * 4).enumerate() {
            let half = &mut self.halves[self.next];
            self.next = 1 - self.next;
            half.free.synchronize()?;
            copy(half.pinned.as_mut_bytes(), piece);
            half.pinned.send(piece.len(), to, offset + i * WORDS * 4, &self.stream)?;
            half.free.record(&self.stream)?;
            if let Some(watched) = &mut self.watched {
                watched.done += piece.len() as u64;
                if watched.done < watched.total {
                    (watched.progress)(watched.done, watched.total)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until everything is there.
    pub fn finish(self) -> Result<()> {
        self.stream.synchronize()?;
        self.depot.finish()?;
        self.watched.map_or(Ok(()), |watched| (watched.progress)(watched.total, watched.total))
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
