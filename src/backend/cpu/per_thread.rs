//! Working memory of the threads of a pool.

use crate::error::Result;
use std::cell::UnsafeCell;

/// One `T` for each thread of a pool, kept between regions.
pub(super) struct PerThread<T>(Vec<UnsafeCell<T>>);

// SAFETY: `get` is the only shared access, and its contract gives each entry to one thread.
unsafe impl<T: Send> Sync for PerThread<T> {}

impl<T> Default for PerThread<T> {
    fn default() -> Self {
        PerThread(Vec::new())
    }
}

impl<T: Default> PerThread<T> {
    /// Creates entries for `threads` threads, and calls `prepare` on each.
    pub fn prepare(&mut self, threads: usize, prepare: impl Fn(&mut T) -> Result<()>) -> Result<()> {
        self.0.resize_with(threads, Default::default);
        self.0.iter_mut().try_for_each(|entry| prepare(entry.get_mut()))
    }

    /// # Safety
    /// Call this inside a region, with the calling thread's own index, and while no other borrow of the entry is alive.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn get(&self, thread: usize) -> &mut T {
        // SAFETY: a thread enters a region once, so no other thread uses its entry.
        unsafe { &mut *self.0[thread].get() }
    }
}
