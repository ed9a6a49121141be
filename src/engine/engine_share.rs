//! One engine's share of its device's multiprocessors. [`super::compute_share`] decides on it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// An engine's share of the device. Only [`super::compute_share`] writes it.
pub(super) struct EngineShare(Mutex<ShareState>);

/// The share that the host asked for and the one in use.
pub(super) struct ShareState {
    /// Percentage set by the host, 0 for the whole device; None leaves the share to the default.
    pub set: Option<u32>,
    /// Percentage in use, at the latest from the next step on; 0 for the whole device.
    pub percent: u32,
}

impl EngineShare {
    /// The share of a new engine that runs on `set` percent, or on the whole device.
    pub fn new(set: Option<u32>) -> EngineShare {
        EngineShare(Mutex::new(ShareState { set, percent: set.unwrap_or(0) }))
    }

    /// Locks the share to read or change it.
    pub fn lock(&self) -> MutexGuard<'_, ShareState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
