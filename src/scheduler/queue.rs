//! A sequence as the scheduler knows it, and the two orders of sequences.

use super::{NewSeq, SeqId};
use std::cmp::Reverse;

/// Waiting this long is worth one priority level.
pub(super) const AGEING_NS: u64 = 1_000_000_000;

/// Tokens reserved beyond the known ones at the first admission; doubles with every preemption.
const SLACK: usize = 32;
const MAX_SLACK: usize = 1024;

/// Index into the table of sequences.
pub(super) type Slot = usize;

/// Not in the plan being made.
pub(super) const UNPLANNED: usize = usize::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SeqState {
    /// Holds no blocks.
    Waiting,
    /// Waits, but came with blocks (an imported handle).
    Landed,
    Running,
}

/// Place among waiting sequences: the smallest is served first.
pub(super) type Rank = (i128, u64, Slot);

#[derive(Clone, Debug)]
pub(super) struct Seq {
    pub id: SeqId,
    pub tokens: usize,
    pub computed: usize,
    max_tokens: usize,
    pub priority: u32,
    pub arrival_ns: u64,
    /// Counts arrivals.
    pub order: u64,
    pub state: SeqState,
    pub paused: bool,
    /// Priority, and since admission the whole seconds waited before it.
    pub level: u64,
    preemptions: u32,
    /// When it last got prompt tokens into a plan, and the step; arrival before that.
    pub served_ns: u64,
    pub served_step: u64,
    /// Index of its item in the plan being made.
    pub item: usize,
}

impl Seq {
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
            item: UNPLANNED,
        }
    }

    pub fn uncomputed(&self) -> usize {
        self.tokens - self.computed
    }

    /// One token to go: the sampled one, in steady decode.
    pub fn decodes(&self) -> bool {
        self.uncomputed() == 1 && !self.paused
    }

    pub fn prefills(&self) -> bool {
        self.uncomputed() > 1 && !self.paused
    }

    pub fn rank(&self, slot: Slot) -> Rank {
        (i128::from(self.arrival_ns) - i128::from(self.priority) * i128::from(AGEING_NS), self.order, slot)
    }

    /// Place among sequences that hold blocks: the greatest is preempted first.
    pub fn entitlement(&self) -> (Reverse<u64>, u64) {
        (Reverse(self.level), self.order)
    }

    /// Priority and what ageing adds for waiting since `since_ns`.
    pub fn level_at(&self, since_ns: u64, now_ns: u64) -> u64 {
        u64::from(self.priority) + now_ns.saturating_sub(since_ns) / AGEING_NS
    }

    /// Room wanted at admission, and the least that does.
    pub fn admission_room(&self) -> (usize, usize) {
        let slack = (SLACK << self.preemptions.min(16)).min(MAX_SLACK);
        let cap = |extra: usize| self.tokens.saturating_add(extra).min(self.max_tokens).max(self.tokens);
        (cap(slack), cap(1))
    }

    /// Takes its blocks away: nothing is computed any more.
    pub fn lose_blocks(&mut self) {
        self.computed = 0;
        self.preemptions += 1;
        self.level = u64::from(self.priority);
        self.state = SeqState::Waiting;
        self.item = UNPLANNED;
        self.served_ns = self.arrival_ns;
    }
}
