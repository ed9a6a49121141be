//! Brings weights to a device, from wherever they are mapped, and tells how far it is.

use super::depot::{Depot, Weight};
use super::device::Device;
use super::staging::Staging;
use super::stream::Stream;
use crate::backend::Progress;
use crate::error::Result;
use std::sync::Arc;

/// Of each pinned buffer.
const STAGED: usize = 16 << 20;
const THREADS: usize = 4;

/// One loading of weights.
pub struct Loader<'a> {
    /// First: what is under way is waited for before its memory goes, which unmapping does not.
    stream: Stream,
    staging: Staging,
    depot: Depot,
    watched: Option<Watched<'a>>,
}

struct Watched<'a> {
    progress: &'a mut Progress<'a>,
    done: u64,
    total: u64,
}

impl<'a> Loader<'a> {
    pub fn new(device: &Arc<Device>) -> Result<Loader<'a>> {
        Self::into(Depot::Apart(device.clone()))
    }

    fn into(depot: Depot) -> Result<Loader<'a>> {
        let device = depot.device();
        Ok(Loader {
            stream: Stream::new(device)?,
            staging: Staging::new(device, STAGED, THREADS),
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
        let Loader { stream, staging, watched, .. } = self;
        staging.send(to, begin + offset, bytes, stream, |piece| {
            let Some(watched) = watched else { return Ok(()) };
            watched.done += piece as u64;
            if watched.done < watched.total { (watched.progress)(watched.done, watched.total) } else { Ok(()) }
        })
    }

    /// Waits until everything is there.
    pub fn finish(self) -> Result<()> {
        self.stream.synchronize()?;
        self.depot.finish()?;
        self.watched.map_or(Ok(()), |watched| (watched.progress)(watched.total, watched.total))
    }
}
