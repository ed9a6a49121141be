//! Blocks and their owners: tables, the free list and the prefix index. The layer above owns the lock around them.

use super::blocks::Blocks;
use crate::backend::BlockId;
use crate::sync::Arc;

/// Callback of a waiter. Called once, without a lock, on the thread that made the awaited condition true. Must not block.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// Kind of owner of a block table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kv) enum Owner {
    Vacant,
    Request,
    Export,
    Transfer,
}

/// Index into [`PoolState::tables`].
pub(in crate::kv) type TableKey = u32;

pub(in crate::kv) struct Table {
    pub owner: Owner,
    pub blocks: Vec<BlockId>,
    /// Number of tokens whose KV is final, for peers that pull a prompt while it is computed. Operations that remove blocks or
    /// make them writable lower it under the same lock.
    pub computed: u32,
    /// Number of tables that had this key before.
    life: u64,
}

/// Reference to a table that may be dropped before the reference is; its key may then be reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kv) struct TableId {
    key: TableKey,
    life: u64,
}

/// Blocks and the tables that hold them.
pub(in crate::kv) struct PoolState {
    pub blocks: Blocks,
    pub tables: Vec<Table>,
    pub vacant: Vec<TableKey>,
    /// The cache is closed: nothing enters the prefix index any more.
    pub closed: bool,
    /// Wakers to call once the lock is dropped.
    pub fire: Vec<Waker>,
    /// Engines that wait for blocks, with the number of available blocks at which to wake each.
    pub short: Vec<(usize, Waker)>,
}

impl PoolState {
    pub fn new(n_blocks: u32) -> PoolState {
        PoolState {
            blocks: Blocks::new(n_blocks),
            tables: Vec::new(),
            vacant: Vec::new(),
            closed: false,
            fire: Vec::new(),
            short: Vec::new(),
        }
    }

    /// Registers a table. The caller has already counted a reference to each of its blocks.
    pub fn add_table(&mut self, owner: Owner, blocks: Vec<BlockId>) -> TableKey {
        match self.vacant.pop() {
            Some(key) => {
                let table = &mut self.tables[key as usize];
                (table.owner, table.blocks) = (owner, blocks);
                key
            }
            None => {
                self.tables.push(Table { owner, blocks, computed: 0, life: 0 });
                self.tables.len() as TableKey - 1
            }
        }
    }

    /// Makes a table that shares `blocks` with their present owners.
    pub fn share(&mut self, owner: Owner, blocks: &[BlockId]) -> TableKey {
        blocks.iter().for_each(|&block| self.blocks.retain(block));
        self.add_table(owner, blocks.to_vec())
    }

    /// Returns a table's blocks and forgets it.
    pub fn drop_table(&mut self, key: TableKey) {
        let table = &mut self.tables[key as usize];
        table.owner = Owner::Vacant;
        table.computed = 0;
        table.life += 1;
        let blocks = std::mem::take(&mut table.blocks);
        self.vacant.push(key);
        self.blocks.release_all(&blocks);
    }

    pub fn table_id(&self, key: TableKey) -> TableId {
        TableId { key, life: self.tables[key as usize].life }
    }

    /// The table of `id`; None once it was dropped.
    pub fn table(&self, id: TableId) -> Option<&Table> {
        self.tables.get(id.key as usize).filter(|table| table.life == id.life)
    }

    pub fn table_mut(&mut self, id: TableId) -> Option<&mut Table> {
        self.tables.get_mut(id.key as usize).filter(|table| table.life == id.life)
    }

    /// Wakers that are due, to be called without the lock.
    pub fn due(&mut self) -> Vec<Waker> {
        if !self.short.is_empty() {
            let available = self.blocks.available();
            for (_, waker) in self.short.extract_if(.., |(needed, _)| *needed <= available) {
                self.fire.push(waker);
            }
        }
        std::mem::take(&mut self.fire)
    }
}
