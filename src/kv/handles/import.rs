//! Imports: handles whose KV has not arrived yet, and the block tables being filled for them.

use super::shared::CacheShared;
use super::slots::{Body, End, KvId};
use super::state::CacheState;
use crate::backend::{BlockId, DeviceMemory, KvGeometry};
use crate::bail;
use crate::error::{Error, Result};
use crate::kv::pool::{BlockTable, Conversion, HashChain, Owner};
use crate::sequence::Snapshot;
use crate::sync::Arc;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sys::bytes::ByteTarget;
use std::ops::Range;

/// Blocks being filled with imported KV, owned by a transfer until they are complete. Dropping it returns them to the pool.
pub(crate) struct Incoming {
    shared: Arc<CacheShared>,
    snapshot: Snapshot,
    chain: HashChain,
    table: BlockTable,
    conversion: Conversion,
    /// Number of blocks at the front that the prefix index had already, and that need no data.
    present: usize,
    share: bool,
}

impl Incoming {
    /// Allocates blocks for the computed tokens of `snapshot`, reusing those of its prefix that this cache has. `chain` is
    /// [`CacheShared::chain`]; the KV will come in blocks of layout `from`.
    ///
    /// KV that is rounded by the conversion shares no blocks: otherwise results would depend on which blocks were here.
    pub fn new(
        cache: &Arc<CacheShared>,
        mut snapshot: Snapshot,
        chain: HashChain,
        from: &KvGeometry,
    ) -> Result<Incoming> {
        let shared = cache.clone();
        let conversion = Conversion::new(from, &shared.geometry)?;
        snapshot.converted |= !conversion.is_exact();
        let share = snapshot.tokens.len() <= shared.config.share_up_to_tokens as usize && !snapshot.converted;
        let mut table = shared.table(Owner::Transfer);
        let present = if share { table.adopt_prefix(chain.hashes()) } else { 0 };
        let first_new = present as u32 * shared.geometry.block_tokens;
        if !table.reserve(first_new, snapshot.computed) {
            let need = snapshot.computed.div_ceil(shared.geometry.block_tokens) as usize;
            let available = cache.lock().pool.blocks.available();
            bail!(OutOfMemory, "KV import: needs {} blocks, {available} available", need - present);
        }
        Ok(Incoming { shared, snapshot, chain, table, conversion, present, share })
    }

    /// Number of the source's blocks that hold computed tokens.
    pub fn n_source_blocks(&self) -> usize {
        self.snapshot.computed.div_ceil(self.conversion.source().block_tokens) as usize
    }

    /// Index of the first source block that is needed, at least in part; [`Self::n_source_blocks`] if none is.
    pub fn first_needed(&self) -> usize {
        match self.first_token() {
            first if first >= self.snapshot.computed => self.n_source_blocks(),
            first => (first / self.conversion.source().block_tokens) as usize,
        }
    }

    /// Position of the first token whose KV is not here yet.
    fn first_token(&self) -> u32 {
        self.present as u32 * self.shared.geometry.block_tokens
    }

    /// Imports the whole block `index` of the source. Tokens that are here already are not written.
    pub fn write_block(&self, index: usize, source_block: &[u8]) -> Result<()> {
        let (store, table) = (&**self.shared.shards.store(), self.table.blocks());
        self.conversion.write(index, source_block, self.snapshot.computed, self.first_token(), store, table)?;
        self.count(source_block.len());
        Ok(())
    }

    /// Imports `blocks` of a source on a device by copies between devices. `ids` are the source's blocks from the sequence's
    /// first on. Returns false, having done nothing, if the devices cannot do that.
    pub fn take_from_device(&self, pool: &dyn DeviceMemory, ids: &[BlockId], blocks: Range<usize>) -> Result<bool> {
        let Some(own) = self.shared.shards.store().device_memory() else { return Ok(false) };
        let (tokens, bytes) = (self.first_token()..self.snapshot.computed, self.conversion.source().block_bytes());
        let count = blocks.len();
        let taken = self.conversion.write_on_device(blocks, tokens, (pool, ids), (own, self.table.blocks()))?;
        if taken {
            self.count(count * bytes);
        }
        Ok(taken)
    }

    /// Memory into which the source's block `index` can be copied as it is. None if it needs conversion or the pool is not in
    /// host memory.
    pub fn direct(&self, index: usize) -> Option<ByteTarget<'_>> {
        self.conversion.is_identity().then(|| self.shared.shards.store().target(self.table.blocks()[index])).flatten()
    }

    /// Counts KV bytes that arrived without [`Incoming::write_block`].
    pub fn count(&self, bytes: usize) {
        self.shared.bytes_in.fetch_add(bytes as u64, Relaxed);
    }

    /// Completes the import once all blocks of `whole` are here, and enters the full ones into the prefix index. `whole` is
    /// the expected sequence or a later state of it, with no more tokens computed.
    pub fn finish(mut self, mut whole: Snapshot) -> (Snapshot, BlockTable) {
        whole.converted |= self.snapshot.converted;
        let full = (whole.computed / self.shared.geometry.block_tokens) as usize;
        if self.share {
            let full = full.min(self.chain.hashes().len());
            self.table.publish(self.present..full, &self.chain, &whole.tokens);
        }
        (whole, self.table)
    }

    /// The expected sequence.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

impl CacheShared {
    /// Hash chain over a snapshot's computed tokens.
    pub(crate) fn chain(&self, snapshot: &Snapshot) -> HashChain {
        let computed = &snapshot.tokens[..snapshot.computed as usize];
        HashChain::of(snapshot.cache_salt, self.geometry.block_tokens, computed)
    }

    /// Makes a handle for an import that is about to start. The caller must call [`CacheShared::finish_import`].
    pub(crate) fn begin_import(&self, sequence: Arc<Snapshot>) -> Result<KvId> {
        self.with(|state| {
            if state.pool.closed {
                bail!(Shutdown, "KV import: the cache is closed");
            }
            let epoch = state.epoch;
            Ok(state.slots.issue(Body::Importing { epoch, sequence, wakers: Vec::new() })?.0)
        })
    }

    /// Checks that [`CacheShared::finish_import`] would accept the KV. Called before the exporter's handle is ended.
    pub(crate) fn check_import(&self, id: KvId) -> Result<()> {
        self.with(|state| {
            let slot = state.find_claimed(id)?;
            match state.slots.body(slot) {
                Body::Importing { epoch, .. } if *epoch == state.epoch => Ok(()),
                _ => bail!(Expired, "{id}: the importing cache began a new epoch meanwhile"),
            }
        })
    }

    /// Ends an import: the handle becomes ready or stores the failure, its lease begins, and its waiters are woken. Returns
    /// the outcome, which is an error too if the handle ended meanwhile.
    pub(crate) fn finish_import(&self, id: KvId, outcome: Result<(Snapshot, BlockTable)>) -> Result<()> {
        let outcome = outcome.map(|(snapshot, table)| (Arc::new(snapshot), table.into_parts()));
        self.with(|state| {
            let found = state.find_claimed(id).and_then(|slot| match state.slots.body_mut(slot) {
                Body::Importing { epoch, sequence, wakers } => {
                    Ok((slot, *epoch, sequence.clone(), std::mem::take(wakers)))
                }
                _ => bail!(Internal, "{id}: landed twice"),
            });
            let (slot, epoch, sequence, wakers) = match found {
                Ok(found) => found,
                Err(error) => {
                    if let Ok((_, (Some(key), _))) = outcome {
                        state.pool.drop_table(key);
                    }
                    return Err(error);
                }
            };
            state.pool.fire.extend(wakers);
            let lease = self.config.lease;
            let fail = |state: &mut CacheState, error: Error| {
                state.fail(slot, error.clone(), lease, Some(sequence.clone()));
                Err(error)
            };
            match outcome {
                Ok((_, (Some(key), _))) if epoch != state.epoch => {
                    state.pool.drop_table(key);
                    fail(state, crate::error!(Expired, "{id}: the importing cache began a new epoch meanwhile"))
                }
                Ok((mut snapshot, (Some(key), blocks))) => {
                    if snapshot.host_data != sequence.host_data {
                        Arc::make_mut(&mut snapshot).host_data.clone_from(&sequence.host_data);
                    }
                    state.fill(slot, snapshot, key, blocks, lease);
                    Ok(())
                }
                Ok((_, (None, _))) => fail(state, crate::error!(Internal, "{id}: landed without a table")),
                Err(error) => fail(state, error),
            }
        })
    }

    /// Ends a handle whose import was never started.
    pub(crate) fn abandon_import(&self, id: KvId) {
        self.with(|state| {
            if let Ok(slot) = state.find(id) {
                state.end_and_free(slot, End::Released);
            }
        });
    }
}
