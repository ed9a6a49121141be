//! Handles that a request takes while their KV is still on its way: in an import, or being computed.

use super::export::Consumed;
use super::shared::CacheShared;
use super::slots::{Body, End, KvId, Progress};
use super::state::CacheState;
use crate::error::Result;
use crate::kv::pool::Waker;
use crate::sequence::Snapshot;
use crate::sync::Arc;

/// A handle taken before it has landed. For everybody else it is consumed; dropping the claim ends it, and then the
/// exporter keeps its own.
pub struct Claim {
    shared: Arc<CacheShared>,
    id: KvId,
}

impl CacheShared {
    /// Takes a handle whose KV may be on its way. `waker` is called once when that has landed, failed or ended; not if
    /// it had before. Of several callers one gets it, the others get EXPIRED.
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
    /// Has a request taken the handle?
    pub(crate) fn is_claimed(&self, id: KvId) -> bool {
        self.with(|state| state.find_claimed(id).is_ok_and(|slot| state.slots.is_claimed(slot)))
    }
}

impl Claim {
    /// The sequence, once it has landed; the failure of an import that failed.
    pub fn take(&mut self) -> Result<Consumed> {
        self.shared.consume_found(self.id, CacheState::find_claimed)
    }

    /// The sequence of a handle that failed, to be computed anew.
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
