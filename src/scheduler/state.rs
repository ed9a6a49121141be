//! The scheduler's sequences, and the changes to them between plans.

use super::queue::{Rank, Seq, SeqState, Slot};
use super::share::Share;
use super::{NewSeq, Plan, SeqId};
use std::collections::{BTreeSet, HashMap};

/// Waiting and running sequences of one engine.
#[derive(Default)]
pub struct Scheduler {
    /// Sequences by slot. Freed slots are reused.
    pub(super) seqs: Vec<Seq>,
    free: Vec<Slot>,
    slots: HashMap<SeqId, Slot>,
    /// Waiting sequences without blocks, in the order of admission.
    pub(super) waiting: BTreeSet<Rank>,
    /// Waiting sequences that arrived with blocks, in the order of admission.
    pub(super) landed: BTreeSet<Rank>,
    /// Admitted sequences, most entitled first.
    pub(super) running: Vec<Slot>,
    /// Number of sequences added so far.
    arrivals: u64,
    /// Number of plans made so far.
    pub(super) step: u64,
    /// Place among the decodes at which the next step begins, when they take turns.
    pub(super) turn: usize,
    /// Running sequences in prefill; a buffer of the plan being made.
    pub(super) prefilling: Vec<Slot>,
    /// Shares of the sequences in prefill; a buffer of the plan being made.
    pub(super) share: Share,
}

impl Scheduler {
    /// A scheduler without sequences.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sequence, which waits for admission. With `computed > 0` it already holds blocks. Returns false, without effect, if
    /// the id is in use, `tokens` is 0 or `computed > tokens`.
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

    /// Removes a sequence that has finished or was cancelled or exported. The caller releases its blocks. Returns false if the
    /// id is unknown.
    pub fn remove(&mut self, id: SeqId) -> bool {
        let Some(slot) = self.slots.remove(&id) else { return false };
        self.dequeue(slot);
        self.free.push(slot);
        true
    }

    /// Records that a step has run and its items are computed. Items of sequences removed since are skipped. A failed step is
    /// not committed, and its tokens are planned again.
    pub fn commit(&mut self, plan: &Plan) {
        for item in &plan.items {
            if let Some(&slot) = self.slots.get(&item.seq) {
                let seq = &mut self.seqs[slot];
                debug_assert_eq!(seq.computed, item.start, "a plan is committed once, before the next one");
                seq.computed = item.start + item.len;
            }
        }
    }

    /// Records that a sampled token was added to the sequence, between `commit` and the next `plan`. Returns false if the id is
    /// unknown.
    pub fn append(&mut self, id: SeqId) -> bool {
        self.with(id, |seq| seq.tokens += 1)
    }

    /// Keeps the sequence out of plans, because its events cannot be delivered. It keeps its blocks unless it is preempted.
    /// Returns false if the id is unknown.
    pub fn pause(&mut self, id: SeqId) -> bool {
        self.with(id, |seq| seq.paused = true)
    }

    /// Lets a paused sequence into plans again. Returns false if the id is unknown.
    pub fn resume(&mut self, id: SeqId) -> bool {
        self.with(id, |seq| seq.paused = false)
    }

    /// Number of sequences that wait for admission: new, imported or preempted.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.landed.len()
    }

    /// Number of admitted sequences, including paused ones.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Number of admitted sequences with more than one token left to compute.
    pub fn prefilling(&self) -> usize {
        self.running.iter().filter(|&&slot| self.seqs[slot].uncomputed() > 1).count()
    }

    /// Whether there are no sequences.
    pub fn is_idle(&self) -> bool {
        self.waiting() == 0 && self.running() == 0
    }

    /// Numbers of known and of computed tokens of a sequence.
    pub fn progress(&self, id: SeqId) -> Option<(usize, usize)> {
        self.slots.get(&id).map(|&slot| (self.seqs[slot].tokens, self.seqs[slot].computed))
    }

    fn with(&mut self, id: SeqId, change: impl FnOnce(&mut Seq)) -> bool {
        let slot = self.slots.get(&id);
        slot.map(|&slot| change(&mut self.seqs[slot])).is_some()
    }

    /// Inserts a sequence into the collection that belongs to its state.
    pub(super) fn enqueue(&mut self, slot: Slot) {
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
    pub(super) fn dequeue(&mut self, slot: Slot) {
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

    /// Panics unless every sequence is in exactly one collection and none still refers to a finished plan.
    #[cfg(test)]
    pub(super) fn check_integrity(&self) {
        assert_eq!(self.slots.len(), self.waiting() + self.running());
        for (&id, &slot) in &self.slots {
            let seq = &self.seqs[slot];
            assert_eq!(seq.id, id);
            assert!(seq.computed <= seq.tokens && seq.item == super::queue::UNPLANNED);
            assert_eq!(self.waiting.contains(&seq.rank(slot)), seq.state == SeqState::Waiting);
            assert_eq!(self.landed.contains(&seq.rank(slot)), seq.state == SeqState::Landed);
            assert_eq!(self.running.contains(&slot), seq.state == SeqState::Running);
            assert!(seq.state != SeqState::Waiting || seq.computed == 0);
        }
        assert!(self.running.is_sorted_by_key(|&slot| self.seqs[slot].entitlement()));
    }
}
