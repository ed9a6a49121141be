//! Block tables: the blocks of one sequence, in order.

use std::ops::Range;

use super::events::IndexedBlock;
use super::hash::{BlockHash, HashChain};
use super::state::{Owner, PoolState, TableKey};
use crate::backend::{BlockId, BlockStore};
use crate::sync::Arc;

/// Owner of the lock around the pool's state.
pub(in crate::kv) trait PoolOwner: Send + Sync {
    /// Runs `f` under the lock, then calls without it the wakers that `f` made due.
    fn with_pool(&self, f: &mut dyn FnMut(&mut PoolState));
    /// Tokens per block.
    fn block_tokens(&self) -> u32;
    /// Memory that holds the blocks.
    fn block_store(&self) -> &dyn BlockStore;
    /// Whether the pool has a journal of its prefix index.
    fn has_journal(&self) -> bool;
}

/// Most blocks that are published under one hold of the lock.
const PUBLISHED_AT_ONCE: usize = 64;

impl dyn PoolOwner {
    fn with<R: Default>(&self, f: impl FnOnce(&mut PoolState) -> R) -> R {
        let (mut f, mut result) = (Some(f), R::default());
        self.with_pool(&mut |state| {
            if let Some(f) = f.take() {
                result = f(state);
            }
        });
        result
    }
}

/// Blocks of one sequence: the KV of token `t` is in block `t / block_tokens`. Dropping the table returns them to the pool.
pub struct BlockTable {
    pool: Arc<dyn PoolOwner>,
    /// None once the table was given to a handle.
    key: Option<TableKey>,
    blocks: Vec<BlockId>,
}

impl BlockTable {
    pub(in crate::kv) fn new(pool: Arc<dyn PoolOwner>, key: TableKey, blocks: Vec<BlockId>) -> BlockTable {
        BlockTable { pool, key: Some(key), blocks }
    }

    /// Takes the table apart. The caller must return the blocks of the key to the pool.
    pub(in crate::kv) fn into_parts(mut self) -> (Option<TableKey>, Vec<BlockId>) {
        (self.key.take(), std::mem::take(&mut self.blocks))
    }

    pub(in crate::kv) fn key(&self) -> Option<TableKey> {
        self.key
    }

    pub(in crate::kv) fn belongs_to(&self, pool: &dyn PoolOwner) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.pool), pool)
    }

    /// Ids of the blocks, in the order of the sequence.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Takes the longest run of blocks at the start of `chain` that the prefix index has, marks them as just used, and returns
    /// their number. Takes nothing unless the table is empty.
    pub fn adopt_prefix(&mut self, chain: &[BlockHash]) -> usize {
        let Some(key) = self.key.filter(|_| self.blocks.is_empty() && !chain.is_empty()) else { return 0 };
        let blocks = &mut self.blocks;
        self.pool.with(|state| {
            state.blocks.adopt(chain, blocks);
            state.tables[key as usize].blocks.clone_from(blocks);
        });
        self.blocks.len()
    }

    /// Makes the blocks of tokens `[computed, upto)` present and writable: missing ones are allocated, evicting idle prefix
    /// blocks if needed, and those that others can see are replaced by copies. Returns false, and changes nothing, if there
    /// are not enough blocks.
    #[must_use]
    pub fn reserve(&mut self, computed: u32, upto: u32) -> bool {
        let Some(key) = self.key else { return false };
        let block_tokens = self.pool.block_tokens();
        let need = upto.div_ceil(block_tokens) as usize;
        let first = (computed / block_tokens) as usize;
        let blocks = &mut self.blocks;
        // Copies to make, and the table that holds their sources meanwhile.
        let mut copies = Vec::new();
        let pin = self.pool.with(|state| {
            let written = first..need.min(blocks.len());
            let shared: Vec<usize> = written.filter(|&i| state.blocks.is_shared(blocks[i])).collect();
            let missing = need.saturating_sub(blocks.len());
            let mut fresh = Vec::with_capacity(shared.len() + missing);
            if !state.blocks.allocate(shared.len() + missing, &mut fresh) {
                return None;
            }
            let table = &mut state.tables[key as usize];
            table.computed = table.computed.min(computed);
            let own = &mut table.blocks;
            let mut sources = Vec::with_capacity(shared.len());
            for (&i, &to) in shared.iter().zip(&fresh) {
                let from = std::mem::replace(&mut blocks[i], to);
                own[i] = to;
                sources.push(from);
                // A block without computed tokens has nothing to copy.
                if computed > i as u32 * block_tokens {
                    copies.push((from, to));
                }
            }
            blocks.extend_from_slice(&fresh[shared.len()..]);
            own.extend_from_slice(&fresh[shared.len()..]);
            Some((!sources.is_empty()).then(|| state.add_table(Owner::Transfer, sources)))
        });
        let Some(pin) = pin else { return false };
        let _sources = pin.map(|key| BlockTable::new(self.pool.clone(), key, Vec::new()));
        for (from, to) in copies {
            // A failed copy means that the device is lost: the sequence's KV is useless, and the engine's step must fail.
            self.pool.block_store().copy(from, to).unwrap_or_else(|error| panic!("{error}"));
        }
        true
    }

    /// Allocates blocks for `tokens` tokens in an empty table, from the free list only: nothing is evicted from the prefix
    /// index. Returns false, and changes nothing, if there are not enough.
    #[must_use]
    pub fn reserve_free(&mut self, tokens: usize) -> bool {
        let Some(key) = self.key.filter(|_| self.blocks.is_empty()) else { return false };
        let need = tokens.div_ceil(self.pool.block_tokens() as usize);
        let blocks = &mut self.blocks;
        self.pool.with(|state| {
            let fits = need <= state.blocks.free.len() && state.blocks.allocate(need, blocks);
            state.tables[key as usize].blocks.clone_from(blocks);
            fits
        })
    }

    /// Enters the blocks `range`, which must be full and computed, into the prefix index. `tokens` are those of the sequence, and
    /// `chain` has the hashes of these blocks. If the index has a hash already, its block stays. A published block must not be
    /// written again before [`Self::reserve`].
    pub fn publish(&mut self, range: Range<usize>, chain: &HashChain, tokens: &[u32]) {
        let range = range.start..range.end.min(self.blocks.len());
        let describe = self.pool.has_journal();
        for first in range.clone().step_by(PUBLISHED_AT_ONCE) {
            let piece = first..range.end.min(first + PUBLISHED_AT_ONCE);
            // Described before the lock is taken, to keep it short.
            let mut described: Vec<Arc<IndexedBlock>> = Vec::new();
            if describe {
                described.extend(piece.clone().map(|block| Arc::new(IndexedBlock::new(chain, tokens, block))));
            }
            let mut described = described.into_iter();
            let blocks = &self.blocks;
            self.pool.with(|state| {
                if !state.closed {
                    for index in piece {
                        state.blocks.publish(blocks[index], chain.hashes()[index], described.next());
                    }
                }
            });
        }
    }

    /// Returns all blocks to the pool; the table stays usable.
    pub fn clear(&mut self) {
        let Some(key) = self.key else { return };
        self.blocks.clear();
        self.pool.with(|state| {
            let table = &mut state.tables[key as usize];
            table.computed = 0;
            let blocks = std::mem::take(&mut table.blocks);
            state.blocks.release_all(&blocks);
        });
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.pool.with(|state| state.drop_table(key));
        }
    }
}
