//! The KV blocks of a running sequence, and what the prefix cache knows of them.

use super::ModelCache;
use crate::backend::BlockId;
use crate::kv::{BlockTable, HashChain};
use crate::sequence::Snapshot;

/// A sequence's block table, with the hashes that name its full blocks in the prefix index.
pub(super) struct SequenceBlocks {
    table: BlockTable,
    /// Hashes of the blocks of the tokens known so far; grows with them.
    chain: HashChain,
    /// Leading blocks that are in the prefix index already.
    published: usize,
}

impl SequenceBlocks {
    pub fn new(cache: &ModelCache, snapshot: &Snapshot, table: BlockTable) -> SequenceBlocks {
        SequenceBlocks { table, chain: cache.hash_chain(snapshot), published: 0 }
    }

    pub fn ids(&self) -> &[BlockId] {
        self.table.blocks()
    }

    /// Makes room for tokens `0..upto`, of which `0..computed` are there. All or nothing.
    pub fn reserve(&mut self, computed: u32, upto: u32) -> bool {
        self.table.reserve(computed, upto)
    }

    /// Gives an empty table the longest cached run of blocks that leaves at least one token to compute. The number of its
    /// tokens.
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

    /// Puts the blocks that the last step filled into the prefix index.
    pub fn publish(&mut self, cache: &ModelCache, snapshot: &Snapshot) {
        let full = cache.shareable_tokens(snapshot) / cache.block_tokens();
        if full <= self.published {
            return;
        }
        self.chain.extend(&snapshot.tokens[self.chain.len_tokens()..]);
        for block in self.published..full {
            self.table.publish(block, self.chain.hashes()[block]);
        }
        self.published = full;
    }

    /// Gives all blocks back.
    pub fn clear(&mut self) {
        self.table.clear();
        self.published = 0;
    }

    pub fn into_parts(self) -> (BlockTable, HashChain) {
        (self.table, self.chain)
    }
}
