//! Everything that a cache's mutex guards: blocks, tables, handles, deadlines and waiters.

use std::collections::BTreeSet;
use std::time::Duration;

use super::slots::{Body, End, Export, KvId, Progress, Slots};
use crate::backend::BlockId;
use crate::bail;
use crate::error::Result;
use crate::kv::pool::{Owner, PoolState, TableKey};
use crate::sequence::Snapshot;
use crate::sync::{Arc, Instant};

/// Longest lease; longer ones are cut to it. The C API counts milliseconds in 32 bits.
const LONGEST_LEASE: Duration = Duration::from_millis(u32::MAX as u64);

pub(in crate::kv) struct CacheState {
    pub pool: PoolState,
    pub slots: Slots,
    /// End of each lease, with its slot.
    pub deadlines: BTreeSet<(Instant, u32)>,
    /// Time until which the lease timer sleeps. It is not woken when a deadline is removed, so a steady flow of handles wakes
    /// it once per lease.
    pub armed: Option<Instant>,
    /// The timer must be woken, because a deadline before `armed` was added.
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

    /// Makes a new handle for a table, which then belongs to the handle.
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

    /// Puts a snapshot and its table into a slot, and starts the lease.
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

    /// Turns a handle that was waiting for its KV into a failed one, and starts its lease.
    pub fn fail(&mut self, slot: u32, error: crate::error::Error, lease: Duration, sequence: Option<Arc<Snapshot>>) {
        let deadline = self.deadline(slot, lease);
        *self.slots.body_mut(slot) = Body::Failed { error, deadline, sequence };
    }

    /// Slot of the live handle `id`. EXPIRED if it is claimed, as if it had been consumed.
    pub fn find(&mut self, id: KvId) -> Result<u32> {
        let slot = self.find_claimed(id)?;
        self.slots.find(id).map(|_| slot)
    }

    /// Slot of a live handle, claimed or not: for the side that fills it and for the request that claimed it.
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

    /// Slot and content of the live handle `id`. WOULD_BLOCK while its KV is on the way; the failure if that failed.
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

    /// Sequence of a live handle, whatever the state of its KV. None if it failed before its sequence was known.
    pub fn sequence(&self, slot: u32) -> Option<Arc<Snapshot>> {
        match self.slots.body(slot) {
            Body::Importing { sequence, .. } => Some(sequence.clone()),
            Body::Failed { sequence, .. } => sequence.clone(),
            Body::StreamingExport(progress) => Some(progress.prompt.clone()),
            Body::Ready(export) => Some(export.snapshot.clone()),
            Body::Vacant => None,
        }
    }

    /// Ends a handle and returns its content.
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

    /// Ends a handle, returns its blocks to the pool, and wakes its waiters.
    pub fn end_and_free(&mut self, slot: u32, end: End) {
        match self.end(slot, end) {
            Body::Ready(export) => self.pool.drop_table(export.table),
            Body::Importing { wakers, .. } | Body::StreamingExport(Progress { wakers, .. }) => {
                self.pool.fire.extend(wakers)
            }
            Body::Failed { .. } | Body::Vacant => {}
        }
    }

    /// Makes the lease of `slot` end `lease` from now.
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

    /// Gives the handle to a request. Its lease becomes the longest there is, now or when its KV arrives.
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
