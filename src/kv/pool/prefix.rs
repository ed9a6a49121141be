//! The prefix index: full, computed blocks by the name of their prefix, and which of them to evict first.

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

/// Blocks by name. Those that nothing but the index owns are *idle*: they stand in a list, least recently used
/// first, linked through the nodes so that every change is O(1).
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

    /// Blocks that only the index owns.
    pub fn idle(&self) -> usize {
        self.idle
    }

    /// All blocks with a name, in no order.
    pub fn blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.by_hash.values().copied()
    }

    /// Names a block that somebody else owns too. False if the name or the block is taken.
    pub fn insert(&mut self, hash: BlockHash, block: BlockId) -> bool {
        if self.contains(block) || self.by_hash.contains_key(&hash) {
            return false;
        }
        self.by_hash.insert(hash, block);
        self.nodes[block as usize].hash = Some(hash);
        true
    }

    /// The last other owner let go: evictable from now on, after all that are idle already.
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

    /// An idle block got another owner.
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

    /// The idle blocks, the next to evict first.
    pub fn idle_blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        let step = |block: u32| (block != NONE).then_some(block);
        std::iter::successors(step(self.oldest), move |&block| step(self.nodes[block as usize].next))
    }

    /// Is this block named `hash` both ways round?
    pub fn is_consistent(&self, block: BlockId) -> bool {
        self.nodes[block as usize].hash.is_some_and(|hash| self.get(&hash) == Some(block))
    }
}
