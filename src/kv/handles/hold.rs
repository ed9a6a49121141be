//! The exporter's side of a transfer: it holds the blocks of a handle while a peer reads them, then ends the handle.

use std::time::Duration;

use super::shared::{CacheShared, wake};
use super::table::{Body, End};
use crate::backend::BlockId;
use crate::bail;
use crate::error::Result;
use crate::kv::format::{self, KvId};
use crate::kv::pool::{BlockTable, Owner, Table, TableKey};
use crate::sequence::Snapshot;
use crate::sync::{Arc, Instant, PoisonError};

/// Blocks held for one transfer. Dropping it releases them; the handle stays valid unless [`TransferHold::commit`] ended it.
pub(crate) struct TransferHold {
    shared: Arc<CacheShared>,
    id: KvId,
    pins: TableKey,
    blocks: Vec<BlockId>,
    /// Number of blocks at the front that are no longer held.
    let_go: usize,
    whole: Option<Arc<Snapshot>>,
}

impl TransferHold {
    /// Begins a transfer of a handle and renews its lease. `digest` is the ticket's digest of the sequence; CORRUPT unless it
    /// is the handle's too.
    pub(super) fn new(
        shared: &Arc<CacheShared>,
        id: KvId,
        epoch: &[u8; 16],
        digest: &[u8; 32],
    ) -> Result<TransferHold> {
        if shared.epoch != *epoch {
            bail!(Expired, "{id}: the exporting cache began a new epoch");
        }
        // The sequence of the handle, and the prompt that it had if the ticket was written while that was being computed.
        let held = shared.with(|state| {
            let slot = state.find(id)?;
            if let Body::StreamingExport(progress) = state.handles.body(slot) {
                return Ok(vec![progress.prompt.clone()]);
            }
            let (_, export) = state.ready(id)?;
            let held = std::iter::once(export.snapshot.clone()).chain(export.prompt.clone()).collect();
            let lease = export.lease;
            state.handles.renew(slot, lease);
            Ok(held)
        })?;
        if !held.iter().any(|snapshot| format::digest(snapshot) == *digest) {
            let (tokens, computed) = (held[0].tokens.len(), held[0].computed);
            bail!(Corrupt, "KV ticket: sequence: {id} holds {tokens} tokens, {computed} computed, or other ones");
        }
        let pins = shared.with(|state| state.pool.add_table(Owner::Transfer, Vec::new()));
        Ok(TransferHold { shared: shared.clone(), id, pins, blocks: Vec::new(), let_go: 0, whole: None })
    }

    /// Holds free blocks for a self-test: at least one, at most `most` and half of the free ones, so that requests can continue.
    pub(super) fn scratch(shared: &Arc<CacheShared>, most: usize) -> Result<TransferHold> {
        let (pins, blocks) = shared.with(|state| {
            if state.pool.closed {
                bail!(Shutdown, "the cache is closed");
            }
            let n = most.min(state.pool.blocks.free.len() / 2).max(1);
            let mut blocks = Vec::with_capacity(n);
            if !state.pool.blocks.allocate(n, &mut blocks) {
                bail!(OutOfMemory, "self-test: no KV block is free");
            }
            Ok((state.pool.add_table(Owner::Transfer, blocks.clone()), blocks))
        })?;
        Ok(TransferHold { shared: shared.clone(), id: KvId(0), pins, blocks, let_go: 0, whole: None })
    }

    /// Waits up to `timeout` until more than `have` blocks, or all of them, are computed, and holds those. The peer has the
    /// first `have` already: if the prompt is still being computed, they are released.
    pub fn more(&mut self, have: usize, timeout: Duration) -> Result<()> {
        let until = Instant::now() + timeout;
        let shared = self.shared.clone();
        let mut state = shared.lock();
        loop {
            let slot = state.find(self.id)?;
            let (found, whole) = match state.handles.body(slot) {
                Body::Ready(export) => (export.blocks.clone(), Some((export.snapshot.clone(), export.lease))),
                Body::Failed(failed) => return Err(failed.error.clone()),
                Body::StreamingExport(progress) => {
                    let full = |table: &Table| {
                        let full = (table.computed / shared.geometry.block_tokens) as usize;
                        table.blocks[..full.min(table.blocks.len())].to_vec()
                    };
                    (state.pool.table(progress.table).map(full).unwrap_or_default(), None)
                }
                Body::Importing(_) | Body::Vacant => bail!(WouldBlock, "{}: its import is in flight", self.id),
            };
            if let Some((snapshot, lease)) = whole {
                state.handles.renew(slot, lease);
                self.whole = Some(snapshot);
            }
            // Blocks that the peer has fetched need not be held for it. A prompt that was preempted may need those very
            // blocks to be computed again.
            let fetched = have.min(self.blocks.len());
            if self.whole.is_none() && fetched > self.let_go {
                let pins = &mut state.pool.tables[self.pins as usize].blocks;
                let let_go: Vec<BlockId> = pins.drain(..fetched - self.let_go).collect();
                state.pool.blocks.release_all(&let_go);
                self.let_go = fetched;
            }
            // A preempted prompt is computed again, to the same bits: blocks held already stay as they are.
            let known = self.blocks.len();
            if let Some(new) = found.get(known..).filter(|new| !new.is_empty()) {
                new.iter().for_each(|&block| state.pool.blocks.retain(block));
                state.pool.tables[self.pins as usize].blocks.extend_from_slice(new);
                self.blocks.extend_from_slice(new);
            }
            let due = state.pool.due();
            if !due.is_empty() {
                drop(state);
                wake(due);
                state = shared.lock();
            }
            let left = until.saturating_duration_since(Instant::now());
            if self.whole.is_some() || self.blocks.len() > have || left.is_zero() {
                return Ok(());
            }
            state = shared.progress.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Renews the handle's lease, because the importer has shown that it is alive.
    pub fn renew(&self) {
        self.shared.with(|state| {
            if let Ok(slot) = state.find(self.id)
                && let Body::Ready(export) = state.handles.body(slot)
            {
                let lease = export.lease;
                state.handles.renew(slot, lease);
            }
        });
    }

    /// Ids of the blocks found so far, in the order of the sequence. The first ones may have been released.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Snapshot of the sequence, once all of its blocks are computed.
    pub fn whole(&self) -> Option<&Arc<Snapshot>> {
        self.whole.as_ref()
    }

    /// Ends the handle as consumed, because the peer has all of its KV. Fails if the handle has ended before; the peer must
    /// then discard what it has.
    pub fn commit(&mut self) -> Result<()> {
        self.shared.with(|state| {
            let (slot, _) = state.ready(self.id)?;
            state.end_and_free(slot, End::Consumed);
            Ok(())
        })
    }

    /// Counts KV bytes that were copied out of the cache.
    pub fn count_out(&self, bytes: usize) {
        self.shared.counters.sent(bytes);
    }

    pub fn store(&self) -> &dyn crate::backend::BlockStore {
        &**self.shared.shards.store()
    }

    /// Holds some of the blocks independently, for a reader that may outlive this hold. None if they are not all held here.
    pub fn pin(&self, range: std::ops::Range<usize>) -> Option<BlockTable> {
        let blocks = self.blocks.get(range.clone()).filter(|_| range.start >= self.let_go)?.to_vec();
        let key = self.shared.with(|state| state.pool.share(Owner::Transfer, &blocks));
        Some(BlockTable::new(self.shared.clone(), key, blocks))
    }
}

impl Drop for TransferHold {
    fn drop(&mut self) {
        self.shared.with(|state| state.pool.drop_table(self.pins));
    }
}
