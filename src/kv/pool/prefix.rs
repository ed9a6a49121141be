//! The prefix index: full, computed blocks by the hash of their prefix, and the order of their eviction.

use std::collections::HashMap;

use super::hash::BlockHash;
use crate::backend::BlockId;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Node {
    hash: Option<BlockHash>,
    prev: u32,
    next: u32,
}

/// Blocks by hash. Those that only the index owns are *idle*: they form a list, least recently used first, linked through
/// the nodes so that every change is O(1).
pub(in crate::kv) struct PrefixIndex {
    by_hash: HashMap<BlockHash, BlockId>,
    nodes: Vec<Node>,
    oldest: u32,
    newest: u32,
    idle: usize,
}

impl PrefixIndex {
    pub fn new(n_blocks: usize) -> PrefixIndex {
        let nodes = vec![Node { hash: None, prev: NONE, next: NONE }; n_blocks];
        PrefixIndex { by_hash: HashMap::new(), nodes, oldest: NONE, newest: NONE, idle: 0 }
    }

    pub fn get(&self, hash: &BlockHash) -> Option<BlockId> {
        self.by_hash.get(hash).copied()
    }

    pub fn contains(&self, block: BlockId) -> bool {
        self.nodes[block as usize].hash.is_some()
    }

    /// Number of blocks that only the index owns.
    pub fn idle(&self) -> usize {
        self.idle
    }

    /// Number of indexed blocks.
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// All indexed blocks, in no particular order.
    pub fn blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.by_hash.values().copied()
    }

    /// Enters a block that a table owns too. Returns false if the hash or the block is in the index already.
    pub fn insert(&mut self, hash: BlockHash, block: BlockId) -> bool {
        if self.contains(block) || self.by_hash.contains_key(&hash) {
            return false;
        }
        self.by_hash.insert(hash, block);
        self.nodes[block as usize].hash = Some(hash);
        true
    }

    /// Marks a block as idle, because its last other owner released it. It is evicted after all blocks idle already.
    pub fn set_idle(&mut self, block: BlockId) {
        let node = &mut self.nodes[block as usize];
        (node.prev, node.next) = (self.newest, NONE);
        match self.newest {
            NONE => self.oldest = block,
            newest => self.nodes[newest as usize].next = block,
        }
        self.newest = block;
        self.idle += 1;
    }

    /// Marks an idle block as in use, because a table took it.
    pub fn set_busy(&mut self, block: BlockId) {
        let Node { prev, next, .. } = self.nodes[block as usize];
        match prev {
            NONE => self.oldest = next,
            prev => self.nodes[prev as usize].next = next,
        }
        match next {
            NONE => self.newest = prev,
            next => self.nodes[next as usize].prev = prev,
        }
        self.idle -= 1;
    }

    /// Takes the least recently used idle block out of the index.
    pub fn evict(&mut self) -> Option<BlockId> {
        let block = self.oldest;
        if block == NONE {
            return None;
        }
        self.set_busy(block);
        if let Some(hash) = self.nodes[block as usize].hash.take() {
            self.by_hash.remove(&hash);
        }
        Some(block)
    }

    /// Idle blocks, in the order of eviction.
    pub fn idle_blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        let step = |block: u32| (block != NONE).then_some(block);
        std::iter::successors(step(self.oldest), move |&block| step(self.nodes[block as usize].next))
    }

    /// Whether the index maps `hash` to this block and the block to `hash`.
    pub fn is_consistent(&self, block: BlockId) -> bool {
        self.nodes[block as usize].hash.is_some_and(|hash| self.get(&hash) == Some(block))
    }
}
