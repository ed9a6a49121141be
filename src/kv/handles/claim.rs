//! Claims: handles that a request takes while their KV is still being imported or computed.

use super::consume::{Consumed, consume};
use super::shared::CacheShared;
use super::state::CacheState;
use super::table::End;
use crate::error::Result;
use crate::kv::format::KvId;
use crate::kv::pool::Waker;
use crate::sequence::Snapshot;
use crate::sync::Arc;

/// A handle that a request took before its KV had arrived. To everybody else it is consumed. Dropping the claim ends the
/// handle, and the exporter then keeps its own.
pub struct Claim {
    shared: Arc<CacheShared>,
    id: KvId,
}

impl Claim {
    pub(super) fn new(shared: &Arc<CacheShared>, id: KvId, waker: Waker) -> Result<Claim> {
        shared.with(|state| {
            let slot = state.find(id)?;
            state.handles.claim(slot, waker);
            Ok(Claim { shared: shared.clone(), id })
        })
    }

    /// Takes the sequence once its KV has arrived. If the import failed, returns that failure.
    pub fn take(&mut self) -> Result<Consumed> {
        consume(&self.shared, self.id, CacheState::find_claimed)
    }

    /// Sequence of the handle, whatever the state of its KV, so that the caller can compute it if that failed.
    pub fn sequence(&self) -> Option<Arc<Snapshot>> {
        self.shared.with(|state| {
            let slot = state.find_claimed(self.id).ok()?;
            state.handles.body(slot).sequence().cloned()
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
