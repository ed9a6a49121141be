//! The scheduler's sequences. Each is in exactly one collection, by its state. Plans read sequences, and change them through the
//! methods here.

use super::queue::{Rank, Seq, SeqState, Slot};
use super::{NewSeq, Plan, SeqId};
use std::collections::{BTreeSet, HashMap};
use std::ops::Index;

/// Waiting and running sequences of one engine.
#[derive(Default)]
pub(super) struct Sequences {
    /// Sequences by slot. Freed slots are reused.
    seqs: Vec<Seq>,
    free: Vec<Slot>,
    slots: HashMap<SeqId, Slot>,
    /// Waiting sequences without blocks, in the order of admission.
    waiting: BTreeSet<Rank>,
    /// Waiting sequences that arrived with blocks, in the order of admission.
    landed: BTreeSet<Rank>,
    /// Admitted sequences, most entitled first.
    running: Vec<Slot>,
    /// Number of sequences added so far.
    arrivals: u64,
}

impl Index<Slot> for Sequences {
    type Output = Seq;

    fn index(&self, slot: Slot) -> &Seq {
        &self.seqs[slot]
    }
}

impl Sequences {
    /// Number of slots, free ones included.
    pub fn slots(&self) -> usize {
        self.seqs.len()
    }

    /// Waiting sequences without blocks, in the order of admission.
    pub fn waiting(&self) -> &BTreeSet<Rank> {
        &self.waiting
    }

    /// Waiting sequences that arrived with blocks, in the order of admission.
    pub fn landed(&self) -> &BTreeSet<Rank> {
        &self.landed
    }

    /// Admitted sequences, most entitled first.
    pub fn running(&self) -> &[Slot] {
        &self.running
    }

    /// The least entitled of the sequences that hold blocks.
    pub fn least_entitled(&self) -> Option<Slot> {
        let landed = self.landed.iter().map(|rank| rank.2);
        landed.chain(self.running.last().copied()).max_by_key(|&slot| self.seqs[slot].entitlement())
    }

    // ---- between plans ----

    /// See [`super::Scheduler::add`].
    pub fn add(&mut self, new: NewSeq) -> bool {
        if new.tokens == 0 || new.computed > new.tokens || self.slots.contains_key(&new.id) {
            return false;
        }
        self.arrivals += 1;
        let seq = Seq::new(&new, self.arrivals);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.seqs[slot] = seq;
                slot
            }
            None => {
                self.seqs.push(seq);
                self.seqs.len() - 1
            }
        };
        self.slots.insert(new.id, slot);
        self.enqueue(slot);
        true
    }

    /// See [`super::Scheduler::remove`].
    pub fn remove(&mut self, id: SeqId) -> bool {
        let Some(slot) = self.slots.remove(&id) else { return false };
        self.dequeue(slot);
        self.free.push(slot);
        true
    }

    /// See [`super::Scheduler::commit`].
    pub fn commit(&mut self, plan: &Plan) {
        for item in &plan.items {
            if let Some(&slot) = self.slots.get(&item.seq) {
                let seq = &mut self.seqs[slot];
                debug_assert_eq!(seq.computed, item.start, "a plan is committed once, before the next one");
                seq.set_computed(item.start + item.len);
            }
        }
    }

    /// Counts one more known token. Returns false if the id is unknown.
    pub fn append(&mut self, id: SeqId) -> bool {
        self.with(id, Seq::append)
    }

    /// Keeps the sequence out of plans, or lets it in again. Returns false if the id is unknown.
    pub fn set_paused(&mut self, id: SeqId, paused: bool) -> bool {
        self.with(id, |seq| seq.set_paused(paused))
    }

    fn with(&mut self, id: SeqId, change: impl FnOnce(&mut Seq)) -> bool {
        let slot = self.slots.get(&id);
        slot.map(|&slot| change(&mut self.seqs[slot])).is_some()
    }

    // ---- in a plan ----

    /// Gives a waiting sequence its cached prefix of `tokens` tokens; 0 takes it back.
    pub fn set_prefix(&mut self, slot: Slot, tokens: usize) {
        let seq = &mut self.seqs[slot];
        seq.set_computed(tokens.min(seq.tokens - 1));
    }

    /// Moves a sequence to the running ones.
    pub fn admit(&mut self, slot: Slot, now_ns: u64) {
        self.dequeue(slot);
        self.seqs[slot].admit(now_ns);
        self.enqueue(slot);
    }

    /// Moves a sequence that holds blocks to the waiting ones, with nothing computed.
    pub fn preempt(&mut self, slot: Slot) {
        self.dequeue(slot);
        self.seqs[slot].lose_blocks();
        self.enqueue(slot);
    }

    /// Records that step number `step`, planned at `now_ns`, has prompt tokens of the sequence.
    pub fn serve(&mut self, slot: Slot, now_ns: u64, step: u64) {
        self.seqs[slot].serve(now_ns, step);
    }

    // ---- collections ----

    /// Inserts a sequence into the collection that belongs to its state.
    fn enqueue(&mut self, slot: Slot) {
        let seq = &self.seqs[slot];
        match seq.state {
            SeqState::Waiting => {
                self.waiting.insert(seq.rank(slot));
            }
            SeqState::Landed => {
                self.landed.insert(seq.rank(slot));
            }
            SeqState::Running => {
                let at = self.running_place(slot).unwrap_or_else(|at| at);
                self.running.insert(at, slot);
            }
        }
    }

    /// Removes a sequence from the collection that belongs to its state.
    fn dequeue(&mut self, slot: Slot) {
        let seq = &self.seqs[slot];
        let found = match seq.state {
            SeqState::Waiting => self.waiting.remove(&seq.rank(slot)),
            SeqState::Landed => self.landed.remove(&seq.rank(slot)),
            SeqState::Running => self.running_place(slot).map(|at| self.running.remove(at)).is_ok(),
        };
        debug_assert!(found, "sequence {} is not in the collection that belongs to its state", seq.id);
    }

    fn running_place(&self, slot: Slot) -> Result<usize, usize> {
        let wanted = self.seqs[slot].entitlement();
        self.running.binary_search_by_key(&wanted, |&other| self.seqs[other].entitlement())
    }

    /// Panics unless every sequence is in exactly one collection.
    #[cfg(test)]
    pub fn check_integrity(&self) {
        assert_eq!(self.slots.len(), self.waiting.len() + self.landed.len() + self.running.len());
        for (&id, &slot) in &self.slots {
            let seq = &self.seqs[slot];
            assert_eq!(seq.id, id);
            assert!(seq.computed <= seq.tokens);
            assert_eq!(self.waiting.contains(&seq.rank(slot)), seq.state == SeqState::Waiting);
            assert_eq!(self.landed.contains(&seq.rank(slot)), seq.state == SeqState::Landed);
            assert_eq!(self.running.contains(&slot), seq.state == SeqState::Running);
            assert!(seq.state != SeqState::Waiting || seq.computed == 0);
        }
        assert!(self.running.is_sorted_by_key(|&slot| self.seqs[slot].entitlement()));
    }

    /// Numbers of known and of computed tokens of a sequence.
    #[cfg(test)]
    pub fn progress(&self, id: SeqId) -> Option<(usize, usize)> {
        self.slots.get(&id).map(|&slot| (self.seqs[slot].tokens, self.seqs[slot].computed))
    }
}
