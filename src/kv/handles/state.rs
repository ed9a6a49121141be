//! Everything that a cache's mutex guards: blocks, handles, and what a change to one means for the other.

use std::time::Duration;

use super::table::{Body, End, Export, HandleTable, Importing, Progress};
use crate::backend::BlockId;
use crate::bail;
use crate::error::{Error, Result};
use crate::kv::format::KvId;
use crate::kv::pool::{Owner, PoolState, TableKey};
use crate::sequence::Snapshot;
use crate::sync::{Arc, Instant};

pub(in crate::kv) struct CacheState {
    pub pool: PoolState,
    pub handles: HandleTable,
}

impl CacheState {
    pub fn new(n_blocks: u32, nonce: u32) -> CacheState {
        CacheState { pool: PoolState::new(n_blocks), handles: HandleTable::new(nonce) }
    }

    /// Slot of the live handle `id`. EXPIRED if it is claimed, as if it had been consumed.
    pub fn find(&mut self, id: KvId) -> Result<u32> {
        let slot = self.find_claimed(id)?;
        if self.handles.is_claimed(slot) {
            bail!(Expired, "{id}: consumed already");
        }
        Ok(slot)
    }

    /// Slot of a live handle, claimed or not: for the side that fills it and for the request that claimed it.
    pub fn find_claimed(&mut self, id: KvId) -> Result<u32> {
        if self.pool.closed {
            bail!(Shutdown, "{id}: the cache is closed");
        }
        let slot = self.handles.find(id)?;
        // The timer may be a moment late; the lease is not.
        if self.handles.body(slot).deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            self.end_and_free(slot, End::LeaseOver);
            bail!(Expired, "{id}: its lease is over");
        }
        Ok(slot)
    }

    /// Slot and content of the live handle `id`. WOULD_BLOCK while its KV is on the way; the failure if that failed.
    pub fn ready(&mut self, id: KvId) -> Result<(u32, &Export)> {
        let slot = self.find(id)?;
        match self.handles.body(slot) {
            Body::Ready(export) => Ok((slot, export)),
            Body::Failed(failed) => Err(failed.error.clone()),
            Body::Importing(_) => bail!(WouldBlock, "{id}: its import is in flight"),
            Body::StreamingExport(_) => bail!(WouldBlock, "{id}: its prompt is being computed"),
            Body::Vacant => bail!(Internal, "{id}: live, but its slot is empty"),
        }
    }

    /// Makes a handle whose KV is on its way.
    pub fn expect(&mut self, body: Body) -> Result<KvId> {
        if self.pool.closed {
            bail!(Shutdown, "the cache is closed");
        }
        self.handles.issue(body)
    }

    /// Makes a handle of a sequence and its table, which then belongs to the handle.
    pub fn export(
        &mut self,
        snapshot: Arc<Snapshot>,
        table: TableKey,
        blocks: Vec<BlockId>,
        lease: Duration,
    ) -> Result<KvId> {
        let id = self.handles.issue_ready(snapshot, table, blocks, lease)?;
        self.pool.tables[table as usize].owner = Owner::Export;
        Ok(id)
    }

    /// Gives a handle whose KV was on its way the sequence and its table, which then belongs to the handle.
    pub fn arrive(
        &mut self,
        slot: u32,
        snapshot: Arc<Snapshot>,
        table: TableKey,
        blocks: Vec<BlockId>,
        lease: Duration,
    ) {
        self.pool.tables[table as usize].owner = Owner::Export;
        let wakers = self.handles.arrive(slot, snapshot, table, blocks, lease);
        self.pool.fire.extend(wakers);
    }

    /// Marks a handle whose KV was on its way as failed, and begins its lease.
    pub fn fail(&mut self, slot: u32, error: Error, lease: Duration) {
        let wakers = self.handles.fail(slot, error, lease);
        self.pool.fire.extend(wakers);
    }

    /// Ends a handle because a request takes its sequence, and gives the request its table. None while the KV is on its way.
    pub fn consume(&mut self, id: KvId, slot: u32) -> Result<Option<Export>> {
        match self.handles.body(slot) {
            Body::Importing(_) | Body::StreamingExport(_) => return Ok(None),
            Body::Failed(failed) => return Err(failed.error.clone()),
            Body::Ready(_) | Body::Vacant => {}
        }
        match self.handles.end(slot, End::Consumed) {
            Body::Ready(export) => {
                self.pool.tables[export.table as usize].owner = Owner::Request;
                Ok(Some(export))
            }
            _ => bail!(Internal, "{id}: live, but its slot is empty"),
        }
    }

    /// Ends a handle, returns its blocks to the pool, and wakes its waiters.
    pub fn end_and_free(&mut self, slot: u32, end: End) {
        match self.handles.end(slot, end) {
            Body::Ready(export) => self.pool.drop_table(export.table),
            Body::Importing(Importing { wakers, .. }) | Body::StreamingExport(Progress { wakers, .. }) => {
                self.pool.fire.extend(wakers)
            }
            Body::Failed(_) | Body::Vacant => {}
        }
    }

    /// Ends every handle whose lease is over.
    pub fn expire(&mut self, now: Instant) {
        while let Some(slot) = self.handles.leases().over(now) {
            self.end_and_free(slot, End::LeaseOver);
        }
    }

    /// Ends every handle and empties the prefix index.
    pub fn end_all(&mut self) {
        let live: Vec<u32> = self.handles.live().map(|(slot, _)| slot).collect();
        live.into_iter().for_each(|slot| self.end_and_free(slot, End::LeaseOver));
        self.pool.blocks.evict_all();
    }
}
