//! Handles whose KV is still on its way, and tables being filled for them.

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

/// Blocks being filled from outside, held by a transfer until they are whole. Dropping it returns them.
pub(crate) struct Incoming {
    shared: Arc<CacheShared>,
    snapshot: Snapshot,
    chain: HashChain,
    table: BlockTable,
    conversion: Conversion,
    /// Blocks of this cache at the front that were here already, and need no bytes.
    present: usize,
    share: bool,
}

impl Incoming {
    /// Blocks for the computed tokens of `snapshot`: those of its prefix that this cache has, new ones for the
    /// rest. `chain` is [`Cache::chain`]; KV comes in blocks of the layout `from`.
    ///
    /// What was rounded on the way shares no blocks: a sequence's result would depend on which of them were here.
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

    /// Blocks of the source that hold computed tokens.
    pub fn n_source_blocks(&self) -> usize {
        self.snapshot.computed.div_ceil(self.conversion.source().block_tokens) as usize
    }

    /// The first block of the source of which something is needed; [`Self::n_source_blocks`] if nothing is.
    pub fn first_needed(&self) -> usize {
        match self.first_token() {
            first if first >= self.snapshot.computed => self.n_source_blocks(),
            first => (first / self.conversion.source().block_tokens) as usize,
        }
    }

    /// The first token whose KV is not here yet.
    fn first_token(&self) -> u32 {
        self.present as u32 * self.shared.geometry.block_tokens
    }

    /// Takes in block `index` of the source, whole. What of it is here already is not written.
    pub fn write_block(&self, index: usize, source_block: &[u8]) -> Result<()> {
        let (store, table) = (&*self.shared.store, self.table.blocks());
        self.conversion.write(index, source_block, self.snapshot.computed, self.first_token(), store, table)?;
        self.count(source_block.len());
        Ok(())
    }

    /// Takes in blocks of the source that lie on a device, `ids` from the sequence's first on, without a way through the
    /// host. False, and nothing done, where that cannot be.
    pub fn take_from_device(&self, pool: &dyn DeviceMemory, ids: &[BlockId], blocks: Range<usize>) -> Result<bool> {
        let Some(own) = self.shared.store.device_memory() else { return Ok(false) };
        let (tokens, bytes) = (self.first_token()..self.snapshot.computed, self.conversion.source().block_bytes());
        let count = blocks.len();
        let taken = self.conversion.write_on_device(blocks, tokens, (pool, ids), (own, self.table.blocks()))?;
        if taken {
            self.count(count * bytes);
        }
        Ok(taken)
    }

    /// Where a block of the source belongs byte for byte, if it does and that is host memory.
    pub fn direct(&self, index: usize) -> Option<ByteTarget<'_>> {
        self.conversion.is_identity().then(|| self.shared.store.target(self.table.blocks()[index])).flatten()
    }

    /// Counts bytes that came in past [`Incoming::write_block`].
    pub fn count(&self, bytes: usize) {
        self.shared.bytes_in.fetch_add(bytes as u64, Relaxed);
    }

    /// All blocks of `whole` are here: full ones enter the prefix index. `whole` is the sequence that was expected, or
    /// what became of it meanwhile, with no more tokens computed.
    pub fn finish(mut self, mut whole: Snapshot) -> (Snapshot, BlockTable) {
        whole.converted |= self.snapshot.converted;
        let full = (whole.computed / self.shared.geometry.block_tokens) as usize;
        if self.share {
            for (index, &hash) in self.chain.hashes().iter().enumerate().take(full).skip(self.present) {
                self.table.publish(index, hash);
            }
        }
        (whole, self.table)
    }

    /// The sequence that was expected.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

impl CacheShared {
    /// The hash chain over a snapshot's computed tokens.
    pub(crate) fn chain(&self, snapshot: &Snapshot) -> HashChain {
        let computed = &snapshot.tokens[..snapshot.computed as usize];
        HashChain::of(snapshot.cache_salt, self.geometry.block_tokens, computed)
    }

    /// A handle for an import that is about to start. Whoever asked must call [`Cache::finish_import`].
    pub(crate) fn begin_import(&self, sequence: Arc<Snapshot>) -> Result<KvId> {
        self.with(|state| {
            if state.pool.closed {
                bail!(Shutdown, "KV import: the cache is closed");
            }
            let epoch = state.epoch;
            Ok(state.slots.issue(Body::Importing { epoch, sequence, wakers: Vec::new() })?.0)
        })
    }

    /// Would what is about to land be taken? Asked before the exporter's handle is ended.
    pub(crate) fn check_import(&self, id: KvId) -> Result<()> {
        self.with(|state| {
            let slot = state.find_claimed(id)?;
            match state.slots.body(slot) {
                Body::Importing { epoch, .. } if *epoch == state.epoch => Ok(()),
                _ => bail!(Expired, "{id}: the importing cache began a new epoch meanwhile"),
            }
        })
    }

    /// The import has landed or failed: the handle becomes ready or remembers why not, its lease begins, and who
    /// waits for it is woken. Gives the outcome back; if the handle ended meanwhile, that is the outcome.
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

    /// Takes back a handle that no import was started for.
    pub(crate) fn abandon_import(&self, id: KvId) {
        self.with(|state| {
            if let Ok(slot) = state.find(id) {
                state.end_and_free(slot, End::Released);
            }
        });
    }
}
