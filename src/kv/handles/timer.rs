//! The lease timer: the only thing that ends a lease, whatever engines and peers are doing.

use super::shared::{CacheShared, wake};
use crate::sync::{Arc, Instant, PoisonError};

/// Sleeps until the next deadline, ends what is due, and returns once the cache is closed.
pub(in crate::kv) fn run(shared: &Arc<CacheShared>) {
    let mut state = shared.lock();
    while !state.pool.closed {
        let now = Instant::now();
        state.expire(now);
        let due = state.pool.due();
        if !due.is_empty() {
            drop(state);
            wake(due);
            state = shared.lock();
            continue;
        }
        state = match state.handles.arm_timer() {
            None => shared.timer.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(now);
                shared.timer.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
}
