//! The table of a cache's handles: their ids, states and leases. It alone writes them.
//!
//! Knows the keys of block tables, but does not touch the pool: what a change releases, blocks or wakers, it returns.

mod body;
mod leases;
mod slots;

use std::time::Duration;

pub(in crate::kv) use body::{Body, End, Export, Failed, ImageHead, Importing, Progress};
use leases::{LONGEST, Leases};
use slots::Slots;

use crate::backend::BlockId;
use crate::bail;
use crate::error::{Error, Result};
use crate::kv::format::KvId;
use crate::kv::pool::{BlockHash, TableKey, Waker};
use crate::sequence::Snapshot;
use crate::sync::{Arc, Instant};

pub(in crate::kv) struct HandleTable {
    slots: Slots,
    leases: Leases,
}

impl HandleTable {
    /// An empty table. The nonce is part of every id that it issues.
    pub fn new(nonce: u32) -> HandleTable {
        HandleTable { slots: Slots::new(nonce), leases: Leases::default() }
    }

    /// Makes a handle whose KV is on its way. It has no lease until the KV arrives.
    pub fn issue(&mut self, body: Body) -> Result<KvId> {
        self.slots.issue(body).map(|(id, _)| id)
    }

    /// Makes a handle of a sequence and its block table, and begins its lease.
    pub fn issue_ready(
        &mut self,
        snapshot: Arc<Snapshot>,
        table: TableKey,
        blocks: Vec<BlockId>,
        lease: Duration,
    ) -> Result<KvId> {
        let (id, slot) = self.slots.issue(Body::Vacant)?;
        self.arrive(slot, snapshot, table, blocks, lease);
        Ok(id)
    }

    /// Puts the sequence and its block table into a handle, begins its lease, and returns those who waited for the KV.
    pub fn arrive(
        &mut self,
        slot: u32,
        mut snapshot: Arc<Snapshot>,
        table: TableKey,
        blocks: Vec<BlockId>,
        lease: Duration,
    ) -> Vec<Waker> {
        let deadline = self.begin_lease(slot, lease);
        let body = self.slots.body_mut(slot);
        let wakers = body.wakers().map(std::mem::take).unwrap_or_default();
        // The host may have set its data on the handle while the KV was on its way.
        if let Some(sequence) = body.sequence()
            && sequence.host_data != snapshot.host_data
        {
            Arc::make_mut(&mut snapshot).host_data.clone_from(&sequence.host_data);
        }
        let prompt = match body {
            Body::StreamingExport(progress) => Some(progress.prompt.clone()),
            _ => None,
        };
        *body = Body::Ready(Export { snapshot, table, blocks, lease, deadline, head: None, chain: None, prompt });
        wakers
    }

    /// Marks a handle whose KV was on its way as failed, begins its lease, and returns those who waited.
    pub fn fail(&mut self, slot: u32, error: Error, lease: Duration) -> Vec<Waker> {
        let (wakers, sequence) = match self.slots.body_mut(slot) {
            Body::Importing(Importing { wakers, sequence, .. }) => (std::mem::take(wakers), sequence.clone()),
            Body::StreamingExport(Progress { wakers, prompt, .. }) => (std::mem::take(wakers), prompt.clone()),
            Body::Vacant | Body::Failed(_) | Body::Ready(_) => return Vec::new(),
        };
        let deadline = self.begin_lease(slot, lease);
        *self.slots.body_mut(slot) = Body::Failed(Failed { error, deadline, sequence });
        wakers
    }

    /// Begins the lease of `slot`. A claimed handle belongs to a request, so it gets the longest lease there is.
    fn begin_lease(&mut self, slot: u32, lease: Duration) -> Instant {
        let lease = if self.slots.is_claimed(slot) { LONGEST } else { lease };
        self.leases.begin(slot, lease)
    }

    /// Makes the lease of `slot` end `lease` from now. The lease of an import begins when its KV has arrived.
    pub fn renew(&mut self, slot: u32, lease: Duration) {
        if let Body::Ready(export) = self.slots.body_mut(slot) {
            self.leases.forget(slot, export.deadline);
            export.lease = lease;
            self.restart_lease(slot, lease);
        }
    }

    /// Gives the handle to a request, which `waker` tells when KV that is on its way has arrived. Its lease becomes the
    /// longest there is, now or when its KV arrives.
    pub fn claim(&mut self, slot: u32, waker: Waker) {
        self.slots.claim(slot);
        let body = self.slots.body_mut(slot);
        if let Some(wakers) = body.wakers() {
            wakers.push(waker);
        }
        if let Some(deadline) = body.deadline() {
            self.leases.forget(slot, deadline);
            self.restart_lease(slot, LONGEST);
        }
    }

    fn restart_lease(&mut self, slot: u32, lease: Duration) {
        let end = self.begin_lease(slot, lease);
        match self.slots.body_mut(slot) {
            Body::Ready(Export { deadline, .. }) | Body::Failed(Failed { deadline, .. }) => *deadline = end,
            Body::Vacant | Body::Importing(_) | Body::StreamingExport(_) => {}
        }
    }

    /// Replaces the host data of a handle's sequence. INVALID_ARGUMENT once the handle's image was read, because an image
    /// never changes.
    pub fn set_host_data(&mut self, id: KvId, slot: u32, data: &[u8]) -> Result<()> {
        let sequence = match self.slots.body_mut(slot) {
            Body::Ready(export) if export.head.is_some() => bail!(
                InvalidArgument,
                "{id}: host data: its image was read and cannot change; set it on a duplicate of the handle"
            ),
            Body::Ready(export) => &mut export.snapshot,
            Body::Importing(import) => &mut import.sequence,
            Body::StreamingExport(progress) => &mut progress.prompt,
            Body::Failed(failed) => return Err(failed.error.clone()),
            Body::Vacant => bail!(Internal, "{id}: live, but its slot is empty"),
        };
        Arc::make_mut(sequence).host_data = data.to_vec();
        Ok(())
    }

    /// Keeps the head of a handle's image, unless one is kept already, and returns the one that is kept.
    pub fn keep_head(&mut self, slot: u32, made: Vec<u8>) -> ImageHead {
        match self.slots.body_mut(slot) {
            Body::Ready(export) => export.head.get_or_insert_with(|| Arc::new(made)).clone(),
            _ => Arc::new(made),
        }
    }

    /// Keeps the number of a handle's full blocks and the hash of the last.
    pub fn set_chain(&mut self, slot: u32, chain: Option<(u32, BlockHash)>) {
        if let Body::Ready(export) = self.slots.body_mut(slot) {
            export.chain = chain;
        }
    }

    /// Ends a handle and its lease, and returns its content.
    pub fn end(&mut self, slot: u32, end: End) -> Body {
        let body = self.slots.end(slot, end);
        if let Some(deadline) = body.deadline() {
            self.leases.forget(slot, deadline);
        }
        body
    }

    /// Whether this cache has ever issued `id`.
    pub fn was_issued(&self, id: KvId) -> bool {
        self.slots.was_issued(id)
    }

    /// Slot of a live handle, claimed or not: for the side that fills it and for the request that claimed it. The error says
    /// what became of any other.
    pub fn find(&self, id: KvId) -> Result<u32> {
        self.slots.find(id)
    }

    /// Whether a request has taken the handle.
    pub fn is_claimed(&self, slot: u32) -> bool {
        self.slots.is_claimed(slot)
    }

    pub fn body(&self, slot: u32) -> &Body {
        self.slots.body(slot)
    }

    /// Slots of all live handles.
    pub fn live(&self) -> impl Iterator<Item = (u32, &Body)> {
        self.slots.live()
    }

    /// Ends of the leases.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Notes that the lease timer goes to sleep, and returns until when; None if until it is woken.
    pub fn arm_timer(&mut self) -> Option<Instant> {
        self.leases.arm();
        self.leases.armed()
    }

    /// Whether the lease timer must be woken to sleep less long. True once.
    pub fn take_poke(&mut self) -> bool {
        self.leases.take_poke()
    }
}
