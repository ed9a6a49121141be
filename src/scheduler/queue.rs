//! A sequence as the scheduler knows it, and the two orders of sequences.

use super::{NewSeq, SeqId};
use std::cmp::Reverse;

/// Waiting time that raises a sequence by one priority level.
pub(super) const AGEING_NS: u64 = 1_000_000_000;

/// Tokens reserved beyond the known ones at the first admission. The number doubles with every preemption.
const SLACK: usize = 32;
const MAX_SLACK: usize = 1024;

/// Index into the table of sequences.
pub(super) type Slot = usize;

/// Stage of a sequence between arrival and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SeqState {
    /// Waits for admission without blocks.
    Waiting,
    /// Waits for admission, but already holds the blocks of an imported handle.
    Landed,
    /// Is admitted.
    Running,
}

/// Place among waiting sequences: the smallest is served first.
pub(super) type Rank = (i128, u64, Slot);

/// A sequence in the scheduler.
#[derive(Clone, Debug)]
pub(super) struct Seq {
    pub id: SeqId,
    /// Number of known tokens.
    pub tokens: usize,
    /// Number of leading tokens whose KV is computed.
    pub computed: usize,
    max_tokens: usize,
    pub priority: u32,
    pub arrival_ns: u64,
    /// Number of the arrival, which orders sequences of one time.
    pub order: u64,
    pub state: SeqState,
    /// Whether the sequence is kept out of plans.
    pub paused: bool,
    /// Priority, plus for an admitted sequence the whole seconds that it waited for admission.
    pub level: u64,
    preemptions: u32,
    /// Time at which prompt tokens of the sequence were last planned; before that, its arrival.
    pub served_ns: u64,
    /// Step in which prompt tokens of the sequence were last planned; 0 before that.
    pub served_step: u64,
}

impl Seq {
    /// A sequence that has just arrived as number `order`.
    pub fn new(new: &NewSeq, order: u64) -> Self {
        Seq {
            id: new.id,
            tokens: new.tokens,
            computed: new.computed,
            max_tokens: new.max_tokens,
            priority: new.priority,
            arrival_ns: new.now_ns,
            order,
            state: if new.computed > 0 { SeqState::Landed } else { SeqState::Waiting },
            paused: false,
            level: u64::from(new.priority),
            preemptions: 0,
            served_ns: new.now_ns,
            served_step: 0,
        }
    }

    /// Number of known tokens whose KV is not computed.
    pub fn uncomputed(&self) -> usize {
        self.tokens - self.computed
    }

    /// Whether one token is left to compute, as for the sampled token in steady decode.
    pub fn decodes(&self) -> bool {
        self.uncomputed() == 1 && !self.paused
    }

    /// Whether more than one token is left to compute.
    pub fn prefills(&self) -> bool {
        self.uncomputed() > 1 && !self.paused
    }

    /// Place of the sequence among waiting ones.
    pub fn rank(&self, slot: Slot) -> Rank {
        (i128::from(self.arrival_ns) - i128::from(self.priority) * i128::from(AGEING_NS), self.order, slot)
    }

    /// Place among sequences that hold blocks: the greatest is preempted first.
    pub fn entitlement(&self) -> (Reverse<u64>, u64) {
        (Reverse(self.level), self.order)
    }

    /// Priority, plus one level for each second of waiting since `since_ns`.
    pub fn level_at(&self, since_ns: u64, now_ns: u64) -> u64 {
        u64::from(self.priority) + now_ns.saturating_sub(since_ns) / AGEING_NS
    }

    /// Tokens to reserve at admission, with slack, and the least number that is acceptable.
    pub fn admission_room(&self) -> (usize, usize) {
        let slack = (SLACK << self.preemptions.min(16)).min(MAX_SLACK);
        let cap = |extra: usize| self.tokens.saturating_add(extra).min(self.max_tokens).max(self.tokens);
        (cap(slack), cap(1))
    }

    /// Records that the KV of the first `tokens` tokens is computed.
    pub fn set_computed(&mut self, tokens: usize) {
        self.computed = tokens;
    }

    /// Counts one more known token.
    pub fn append(&mut self) {
        self.tokens += 1;
    }

    /// Keeps the sequence out of plans, or lets it in again.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Records that step number `step`, planned at `now_ns`, has prompt tokens of the sequence.
    pub fn serve(&mut self, now_ns: u64, step: u64) {
        (self.served_ns, self.served_step) = (now_ns, step);
    }

    /// Makes the sequence run, with the level that it has reached at `now_ns`.
    pub fn admit(&mut self, now_ns: u64) {
        self.state = SeqState::Running;
        self.level = self.level_at(self.arrival_ns, now_ns);
    }

    /// Resets the sequence to waiting with nothing computed, after it was preempted.
    pub fn lose_blocks(&mut self) {
        self.computed = 0;
        self.preemptions += 1;
        self.level = u64::from(self.priority);
        self.state = SeqState::Waiting;
        self.served_ns = self.arrival_ns;
    }
}
