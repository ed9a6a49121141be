//! The block pool: free list, reference counts and prefix index.

use super::events::IndexedBlock;
use super::hash::BlockHash;
use super::journal::Journal;
use super::prefix::PrefixIndex;
use crate::backend::BlockId;
use crate::sync::Arc;

/// Free list, reference counts and prefix index of one pool. A block's count is the number of tables that hold it, plus one
/// if the prefix index does. A block is free exactly when its count is 0.
pub(in crate::kv) struct Blocks {
    pub(in crate::kv) refs: Vec<u32>,
    pub(in crate::kv) free: Vec<BlockId>,
    pub(in crate::kv) index: PrefixIndex,
    /// Records what enters and leaves the index; None if nobody wants to know.
    pub(in crate::kv) journal: Option<Journal>,
}

impl Blocks {
    pub fn new(n_blocks: u32) -> Blocks {
        Blocks {
            refs: vec![0; n_blocks as usize],
            free: (0..n_blocks).rev().collect(),
            index: PrefixIndex::new(n_blocks as usize),
            journal: None,
        }
    }

    /// Number of blocks that can be allocated now: free ones, and those that only the prefix index holds.
    pub fn available(&self) -> usize {
        self.free.len() + self.index.idle()
    }

    /// Appends `n` blocks to `out`, each with one reference, evicting idle ones when the free list is empty. Returns false, and
    /// changes nothing, if there are not enough.
    pub fn allocate(&mut self, n: usize, out: &mut Vec<BlockId>) -> bool {
        if n > self.available() {
            return false;
        }
        for _ in 0..n {
            let Some(block) = self.free.pop().or_else(|| self.evict()) else { return false };
            self.refs[block as usize] = 1;
            out.push(block);
        }
        true
    }

    /// Counts one more table that holds `block`.
    pub fn retain(&mut self, block: BlockId) {
        let refs = &mut self.refs[block as usize];
        *refs += 1;
        if *refs == 2 && self.index.contains(block) {
            // The one reference was the index's.
            self.index.set_busy(block);
        }
    }

    /// Counts one table less that holds `block`.
    pub fn release(&mut self, block: BlockId) {
        let refs = &mut self.refs[block as usize];
        *refs -= 1;
        match *refs {
            0 => self.free.push(block),
            1 if self.index.contains(block) => self.index.set_idle(block),
            _ => {}
        }
    }

    /// Releases a table's blocks, the last first, so that a chain is evicted from its end.
    pub fn release_all(&mut self, blocks: &[BlockId]) {
        blocks.iter().rev().for_each(|&block| self.release(block));
    }

    /// Whether `block` has more than one owner, and so must not be written.
    pub fn is_shared(&self, block: BlockId) -> bool {
        self.refs[block as usize] > 1
    }

    /// Enters a block that a table holds into the prefix index. If the hash is there already, its block stays. `described` is
    /// for the journal.
    pub fn publish(&mut self, block: BlockId, hash: BlockHash, described: Option<Arc<IndexedBlock>>) {
        if self.index.insert(hash, block) {
            self.refs[block as usize] += 1;
            if let (Some(journal), Some(described)) = (&mut self.journal, described) {
                journal.stored(block, described);
            }
        }
    }

    /// Takes the least recently used idle block out of the prefix index.
    fn evict(&mut self) -> Option<BlockId> {
        let block = self.index.evict()?;
        if let Some(journal) = &mut self.journal {
            journal.removed(block);
        }
        Some(block)
    }

    /// Appends the longest run of indexed blocks of `chain` to `out`, each with one more reference.
    pub fn adopt(&mut self, chain: &[BlockHash], out: &mut Vec<BlockId>) {
        for hash in chain {
            let Some(block) = self.index.get(hash) else { break };
            self.retain(block);
            out.push(block);
        }
    }

    /// Evicts every idle block from the prefix index.
    pub fn evict_all(&mut self) {
        let all = self.index.idle() > 0 && self.index.idle() == self.index.len();
        if let Some(journal) = self.journal.as_mut().filter(|_| all) {
            journal.cleared();
        }
        while let Some(block) = self.evict() {
            self.refs[block as usize] = 0;
            self.free.push(block);
        }
    }
}
