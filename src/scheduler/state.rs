//! The scheduler's sequences, and what happens to them between plans.

use super::queue::{Rank, Seq, SeqState, Slot};
use super::share::Share;
use super::{NewSeq, Plan, SeqId};
use std::collections::{BTreeSet, HashMap};

/// Waiting and running sequences of one engine.
#[derive(Default)]
pub struct Scheduler {
    /// Sequences by slot; freed slots are used again.
    pub(super) seqs: Vec<Seq>,
    free: Vec<Slot>,
    slots: HashMap<SeqId, Slot>,
    /// Sequences without blocks, first to be admitted first.
    pub(super) waiting: BTreeSet<Rank>,
    /// Sequences that came with blocks and are not admitted yet.
    pub(super) landed: BTreeSet<Rank>,
    /// Admitted sequences, most entitled first.
    pub(super) running: Vec<Slot>,
    /// Sequences that came so far.
    arrivals: u64,
    /// Plans made so far.
    pub(super) step: u64,
    /// Where decodes go on that take turns.
    pub(super) turn: usize,
    /// Scratch of a plan: the running sequences in prefill, and their shares.
    pub(super) prefilling: Vec<Slot>,
    pub(super) share: Share,
}

impl Scheduler {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a sequence in; it waits. With `computed > 0` it holds blocks already. False, and no effect, if the
    /// id is there already or `tokens` is 0 or `computed > tokens`.
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

    /// Forgets a sequence (finished, cancelled, exported). Its blocks are the caller's to release.
    pub fn remove(&mut self, id: SeqId) -> bool {
        let Some(slot) = self.slots.remove(&id) else { return false };
        self.dequeue(slot);
        self.free.push(slot);
        true
    }

    /// After the step has run: its items are computed. Items of sequences removed since are skipped. A step
    /// that failed is not committed and is planned again.
    pub fn commit(&mut self, plan: &Plan) {
        for item in &plan.items {
            if let Some(&slot) = self.slots.get(&item.seq) {
                let seq = &mut self.seqs[slot];
                debug_assert_eq!(seq.computed, item.start, "a plan is committed once, before the next one");
                seq.computed = item.start + item.len;
            }
        }
    }

    /// A sampled token was added to the sequence. Between `commit` and the next `plan`.
    pub fn append(&mut self, id: SeqId) -> bool {
        self.with(id, |seq| seq.tokens += 1)
    }

    /// Keeps the sequence out of plans (its events cannot be delivered); it keeps its blocks unless preempted.
    pub fn pause(&mut self, id: SeqId) -> bool {
        self.with(id, |seq| seq.paused = true)
    }

    pub fn resume(&mut self, id: SeqId) -> bool {
        self.with(id, |seq| seq.paused = false)
    }

    /// Sequences not admitted: new, imported or preempted.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.landed.len()
    }

    /// Admitted sequences, paused ones included.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn is_idle(&self) -> bool {
        self.waiting() == 0 && self.running() == 0
    }

    /// Tokens known and computed of a sequence.
    pub fn progress(&self, id: SeqId) -> Option<(usize, usize)> {
        self.slots.get(&id).map(|&slot| (self.seqs[slot].tokens, self.seqs[slot].computed))
    }

    fn with(&mut self, id: SeqId, change: impl FnOnce(&mut Seq)) -> bool {
        let slot = self.slots.get(&id);
        slot.map(|&slot| change(&mut self.seqs[slot])).is_some()
    }

    /// Puts a sequence where its state says.
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

    /// Takes a sequence out of where its state says.
    pub(super) fn dequeue(&mut self, slot: Slot) {
        let seq = &self.seqs[slot];
        let found = match seq.state {
            SeqState::Waiting => self.waiting.remove(&seq.rank(slot)),
            SeqState::Landed => self.landed.remove(&seq.rank(slot)),
            SeqState::Running => self.running_place(slot).map(|at| self.running.remove(at)).is_ok(),
        };
        debug_assert!(found, "sequence {} is not where its state says", seq.id);
    }

    fn running_place(&self, slot: Slot) -> Result<usize, usize> {
        let wanted = self.seqs[slot].entitlement();
        self.running.binary_search_by_key(&wanted, |&other| self.seqs[other].entitlement())
    }

    /// Panics unless every sequence is in exactly one place and none is left in a finished plan.
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
