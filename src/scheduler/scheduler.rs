//! The scheduler as the engine sees it.

use super::plan::Planner;
use super::sequences::Sequences;
use super::{Blocks, Limits, NewSeq, Plan, SeqId};

/// Waiting and running sequences of one engine, and the plans of its steps.
#[derive(Default)]
pub struct Scheduler {
    sequences: Sequences,
    planner: Planner,
}

impl Scheduler {
    /// A scheduler without sequences.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sequence, which waits for admission. With `computed > 0` it already holds blocks. Returns false, without effect, if
    /// the id is in use, `tokens` is 0 or `computed > tokens`.
    pub fn add(&mut self, new: NewSeq) -> bool {
        self.sequences.add(new)
    }

    /// Removes a sequence that has finished or was cancelled or exported. The caller releases its blocks. Returns false if the
    /// id is unknown.
    pub fn remove(&mut self, id: SeqId) -> bool {
        self.sequences.remove(id)
    }

    /// Plans a step. `now_ns` is monotonic; `plan` is overwritten. O(running + scheduled), and O(log waiting)
    /// for each admission.
    pub fn plan(&mut self, limits: &Limits, now_ns: u64, blocks: &mut dyn Blocks, plan: &mut Plan) {
        self.planner.plan(&mut self.sequences, limits, now_ns, blocks, plan);
    }

    /// Records that a step has run and its items are computed. Items of sequences removed since are skipped. A failed step is
    /// not committed, and its tokens are planned again.
    pub fn commit(&mut self, plan: &Plan) {
        self.sequences.commit(plan);
    }

    /// Records that a sampled token was added to the sequence, between `commit` and the next `plan`. Returns false if the id is
    /// unknown.
    pub fn append(&mut self, id: SeqId) -> bool {
        self.sequences.append(id)
    }

    /// Keeps the sequence out of plans, because its events cannot be delivered. It keeps its blocks unless it is preempted.
    /// Returns false if the id is unknown.
    pub fn pause(&mut self, id: SeqId) -> bool {
        self.sequences.set_paused(id, true)
    }

    /// Lets a paused sequence into plans again. Returns false if the id is unknown.
    pub fn resume(&mut self, id: SeqId) -> bool {
        self.sequences.set_paused(id, false)
    }

    /// Number of sequences that wait for admission: new, imported or preempted.
    pub fn waiting(&self) -> usize {
        self.sequences.waiting().len() + self.sequences.landed().len()
    }

    /// Number of admitted sequences, including paused ones.
    pub fn running(&self) -> usize {
        self.sequences.running().len()
    }

    /// Number of admitted sequences with more than one token left to compute.
    pub fn prefilling(&self) -> usize {
        let seqs = &self.sequences;
        seqs.running().iter().filter(|&&slot| seqs[slot].uncomputed() > 1).count()
    }

    /// Whether there are no sequences.
    pub fn is_idle(&self) -> bool {
        self.waiting() == 0 && self.running() == 0
    }

    /// Panics if the collections contradict each other, or something still refers to a finished plan.
    #[cfg(test)]
    pub(super) fn check_integrity(&self) {
        self.sequences.check_integrity();
        self.planner.check_integrity();
    }

    /// Numbers of known and of computed tokens of a sequence.
    #[cfg(test)]
    pub(super) fn progress(&self, id: SeqId) -> Option<(usize, usize)> {
        self.sequences.progress(id)
    }
}
