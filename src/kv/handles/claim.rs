//! Claims: handles that a request takes while their KV is still being imported or computed.

use super::export::Consumed;
use super::shared::CacheShared;
use super::slots::{Body, End, KvId, Progress};
use super::state::CacheState;
use crate::error::Result;
use crate::kv::pool::Waker;
use crate::sequence::Snapshot;
use crate::sync::Arc;

/// A handle that a request took before its KV had arrived. To everybody else it is consumed. Dropping the claim ends the
/// handle, and the exporter then keeps its own.
pub struct Claim {
    shared: Arc<CacheShared>,
    id: KvId,
}

impl CacheShared {
    /// Takes a handle whose KV may still be on the way. `waker` is called once when the KV arrives or fails or the handle
    /// ends, but not if that has happened already. If several callers try, exactly one gets it and the others get EXPIRED.
    pub fn claim(self: &Arc<Self>, id: KvId, waker: Waker) -> Result<Claim> {
        self.with(|state| {
            let slot = state.find(id)?;
            if let Body::Importing { wakers, .. } | Body::StreamingExport(Progress { wakers, .. }) =
                state.slots.body_mut(slot)
            {
                wakers.push(waker);
            }
            state.claim(slot);
            Ok(Claim { shared: self.clone(), id })
        })
    }
}

impl CacheShared {
    /// Whether a request has taken the handle.
    pub(crate) fn is_claimed(&self, id: KvId) -> bool {
        self.with(|state| state.find_claimed(id).is_ok_and(|slot| state.slots.is_claimed(slot)))
    }
}

impl Claim {
    /// Takes the sequence once its KV has arrived. If the import failed, returns that failure.
    pub fn take(&mut self) -> Result<Consumed> {
        self.shared.consume_found(self.id, CacheState::find_claimed)
    }

    /// Sequence of the handle, whatever the state of its KV, so that the caller can compute it if that failed.
    pub fn sequence(&self) -> Option<Arc<Snapshot>> {
        self.shared.with(|state| {
            let slot = state.find_claimed(self.id).ok()?;
            state.sequence(slot)
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shared.with(|state| {
            if let Ok(slot) = state.find_claimed(self.id) {
                state.end_and_free(slot, End::Consumed);
            }
        });
    }
}
