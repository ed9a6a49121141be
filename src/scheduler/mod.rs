//! Decides which tokens of which sequences a step computes: waiting and running sequences, a token budget per step,
//! chunked prefill, preemption. Pure data: no device types, no clock (time comes in as nanoseconds), no
//! threads; the same calls give the same plans.
//!
//! The vocabulary and the outline are nano-vllm's and vLLM V1's (`vllm/v1/core/sched/scheduler.py`): running
//! sequences first, one step mixes decodes and prompt chunks, preemption by recomputation. What differs:
//!
//! - **Order.** Waiting sequences are served by `arrival − priority · 1 s`, smallest first. This is priority
//!   with ageing (one level per second of waiting) as a number that never changes, and FIFO within a level.
//!   A preempted sequence keeps its arrival, which puts it in front of its level.
//! - **Prompts share** their part of the budget (processor sharing, max-min fair with chunks of whole
//!   [`CHUNK`]s) instead of going one after the other, so a long prompt does not hold up short ones. Between
//!   priorities the share is strict; a prompt that got nothing for a second rises one level.
//! - **Admission reserves everything known, and slack.** A sequence is admitted when blocks for all its known
//!   tokens are there, and some for the tokens to come (vLLM's `full_sequence_must_fit` and its watermark in
//!   one). So a prompt never stalls half-way holding blocks, and each admission is worth some generated tokens:
//!   the slack doubles with every preemption of the sequence. With nothing of its own admitted, an engine does
//!   without slack, so that a sequence which fits the cache alone always runs.
//! - **Preemption** takes the running sequence with the lowest level (priority plus whole seconds waited before
//!   admission), of those the latest; nobody takes from one more entitled. When none is left, the requester
//!   gives up its own blocks. Nothing therefore holds blocks while it waits for more, and two engines on
//!   one cache cannot deadlock. Admission preempts only sequences whose level is below the newcomer's *priority*,
//!   so ageing alone never throws work away.

mod plan;
mod queue;
mod share;
mod state;
#[cfg(test)]
mod tests;

pub use state::Scheduler;

/// A sequence, as the engine names it.
pub type SeqId = u64;

/// Prompt chunks are multiples of this, except at the end of a prompt or of the budget.
pub const CHUNK: usize = 16;

/// Limits of a step. Passed with every plan, so a role can change between steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Running sequences, paused ones included. Lowering it stops admissions, not running sequences.
    pub max_sequences: usize,
    /// Token budget of a step. At least `max_sequences`, or decodes take turns and prompts starve.
    pub max_batch_tokens: usize,
    /// The part of it that prompts may take: small on a decode engine, so that inter-token latency stays.
    pub max_prefill_tokens: usize,
}

/// A sequence that arrives: new, or continued from a KV handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewSeq {
    pub id: SeqId,
    /// Known tokens: the prompt, or prompt and generated.
    pub tokens: usize,
    /// Tokens whose KV it holds already (an imported handle); 0 for a new prompt.
    pub computed: usize,
    /// The most tokens whose KV it can come to need (prompt + max_new_tokens, the context limit; on a prefill
    /// engine just `tokens`). Bounds the slack reserved at admission; `usize::MAX` if unknown.
    pub max_tokens: usize,
    /// Higher runs first.
    pub priority: u32,
    /// Arrival.
    pub now_ns: u64,
}

/// The KV blocks as the scheduler sees them.
pub trait Blocks {
    /// Makes room for tokens `[0, upto)` of `seq`, whose first `computed` are computed. All or nothing; may
    /// evict from the prefix cache. True without effect if the room is there already.
    fn reserve(&mut self, seq: SeqId, computed: usize, upto: usize) -> bool;

    /// Called as a waiting sequence that holds no blocks is about to be admitted (first, or again after
    /// preemption): takes what the prefix cache has of it and returns the number of tokens, fewer than the
    /// sequence's. If the admission then fails for want of blocks, `release` follows.
    fn attach_prefix(&mut self, seq: SeqId) -> usize;

    /// Gives up all blocks of `seq`: preempted, or not admitted after all.
    fn release(&mut self, seq: SeqId);
}

/// Consecutive tokens of one sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    pub seq: SeqId,
    /// Position of the first; equals the tokens computed so far.
    pub start: usize,
    pub len: usize,
    /// The last known token is in it: its logits are sampled.
    pub samples: bool,
}

/// A step. Reused from step to step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Decodes first, then prompt chunks; a sequence occurs once.
    pub items: Vec<Item>,
    /// Sequences that lost their blocks (already released) and wait again, nothing computed.
    pub preempted: Vec<SeqId>,
    /// A sequence could not go on, or not begin, for want of blocks only. With no items, nothing changes
    /// until blocks are freed elsewhere or a command arrives; with no items and [`Scheduler::running`] 0 the
    /// first waiting sequence does not fit beside what others hold of the cache (if nobody holds any: at all).
    pub blocked: bool,
}

impl Plan {
    /// Tokens of the step.
    pub fn tokens(&self) -> usize {
        self.items.iter().map(|item| item.len).sum()
    }

    fn clear(&mut self) {
        self.items.clear();
        self.preempted.clear();
        self.blocked = false;
    }
}
