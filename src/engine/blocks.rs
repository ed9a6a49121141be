//! The KV blocks of a running sequence, and their entries in the prefix index.

use super::ModelCache;
use crate::backend::BlockId;
use crate::kv::{BlockTable, HashChain};
use crate::sequence::Snapshot;

/// A sequence's block table, with the hashes that name its full blocks in the prefix index.
pub(super) struct SequenceBlocks {
    table: BlockTable,
    /// Hashes of the full blocks of the tokens known so far.
    chain: HashChain,
    /// Number of leading blocks that are already in the prefix index.
    published: usize,
}

impl SequenceBlocks {
    /// Blocks of a sequence that starts with `table`.
    pub fn new(cache: &ModelCache, snapshot: &Snapshot, table: BlockTable) -> SequenceBlocks {
        SequenceBlocks { table, chain: cache.hash_chain(snapshot), published: 0 }
    }

    /// The blocks in the order of their tokens.
    pub fn ids(&self) -> &[BlockId] {
        self.table.blocks()
    }

    /// Reserves blocks for the tokens `0..upto`, of which `0..computed` have their KV. Reserves all or, returning false, none.
    pub fn reserve(&mut self, computed: u32, upto: u32) -> bool {
        self.table.reserve(computed, upto)
    }

    /// Fills an empty table with the longest cached run of blocks that leaves at least one token to compute. Returns the
    /// number of tokens in that run.
    pub fn adopt_prefix(&mut self, cache: &ModelCache, snapshot: &Snapshot) -> usize {
        if !cache.is_shareable(snapshot) {
            return 0;
        }
        let tokens = &snapshot.tokens;
        self.chain.extend(&tokens[self.chain.len_tokens()..]);
        let most = (tokens.len() - 1) / cache.block_tokens();
        self.published = self.table.adopt_prefix(&self.chain.hashes()[..most]);
        self.published * cache.block_tokens()
    }

    /// Adds the blocks that the last step filled to the prefix index.
    pub fn publish(&mut self, cache: &ModelCache, snapshot: &Snapshot) {
        let full = cache.shareable_tokens(snapshot) / cache.block_tokens();
        if full <= self.published {
            return;
        }
        self.chain.extend(&snapshot.tokens[self.chain.len_tokens()..]);
        self.table.publish(self.published..full, &self.chain, &snapshot.tokens);
        self.published = full;
    }

    /// Returns all blocks to the pool.
    pub fn clear(&mut self) {
        self.table.clear();
        self.published = 0;
    }

    /// The block table and the hashes of its blocks, for an export.
    pub fn into_parts(self) -> (BlockTable, HashChain) {
        (self.table, self.chain)
    }
}
