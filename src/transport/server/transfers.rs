//! Transfers that peers have open.

use super::self_tests::SelfTestShare;
use crate::kv::TransferHold;
use crate::sys::monotonic_ns;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A transfer, held by the connection that began it and read by others of the same peer.
pub(super) struct OpenTransfer {
    pub id: u64,
    pub hold: Mutex<TransferHold>,
    /// The share of a self-test; None for a transfer of a handle.
    pub self_test: Option<SelfTestShare>,
    /// When its blocks were last asked for or sent, in nanoseconds of the monotonic clock.
    pub heard: AtomicU64,
}

impl OpenTransfer {
    pub fn hold(&self) -> MutexGuard<'_, TransferHold> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn touch(&self) {
        self.heard.store(monotonic_ns(), Relaxed);
    }

    pub fn silent(&self) -> Duration {
        Duration::from_nanos(monotonic_ns().saturating_sub(self.heard.load(Relaxed)))
    }

    /// True for a self-test that has taken longer than any honest one.
    pub fn is_overdue(&self) -> bool {
        self.self_test.as_ref().is_some_and(SelfTestShare::is_over)
    }
}
