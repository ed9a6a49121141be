//! The block pool: who may hand out a block, counted by references.

use super::hash::BlockHash;
use super::prefix::PrefixIndex;
use crate::backend::BlockId;

/// Free list, reference counts and prefix index of one pool. A block's count is the number of tables that hold
/// it, plus one while the prefix index does; it is free exactly when the count is 0.
pub(in crate::kv) struct Blocks {
    pub(in crate::kv) refs: Vec<u32>,
    pub(in crate::kv) free: Vec<BlockId>,
    pub(in crate::kv) index: PrefixIndex,
}

impl Blocks {
    pub fn new(n_blocks: u32) -> Blocks {
        Blocks {
            refs: vec![0; n_blocks as usize],
            free: (0..n_blocks).rev().collect(),
            index: PrefixIndex::new(n_blocks as usize),
        }
    }

    /// Blocks that can be had now: free ones and those that only the prefix index holds.
    pub fn available(&self) -> usize {
        self.free.len() + self.index.idle()
    }

    /// Appends `n` blocks to `out`, each with one reference; evicts when the free list is empty. All or nothing.
    pub fn allocate(&mut self, n: usize, out: &mut Vec<BlockId>) -> bool {
        if n > self.available() {
            return false;
        }
        for _ in 0..n {
            let Some(block) = self.free.pop().or_else(|| self.index.evict()) else { return false };
            self.refs[block as usize] = 1;
            out.push(block);
        }
        true
    }

    /// One more table holds `block`.
    pub fn retain(&mut self, block: BlockId) {
        let refs = &mut self.refs[block as usize];
        *refs += 1;
        if *refs == 2 && self.index.contains(block) {
            // The one reference was the index's.
            self.index.set_busy(block);
        }
    }

    /// A table lets go of `block`.
    pub fn release(&mut self, block: BlockId) {
        let refs = &mut self.refs[block as usize];
        *refs -= 1;
        match *refs {
            0 => self.free.push(block),
            1 if self.index.contains(block) => self.index.set_idle(block),
            _ => {}
        }
    }

    /// A table lets go of a run of blocks: the tail first, so that a chain is evicted from its end.
    pub fn release_all(&mut self, blocks: &[BlockId]) {
        blocks.iter().rev().for_each(|&block| self.release(block));
    }

    /// Somebody beside the one asking holds `block`: it must not be written.
    pub fn is_shared(&self, block: BlockId) -> bool {
        self.refs[block as usize] > 1
    }

    /// Enters a block that a table holds. The first block of a name stays.
    pub fn publish(&mut self, block: BlockId, hash: BlockHash) {
        if self.index.insert(hash, block) {
            self.refs[block as usize] += 1;
        }
    }

    /// Appends the longest run of indexed blocks of `chain` to `out`, each with one more reference.
    pub fn adopt(&mut self, chain: &[BlockHash], out: &mut Vec<BlockId>) {
        for hash in chain {
            let Some(block) = self.index.get(hash) else { break };
            self.retain(block);
            out.push(block);
        }
    }

    /// Forgets every idle block of the prefix index.
    pub fn evict_all(&mut self) {
        while let Some(block) = self.index.evict() {
            self.refs[block as usize] = 0;
            self.free.push(block);
        }
    }
}
