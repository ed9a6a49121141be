//! Copies mapped weights to a device and reports progress.

use super::depot::{Depot, Weight};
use super::device::Device;
use super::staging::Staging;
use super::stream::Stream;
use crate::backend::Progress;
use crate::error::Result;
use std::sync::Arc;

/// Size of each pinned buffer.
const STAGED: usize = 16 << 20;
const THREADS: usize = 4;

/// One load of a model's weights.
pub struct Loader<'a> {
    /// Declared first: its drop waits for copies in progress, unmapping their memory does not.
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
    /// A loader that allocates each matrix and vector by itself on `device`, and shares none with other processes.
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

    /// A load of `total` bytes into a depot. `progress` is called from 0 to `total`, or once if the weights are there already.
    pub fn watched(depot: Depot, total: u64, progress: &'a mut Progress<'a>) -> Result<Loader<'a>> {
        if !depot.is_filled() {
            progress(0, total)?;
        }
        Ok(Loader { watched: Some(Watched { progress, done: 0, total }), ..Loader::into(depot)? })
    }

    pub(super) fn place(&mut self, bytes: usize) -> Result<Weight> {
        self.depot.place(bytes)
    }

    /// True if all weights are there already and [`Loader::load`] has nothing to do.
    pub(super) fn is_filled(&self) -> bool {
        self.depot.is_filled()
    }

    /// Starts to copy `bytes` to `offset` of `to`; [`Loader::finish`] waits for it.
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

    /// Waits for all copies.
    pub fn finish(self) -> Result<()> {
        self.stream.synchronize()?;
        self.depot.finish()?;
        self.watched.map_or(Ok(()), |watched| (watched.progress)(watched.total, watched.total))
    }
}
