//! Handles whose KV is still on its way, and tables being filled for them.

use super::cache::{Cache, Shared};
use super::handle::{Body, End, KvId};
use super::hash::HashChain;
use super::state::Owner;
use super::table::BlockTable;
use crate::bail;
use crate::error::{Error, Result};
use crate::sequence::Snapshot;
use crate::sync::Arc;
use crate::sync::atomic::Ordering::Relaxed;

/// Blocks being filled from outside, held by a transfer until they are whole. Dropping it returns them.
pub(crate) struct Incoming {
    shared: Arc<Shared>,
    snapshot: Snapshot,
    chain: HashChain,
    table: BlockTable,
    /// Blocks at the front that were here already, and need no bytes.
    pub present: usize,
    share: bool,
}

impl Incoming {
    /// Blocks for the computed tokens of `snapshot`: those of its prefix that this cache has, new ones for the
    /// rest.
    pub fn new(cache: &Cache, snapshot: Snapshot, chain: HashChain) -> Result<Incoming> {
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

    pub fn n_blocks(&self) -> usize {
        self.table.blocks().len()
    }

    /// Writes a piece of block `index`, which must not be one of those that were present.
    pub fn write(&self, index: usize, offset: usize, data: &[u8]) {
        debug_assert!(index >= self.present);
        self.shared.store.write(self.table.blocks()[index], offset, data);
        self.shared.bytes_in.fetch_add(data.len() as u64, Relaxed);
    }

    /// All blocks are whole: full ones enter the prefix index.
    pub fn finish(mut self) -> (Snapshot, BlockTable) {
        if self.share {
            for (index, &hash) in self.chain.hashes().iter().enumerate().skip(self.present) {
                self.table.publish(index, hash);
            }
        }
        (self.snapshot, self.table)
    }
}

impl Cache {
    /// The hash chain over a snapshot's computed tokens.
    pub(crate) fn chain(&self, snapshot: &Snapshot) -> HashChain {
        let computed = &snapshot.tokens[..snapshot.computed as usize];
        HashChain::of(snapshot.cache_salt, self.shared.geometry.block_tokens, computed)
    }

    /// A handle for an import that is about to start. Whoever asked must call [`Cache::finish_import`].
    pub(crate) fn begin_import(&self) -> Result<KvId> {
        self.shared.with(|state| {
            if state.closed {
                bail!(Shutdown, "KV import: the cache is closed");
            }
            let epoch = state.epoch;
            Ok(state.slots.issue(Body::Importing { epoch, wakers: Vec::new() })?.0)
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
                Body::Importing { epoch, wakers } => Ok((slot, *epoch, std::mem::take(wakers))),
                _ => bail!(Internal, "{id}: landed twice"),
            });
            let (slot, epoch, wakers) = match found {
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
                state.fail(slot, error.clone(), lease);
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
