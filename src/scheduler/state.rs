use super::{Blocks, Limits, NewSeq, Plan, SeqId};

/// Waiting and running sequences of one engine.
#[derive(Default)]
pub struct Scheduler {}

impl Scheduler {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a sequence in; it waits. With `computed > 0` it holds blocks already. False, and no effect, if the
    /// id is there already or `tokens` is 0 or `computed > tokens`.
    pub fn add(&mut self, _seq: NewSeq) -> bool {
        todo!()
    }

    /// Forgets a sequence (finished, cancelled, exported). Its blocks are the caller's to release.
    pub fn remove(&mut self, _id: SeqId) -> bool {
        todo!()
    }

    /// Plans a step. `now_ns` is monotonic; `plan` is overwritten.
    pub fn plan(&mut self, _limits: &Limits, _now_ns: u64, _blocks: &mut dyn Blocks, _plan: &mut Plan) {
        todo!()
    }

    /// After the step has run: its items are computed. Items of sequences removed since are skipped. A step
    /// that failed is not committed and is planned again.
    pub fn commit(&mut self, _plan: &Plan) {
        todo!()
    }

    /// A sampled token was added to the sequence. Between `commit` and the next `plan`.
    pub fn append(&mut self, _id: SeqId) -> bool {
        todo!()
    }

    /// Keeps the sequence out of plans (its events cannot be delivered); it keeps its blocks unless preempted.
    pub fn pause(&mut self, _id: SeqId) -> bool {
        todo!()
    }

    pub fn resume(&mut self, _id: SeqId) -> bool {
        todo!()
    }

    /// Sequences not admitted: new, imported or preempted.
    pub fn waiting(&self) -> usize {
        todo!()
    }

    /// Admitted sequences, paused ones included.
    pub fn running(&self) -> usize {
        todo!()
    }

    pub fn is_idle(&self) -> bool {
        self.waiting() == 0 && self.running() == 0
    }

    /// Tokens known and computed of a sequence.
    pub fn progress(&self, _id: SeqId) -> Option<(usize, usize)> {
        todo!()
    }
}
