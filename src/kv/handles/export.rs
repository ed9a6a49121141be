//! Export: a sequence and its block table become a handle.

use std::time::Duration;

use super::shared::CacheShared;
use crate::bail;
use crate::error::Result;
use crate::kv::format::{self, KvId};
use crate::kv::pool::BlockTable;
use crate::sequence::Snapshot;
use crate::sync::Arc;

/// Makes a handle of a sequence at a step boundary, or completes the streaming handle `streaming` if it is still live. The
/// table moves into it, so no KV is copied, whatever the length. If this fails, the table's blocks return to the pool. A
/// `lease` of None is the cache's.
pub(super) fn export(
    shared: &Arc<CacheShared>,
    streaming: Option<KvId>,
    snapshot: Snapshot,
    table: BlockTable,
    lease: Option<Duration>,
) -> Result<KvId> {
    if !table.belongs_to(&**shared) {
        bail!(InvalidArgument, "KV export: the block table is another cache's");
    }
    if let Err(text) = format::validate(&snapshot) {
        bail!(InvalidArgument, "KV export: {text}");
    }
    let need = snapshot.computed.div_ceil(shared.geometry.block_tokens) as usize;
    if table.blocks().len() < need {
        let (computed, found) = (snapshot.computed, table.blocks().len());
        bail!(InvalidArgument, "KV export: {computed} computed tokens need {need} blocks, found {found}");
    }
    let snapshot = Arc::new(snapshot);
    let (Some(key), mut blocks) = table.into_parts() else {
        bail!(InvalidArgument, "KV export: the block table was exported already");
    };
    shared.with(|state| {
        // Blocks that were reserved ahead hold no KV yet.
        if blocks.len() > need {
            state.pool.blocks.release_all(&blocks[need..]);
            blocks.truncate(need);
            state.pool.tables[key as usize].blocks.truncate(need);
        }
        let lease = lease.unwrap_or(shared.config.lease);
        let waiting = streaming.and_then(|id| Some((id, state.find_claimed(id).ok()?)));
        let issued = match waiting {
            _ if state.pool.closed => Err(crate::error!(Shutdown, "KV export: the cache is closed")),
            Some((id, slot)) => {
                state.arrive(slot, snapshot, key, blocks, lease);
                Ok(id)
            }
            None => state.export(snapshot, key, blocks, lease),
        };
        if issued.is_err() {
            state.pool.drop_table(key);
        }
        issued
    })
}
