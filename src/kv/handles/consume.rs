//! Consumption: a request takes the sequence and the block table out of a handle.

use super::shared::CacheShared;
use super::state::CacheState;
use super::table::Export;
use crate::error::Result;
use crate::kv::format::KvId;
use crate::kv::pool::BlockTable;
use crate::sequence::Snapshot;
use crate::sync::Arc;

/// Result of taking a handle's sequence.
#[expect(clippy::large_enum_variant, reason = "the large one is the rule, and a box would cost the handoff")]
pub enum Consumed {
    /// The sequence; the handle is used up.
    Ready(Snapshot, BlockTable),
    /// The KV has not arrived, and the handle stays valid. A [`Claim`](super::Claim) tells when it arrives.
    Pending,
}

/// Takes the sequence out of the handle in the slot that `find` returns.
pub(super) fn consume(
    shared: &Arc<CacheShared>,
    id: KvId,
    find: impl FnOnce(&mut CacheState, KvId) -> Result<u32>,
) -> Result<Consumed> {
    let taken = shared.with(|state| {
        let slot = find(state, id)?;
        state.consume(id, slot)
    })?;
    let Some(Export { snapshot, table, blocks, .. }) = taken else { return Ok(Consumed::Pending) };
    Ok(Consumed::Ready(Arc::unwrap_or_clone(snapshot), BlockTable::new(shared.clone(), table, blocks)))
}
