//! Ids of handles: they cannot be mistaken for another cache's or an earlier handle's.

use std::collections::VecDeque;

use super::body::{Body, End};
use crate::bail;
use crate::error::Result;
use crate::kv::format::{KvId, MAX_GENERATION, MAX_NONCE, MAX_SLOTS};

/// Number of ended handles whose slots are not reused yet, so that late callers still learn how their handle ended.
const QUARANTINE: usize = 1024;

struct Slot {
    generation: u32,
    end: End,
    body: Body,
    /// A request took the handle before its KV had arrived; to everybody else it is consumed.
    claimed: bool,
}

/// The slots that handles of one cache are in.
pub struct Slots {
    nonce: u32,
    slots: Vec<Slot>,
    free: VecDeque<u32>,
}

impl Slots {
    pub fn new(nonce: u32) -> Slots {
        Slots { nonce: nonce & MAX_NONCE, slots: Vec::new(), free: VecDeque::new() }
    }

    /// Makes a new handle; returns it and the number of its slot.
    pub fn issue(&mut self, body: Body) -> Result<(KvId, u32)> {
        let full = self.slots.len() >= MAX_SLOTS;
        let reused = if self.free.len() > QUARANTINE || full { self.free.pop_front() } else { None };
        let index = match reused {
            Some(index) => index,
            None if full => bail!(OutOfMemory, "KV handles: all {} are in use", MAX_SLOTS),
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

    /// Slot of a live handle, claimed or not. The error says what became of any other.
    pub fn find(&self, id: KvId) -> Result<u32> {
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
    use super::super::body::Failed;
    use super::*;
    use crate::error::Status;
    use crate::kv::tests::model::snapshot;
    use crate::sync::{Arc, Instant};

    fn failed() -> Body {
        let sequence = Arc::new(snapshot(vec![1], 0));
        Body::Failed(Failed { error: crate::error!(Io, "x"), deadline: Instant::now(), sequence })
    }

    #[test]
    fn ids_keep_caches_generations_and_slots_apart() {
        let (mut a, mut b) = (Slots::new(1), Slots::new(2));
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
        let (_, slot) = slots.issue(failed()).unwrap();
        slots.slots[0].generation = MAX_GENERATION;
        slots.end(slot, End::Consumed);
        assert!(slots.free.is_empty());
    }
}
