//! Blocks and their owners: tables, the free list and the prefix index. The layer above holds the lock around them.

use super::blocks::Blocks;
use crate::backend::BlockId;
use crate::sync::Arc;

/// Called once, from whatever thread made true what was waited for, with no lock held. Must not block.
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
    /// Tokens whose KV is final, where peers pull a prompt while it is computed. What takes blocks away or makes them
    /// writable lowers it under the same lock.
    pub computed: u32,
    /// How many tables had this key before.
    life: u64,
}

/// A table, for somebody who may outlive it: by then its key may be another's.
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
    /// Nothing enters the prefix index any more.
    pub closed: bool,
    /// Wakers to call once the lock is dropped.
    pub fire: Vec<Waker>,
    /// Engines short of blocks: how many must be available before it is worth trying again.
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

    /// Registers a table whose blocks are counted for it already.
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

    /// A table that shares `blocks` with whoever holds them.
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

    /// None once the table was dropped.
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
