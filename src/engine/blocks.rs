//! The scheduler's view of the block pool: an engine's sequences and their tables.

use super::running::RunningRequest;
use super::shared::EngineShared;
use crate::scheduler::{Blocks, SeqId};
use std::collections::HashMap;

pub(super) struct ActiveBlocks<'a> {
    shared: &'a EngineShared,
    active: &'a mut HashMap<u64, RunningRequest>,
    /// Prompt tokens that prefix-cache hits saved.
    pub prefix_hits: u64,
}

impl<'a> ActiveBlocks<'a> {
    pub fn new(shared: &'a EngineShared, active: &'a mut HashMap<u64, RunningRequest>) -> Self {
        ActiveBlocks { shared, active, prefix_hits: 0 }
    }
}

impl Blocks for ActiveBlocks<'_> {
    fn reserve(&mut self, seq: SeqId, computed: usize, upto: usize) -> bool {
        self.active.get_mut(&seq).is_some_and(|a| a.table.reserve(computed as u32, upto as u32))
    }

    fn attach_prefix(&mut self, seq: SeqId) -> usize {
        let Some(active) = self.active.get_mut(&seq) else { return 0 };
        let hit = self.shared.cache.adopt_prefix(active);
        active.prefix_hit = Some(hit as u32);
        self.prefix_hits += hit as u64;
        hit
    }

    fn release(&mut self, seq: SeqId) {
        if let Some(active) = self.active.get_mut(&seq) {
            active.snapshot.computed = 0;
            active.table.clear();
            active.published = 0;
        }
    }
}
