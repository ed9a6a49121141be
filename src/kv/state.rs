//! Everything of a cache that its one mutex guards: blocks, tables, handles, deadlines, and who waits for what.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Waker;
use super::blocks::Blocks;
use super::handle::{Body, End, Export, KvId, Slots};
use super::streaming::Progress;
use crate::backend::BlockId;
use crate::bail;
use crate::error::Result;
use crate::sequence::Snapshot;
use crate::sync::{Arc, Instant};

/// What kind of owner a block table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Vacant,
    Request,
    Export,
    Transfer,
}

/// Index into [`PoolState::tables`].
pub(super) type TableKey = u32;

pub(super) struct Table {
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
pub(super) struct TableId {
    key: TableKey,
    life: u64,
}

/// Leases longer than this are cut: the C API counts them in 32 bits of milliseconds.
const LONGEST_LEASE: Duration = Duration::from_millis(u32::MAX as u64);

pub(super) struct PoolState {
    pub blocks: Blocks,
    pub tables: Vec<Table>,
    pub vacant: Vec<TableKey>,
    pub slots: Slots,
    /// When which slot's lease is over.
    pub deadlines: BTreeSet<(Instant, u32)>,
    /// Until when the lease timer sleeps. It is not woken for a deadline that goes away, so a steady flow of
    /// handles costs it one look per lease.
    pub armed: Option<Instant>,
    /// A deadline before `armed` was added: wake the timer.
    pub poke: bool,
    pub epoch: [u8; 16],
    pub closed: bool,
    /// Wakers to call once the lock is dropped.
    pub fire: Vec<Waker>,
    /// Engines short of blocks: how many must be available before it is worth trying again.
    pub short: Vec<(usize, Waker)>,
}

impl PoolState {
    pub fn new(n_blocks: u32, nonce: u32, epoch: [u8; 16]) -> PoolState {
        PoolState {
            blocks: Blocks::new(n_blocks),
            tables: Vec::new(),
            vacant: Vec::new(),
            slots: Slots::new(nonce),
            deadlines: BTreeSet::new(),
            armed: None,
            poke: false,
            epoch,
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

    /// What was claimed has an owner, and is not ended by a lease while that one is busy.
    fn deadline(&mut self, slot: u32, lease: Duration) -> Instant {
        let lease = if self.slots.is_claimed(slot) { LONGEST_LEASE } else { lease };
        let deadline = Instant::now() + lease.min(LONGEST_LEASE);
        self.deadlines.insert((deadline, slot));
        self.poke |= self.armed.is_none_or(|armed| deadline < armed);
        deadline
    }

    /// A new handle for a table, which becomes the export's.
    pub fn export(
        &mut self,
        snapshot: Arc<Snapshot>,
        table: TableKey,
        blocks: Vec<BlockId>,
        lease: Duration,
    ) -> Result<KvId> {
        let (id, slot) = self.slots.issue(Body::Vacant)?;
        self.fill(slot, snapshot, table, blocks, lease);
        Ok(id)
    }

    /// Puts a snapshot and its table into a slot; the lease begins.
    pub fn fill(
        &mut self,
        slot: u32,
        mut snapshot: Arc<Snapshot>,
        table: TableKey,
        blocks: Vec<BlockId>,
        lease: Duration,
    ) {
        let deadline = self.deadline(slot, lease);
        self.tables[table as usize].owner = Owner::Export;
        let body = self.slots.body_mut(slot);
        let prompt = match body {
            Body::StreamingExport(progress) => {
                self.fire.append(&mut progress.wakers);
                // The host may have set it on the handle since the prompt was submitted.
                if snapshot.host_data != progress.prompt.host_data {
                    Arc::make_mut(&mut snapshot).host_data.clone_from(&progress.prompt.host_data);
                }
                Some(progress.prompt.clone())
            }
            _ => None,
        };
        *body = Body::Ready(Export { snapshot, table, blocks, lease, deadline, head: None, chain: None, prompt });
    }

    /// Turns a handle that was to be filled into a failed one, under a lease of its own.
    pub fn fail(&mut self, slot: u32, error: crate::error::Error, lease: Duration, sequence: Option<Arc<Snapshot>>) {
        let deadline = self.deadline(slot, lease);
        *self.slots.body_mut(slot) = Body::Failed { error, deadline, sequence };
    }

    /// The live handle `id`: its slot. One that was claimed is consumed.
    pub fn find(&mut self, id: KvId) -> Result<u32> {
        let slot = self.find_claimed(id)?;
        self.slots.find(id).map(|_| slot)
    }

    /// The same for the side that fills a handle and the one that claimed it.
    pub fn find_claimed(&mut self, id: KvId) -> Result<u32> {
        if self.closed {
            bail!(Shutdown, "{id}: the cache is closed");
        }
        let slot = self.slots.find_claimed(id)?;
        let deadline = match self.slots.body(slot) {
            Body::Ready(export) => Some(export.deadline),
            Body::Failed { deadline, .. } => Some(*deadline),
            _ => None,
        };
        // The timer may be a moment late; the lease is not.
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            self.end_and_free(slot, End::LeaseOver);
            bail!(Expired, "{id}: its lease is over");
        }
        Ok(slot)
    }

    /// The live handle `id` with something in it: an import on its way is WOULD_BLOCK, a failed one its failure.
    pub fn ready(&mut self, id: KvId) -> Result<(u32, &mut Export)> {
        let slot = self.find(id)?;
        match self.slots.body_mut(slot) {
            Body::Ready(export) => Ok((slot, export)),
            Body::Failed { error, .. } => Err(error.clone()),
            Body::Importing { .. } => bail!(WouldBlock, "{id}: its import is in flight"),
            Body::StreamingExport(_) => bail!(WouldBlock, "{id}: its prompt is being computed"),
            Body::Vacant => bail!(Internal, "{id}: live, but its slot is empty"),
        }
    }

    /// The sequence of a live handle, wherever its KV is; None of one that failed before its sequence was known.
    pub fn sequence(&self, slot: u32) -> Option<Arc<Snapshot>> {
        match self.slots.body(slot) {
            Body::Importing { sequence, .. } => Some(sequence.clone()),
            Body::Failed { sequence, .. } => sequence.clone(),
            Body::StreamingExport(progress) => Some(progress.prompt.clone()),
            Body::Ready(export) => Some(export.snapshot.clone()),
            Body::Vacant => None,
        }
    }

    /// Ends a handle and takes what it held.
    pub fn end(&mut self, slot: u32, end: End) -> Body {
        let body = self.slots.end(slot, end);
        match &body {
            Body::Ready(Export { deadline, .. }) | Body::Failed { deadline, .. } => {
                self.deadlines.remove(&(*deadline, slot));
            }
            _ => {}
        }
        body
    }

    /// Ends a handle; what it held goes back, who waited for it is woken.
    pub fn end_and_free(&mut self, slot: u32, end: End) {
        match self.end(slot, end) {
            Body::Ready(export) => self.drop_table(export.table),
            Body::Importing { wakers, .. } | Body::StreamingExport(Progress { wakers, .. }) => self.fire.extend(wakers),
            Body::Failed { .. } | Body::Vacant => {}
        }
    }

    /// The lease of `slot` is `lease` from now on.
    pub fn renew(&mut self, slot: u32, lease: Duration) {
        let old = match self.slots.body(slot) {
            Body::Ready(export) => export.deadline,
            _ => return,
        };
        self.deadlines.remove(&(old, slot));
        let new = self.deadline(slot, lease);
        if let Body::Ready(export) = self.slots.body_mut(slot) {
            (export.deadline, export.lease) = (new, lease);
        }
    }

    /// A request takes the handle. If it has landed since it was asked for, no lease ends it from now on either.
    pub fn claim(&mut self, slot: u32) {
        self.slots.claim(slot);
        let old = match self.slots.body(slot) {
            Body::Ready(Export { deadline, .. }) | Body::Failed { deadline, .. } => *deadline,
            _ => return,
        };
        self.deadlines.remove(&(old, slot));
        let new = self.deadline(slot, LONGEST_LEASE);
        if let Body::Ready(Export { deadline, .. }) | Body::Failed { deadline, .. } = self.slots.body_mut(slot) {
            *deadline = new;
        }
    }

    /// Ends every handle whose lease is over.
    pub fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, slot)) = self.deadlines.first() {
            if deadline > now {
                return;
            }
            self.end_and_free(slot, End::LeaseOver);
        }
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
