//! Handles whose KV is still on its way, and tables being filled for them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::cache::{Cache, Shared};
use super::handle::{Body, End, KvId};
use super::hash::HashChain;
use super::state::Owner;
use super::table::BlockTable;
use crate::backend::KvGeometry;
use crate::bail;
use crate::error::{Error, Result};
use crate::sequence::Snapshot;
use crate::sys::bytes::Target;

/// Blocks being filled from outside, held by a transfer until they are whole. Dropping it returns them.
pub(crate) struct Incoming {
    shared: Arc<Shared>,
    snapshot: Snapshot,
    chain: HashChain,
    table: BlockTable,
    /// Blocks at the front that were here already, and need no bytes.
    present: usize,
    share: bool,
}

impl Incoming {
    /// Blocks for the computed tokens of `snapshot`: those of its prefix that this cache has, new ones for the
    /// rest.
    pub fn new(cache: &Cache, snapshot: Snapshot, chain: HashChain, _from: &KvGeometry) -> Result<Incoming> {
        let shared = cache.shared.clone();
        let share = snapshot.tokens.len() <= shared.config.share_up_to_tokens as usize;
        let mut table = shared.table(Owner::Transfer);
        let present = if share { table.adopt_prefix(chain.hashes()) } else { 0 };
        let first_new = present as u32 * shared.geometry.block_tokens;
        if !table.reserve(first_new, snapshot.computed) {
            let need = snapshot.computed.div_ceil(shared.geometry.block_tokens) as usize;
            let available = cache.available_blocks();
            bail!(OutOfMemory, "KV import: needs {} blocks, {available} available", need - present);
        }
        Ok(Incoming { shared, snapshot, chain, table, present, share })
    }

    /// Blocks of the source for the computed tokens.
    pub fn n_source_blocks(&self) -> usize {
        self.table.blocks().len()
    }

    /// The first block of the source of which something is needed.
    pub fn first_needed(&self) -> usize {
        self.present
    }

    /// Takes in a whole block of the source, which must not be one of those that are here already.
    pub fn write_block(&self, index: usize, data: &[u8]) {
        debug_assert!(index >= self.present);
        self.shared.store.write(self.table.blocks()[index], 0, data);
        self.count(data.len());
    }

    /// Where a block of the source belongs byte for byte, if it does and that is host memory.
    pub fn direct(&self, index: usize) -> Option<Target<'_>> {
        self.shared.store.target(self.table.blocks()[index])
    }

    /// Counts bytes that came in past [`Incoming::write_block`].
    pub fn count(&self, bytes: usize) {
        self.shared.bytes_in.fetch_add(bytes as u64, Relaxed);
    }

    /// All blocks of `whole` are here: full ones enter the prefix index. `whole` is the sequence that was expected, or
    /// what became of it meanwhile, with no more tokens computed.
    pub fn finish(mut self, whole: Snapshot) -> (Snapshot, BlockTable) {
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

impl Cache {
    /// The hash chain over a snapshot's computed tokens.
    pub(crate) fn chain(&self, snapshot: &Snapshot) -> HashChain {
        let computed = &snapshot.tokens[..snapshot.computed as usize];
        HashChain::of(snapshot.cache_salt, self.shared.geometry.block_tokens, computed)
    }

    /// A handle for an import that is about to start. Whoever asked must call [`Cache::finish_import`].
    pub(crate) fn begin_import(&self, sequence: Arc<Snapshot>) -> Result<KvId> {
        self.shared.with(|state| {
            if state.closed {
                bail!(Shutdown, "KV import: the cache is closed");
            }
            let epoch = state.epoch;
            Ok(state.slots.issue(Body::Importing { epoch, sequence, wakers: Vec::new() })?.0)
        })
    }

    /// Would what is about to land be taken? Asked before the exporter's handle is ended.
    pub(crate) fn check_import(&self, id: KvId) -> Result<()> {
        self.shared.with(|state| {
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
        self.shared.with(|state| {
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
                        state.drop_table(key);
                    }
                    return Err(error);
                }
            };
            state.fire.extend(wakers);
            let lease = self.shared.config.lease;
            let fail = |state: &mut super::state::State, error: Error| {
                state.fail(slot, error.clone(), lease, Some(sequence.clone()));
                Err(error)
            };
            match outcome {
                Ok((_, (Some(key), _))) if epoch != state.epoch => {
                    state.drop_table(key);
                    fail(state, crate::error!(Expired, "{id}: the importing cache began a new epoch meanwhile"))
                }
                Ok((snapshot, (Some(key), blocks))) => {
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
        self.shared.with(|state| {
            if let Ok(slot) = state.find(id) {
                state.end_and_free(slot, End::Released);
            }
        });
    }
}
