//! Everything of a cache that its one mutex guards: blocks, tables, handles, deadlines, and who waits for what.

use std::collections::BTreeSet;
use std::time::Duration;

use super::slots::{Body, End, Export, KvId, Progress, Slots};
use crate::backend::BlockId;
use crate::bail;
use crate::error::Result;
use crate::kv::pool::{Owner, PoolState, TableKey};
use crate::sequence::Snapshot;
use crate::sync::{Arc, Instant};

/// Leases longer than this are cut: the C API counts them in 32 bits of milliseconds.
const LONGEST_LEASE: Duration = Duration::from_millis(u32::MAX as u64);

pub(in crate::kv) struct CacheState {
    pub pool: PoolState,
    pub slots: Slots,
    /// When which slot's lease is over.
    pub deadlines: BTreeSet<(Instant, u32)>,
    /// Until when the lease timer sleeps. It is not woken for a deadline that goes away, so a steady flow of
    /// handles costs it one look per lease.
    pub armed: Option<Instant>,
    /// A deadline before `armed` was added: wake the timer.
    pub poke: bool,
    pub epoch: [u8; 16],
}

impl CacheState {
    pub fn new(n_blocks: u32, nonce: u32, epoch: [u8; 16]) -> CacheState {
        CacheState {
            pool: PoolState::new(n_blocks),
            slots: Slots::new(nonce),
            deadlines: BTreeSet::new(),
            armed: None,
            poke: false,
            epoch,
        }
    }

    /// Starts the lease of `slot`. A claimed handle belongs to a request, so it gets the longest lease there is.
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
        self.pool.tables[table as usize].owner = Owner::Export;
        let body = self.slots.body_mut(slot);
        let prompt = match body {
            Body::StreamingExport(progress) => {
                self.pool.fire.append(&mut progress.wakers);
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
        if self.pool.closed {
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
            Body::Ready(export) => self.pool.drop_table(export.table),
            Body::Importing { wakers, .. } | Body::StreamingExport(Progress { wakers, .. }) => {
                self.pool.fire.extend(wakers)
            }
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
}
