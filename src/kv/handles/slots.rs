//! KV handles: ids that cannot be mistaken for another cache's or an earlier handle's.

use std::collections::VecDeque;
use std::time::Duration;

use crate::backend::BlockId;
use crate::bail;
use crate::error::{Error, Result};
pub use crate::kv::format::KvId;
use crate::kv::pool::{BlockHash, TableId, TableKey, Waker};
use crate::sequence::Snapshot;
use crate::sync::{Arc, Instant};

const SLOT_BITS: u32 = 20;
const GENERATION_BITS: u32 = 24;
const NONCE_BITS: u32 = 20;
const MAX_GENERATION: u32 = (1 << GENERATION_BITS) - 1;

/// Number of ended handles whose slots are not reused yet, so that late callers still learn how their handle ended.
const QUARANTINE: usize = 1024;

impl KvId {
    fn new(nonce: u32, generation: u32, slot: u32) -> KvId {
        let nonce = u64::from(nonce & ((1 << NONCE_BITS) - 1));
        KvId(nonce << (SLOT_BITS + GENERATION_BITS) | u64::from(generation) << SLOT_BITS | u64::from(slot))
    }

    fn split(self) -> (u32, u32, usize) {
        let slot = self.0 & ((1 << SLOT_BITS) - 1);
        let generation = (self.0 >> SLOT_BITS) as u32 & MAX_GENERATION;
        ((self.0 >> (SLOT_BITS + GENERATION_BITS)) as u32, generation, slot as usize)
    }
}

/// A prompt whose KV is being computed. The block table records how many tokens are done.
pub(in crate::kv) struct Progress {
    /// The prompt as it was submitted, with 0 tokens computed.
    pub prompt: Arc<Snapshot>,
    /// The request's table. A preemption may replace its blocks, but the KV of a computed token stays the same.
    pub table: TableId,
    pub wakers: Vec<Waker>,
}

/// How a handle ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kv) enum End {
    Consumed,
    LeaseOver,
    Released,
}

/// State of a handle.
pub(in crate::kv) enum Body {
    Vacant,
    /// The KV is being imported. `epoch` is the cache's when the import began, `sequence` the ticket's.
    Importing {
        epoch: [u8; 16],
        sequence: Arc<Snapshot>,
        wakers: Vec<Waker>,
    },
    /// The prompt is being computed here.
    StreamingExport(Progress),
    /// The import or the computation failed. Kept until the handle is released or its lease ends, so that callers learn why.
    Failed {
        error: Error,
        deadline: Instant,
        /// Sequence that the handle would have had, if it is known.
        sequence: Option<Arc<Snapshot>>,
    },
    Ready(Export),
}

/// Head of an image: everything before its block records.
pub(in crate::kv) type ImageHead = Arc<Vec<u8>>;

/// A snapshot and its blocks, under a lease.
pub(in crate::kv) struct Export {
    pub snapshot: Arc<Snapshot>,
    pub table: TableKey,
    /// Blocks of the table, moved out of the `BlockTable`: a handoff within a cache moves this list and copies nothing.
    pub blocks: Vec<BlockId>,
    pub lease: Duration,
    pub deadline: Instant,
    /// Head of the image, kept after the first read because it must not change between reads.
    pub head: Option<ImageHead>,
    /// Number of full blocks and the hash of the last, if the exporter knows them. Hashing them again would take longer than
    /// the rest of a ticket.
    pub chain: Option<(u32, BlockHash)>,
    /// The prompt as stated by tickets that were written while it was being computed.
    pub prompt: Option<Arc<Snapshot>>,
}

struct Slot {
    generation: u32,
    end: End,
    body: Body,
    /// A request took the handle before its KV had arrived; to everybody else it is consumed.
    claimed: bool,
}

/// All handles of one cache.
pub(in crate::kv) struct Slots {
    nonce: u32,
    slots: Vec<Slot>,
    free: VecDeque<u32>,
}

impl Slots {
    pub fn new(nonce: u32) -> Slots {
        Slots { nonce: nonce & ((1 << NONCE_BITS) - 1), slots: Vec::new(), free: VecDeque::new() }
    }

    /// Makes a new handle; returns it and the number of its slot.
    pub fn issue(&mut self, body: Body) -> Result<(KvId, u32)> {
        let full = self.slots.len() >= 1 << SLOT_BITS;
        let reused = if self.free.len() > QUARANTINE || full { self.free.pop_front() } else { None };
        let index = match reused {
            Some(index) => index,
            None if full => bail!(OutOfMemory, "KV handles: all {} are in use", 1 << SLOT_BITS),
            None => {
                self.slots.push(Slot { generation: 0, end: End::Released, body: Body::Vacant, claimed: false });
                self.slots.len() as u32 - 1
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.generation += 1;
        slot.body = body;
        slot.claimed = false;
        Ok((KvId::new(self.nonce, slot.generation, index), index))
    }

    /// Whether this cache has ever issued `id`.
    pub fn was_issued(&self, id: KvId) -> bool {
        let (nonce, generation, slot) = id.split();
        nonce == self.nonce && generation > 0 && self.slots.get(slot).is_some_and(|s| generation <= s.generation)
    }

    /// Slot of a live handle that no request has claimed. The error says what became of any other.
    pub fn find(&self, id: KvId) -> Result<u32> {
        let index = self.find_claimed(id)?;
        if self.slots[index as usize].claimed {
            bail!(Expired, "{id}: consumed already");
        }
        Ok(index)
    }

    /// Slot of a live handle, claimed or not: for the side that fills it and for the request that claimed it.
    pub fn find_claimed(&self, id: KvId) -> Result<u32> {
        let (nonce, generation, index) = id.split();
        let slot =
            self.slots.get(index).filter(|s| nonce == self.nonce && s.generation == generation && generation > 0);
        match slot {
            None => bail!(NotFound, "{id}: unknown to this cache, or ended long ago"),
            Some(Slot { body: Body::Vacant, end, .. }) => match end {
                End::Consumed => bail!(Expired, "{id}: consumed already"),
                End::LeaseOver => bail!(Expired, "{id}: its lease is over"),
                End::Released => bail!(NotFound, "{id}: released"),
            },
            Some(_) => Ok(index as u32),
        }
    }

    pub fn claim(&mut self, slot: u32) {
        self.slots[slot as usize].claimed = true;
    }

    pub fn is_claimed(&self, slot: u32) -> bool {
        self.slots[slot as usize].claimed
    }

    pub fn body(&self, slot: u32) -> &Body {
        &self.slots[slot as usize].body
    }

    pub fn body_mut(&mut self, slot: u32) -> &mut Body {
        &mut self.slots[slot as usize].body
    }

    /// Ends a live handle. Its slot is reused after a while, or never if its generations are used up.
    pub fn end(&mut self, index: u32, end: End) -> Body {
        let slot = &mut self.slots[index as usize];
        slot.end = end;
        if slot.generation < MAX_GENERATION {
            self.free.push_back(index);
        }
        std::mem::replace(&mut slot.body, Body::Vacant)
    }

    /// Slots of all live handles.
    pub fn live(&self) -> impl Iterator<Item = (u32, &Body)> {
        let bodies = self.slots.iter().enumerate().map(|(i, s)| (i as u32, &s.body));
        bodies.filter(|(_, body)| !matches!(body, Body::Vacant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn ids_keep_caches_generations_and_slots_apart() {
        let (mut a, mut b) = (Slots::new(1), Slots::new(2));
        let failed = || Body::Failed { error: crate::error!(Io, "x"), deadline: Instant::now(), sequence: None };
        let (id, slot) = a.issue(failed()).unwrap();
        b.issue(failed()).unwrap();
        assert_eq!(b.find(id).unwrap_err().status, Status::NotFound);
        assert_eq!(a.find(KvId(0)).unwrap_err().status, Status::NotFound);
        assert!(!a.was_issued(KvId::new(1, 2, 0)) && !a.was_issued(KvId::new(1, 1, 1)) && a.was_issued(id));
        a.end(slot, End::LeaseOver);
        assert_eq!(a.find(id).unwrap_err().status, Status::Expired);
        for _ in 0..3 * QUARANTINE {
            let (other, slot) = a.issue(failed()).unwrap();
            assert_ne!(other, id);
            a.end(slot, End::Released);
        }
        assert!(a.slots.len() <= QUARANTINE + 2 && a.was_issued(id));
        assert_eq!(a.find(id).unwrap_err().status, Status::NotFound);
    }

    #[test]
    fn a_slot_whose_generations_are_used_up_is_retired() {
        let mut slots = Slots::new(7);
        let (_, slot) = slots
            .issue(Body::Failed { error: crate::error!(Io, "x"), deadline: Instant::now(), sequence: None })
            .unwrap();
        slots.slots[0].generation = MAX_GENERATION;
        slots.end(slot, End::Consumed);
        assert!(slots.free.is_empty());
    }
}
