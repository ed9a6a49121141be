//! The end of a sequence on this engine: its KV becomes a handle.

use super::blocks::SequenceBlocks;
use super::shared::EngineShared;
use crate::error::Result;
use crate::kv::{KvId, StreamingExport};
use crate::sequence::{FinishReason, Snapshot};
use crate::sys::monotonic_ns;

/// Exports a sequence that has ended here, and returns its handle.
pub(super) fn hand_over(
    shared: &EngineShared,
    mut snapshot: Snapshot,
    streaming: Option<StreamingExport>,
    blocks: SequenceBlocks,
    reason: FinishReason,
) -> Result<KvId> {
    snapshot.finished = matches!(reason, FinishReason::Stop | FinishReason::Length).then_some(reason);
    let started = monotonic_ns();
    let kv = shared.cache.kv();
    let (table, chain) = blocks.into_parts();
    let handle = match streaming {
        Some(streaming) => streaming.finish(snapshot, table),
        None => kv.handles().export(snapshot, table, None),
    };
    shared.counters.exported(monotonic_ns() - started);
    let handle = handle?;
    kv.handles().set_chain(handle, &chain);
    Ok(handle)
}
