//! Decides which tokens of which sequences a step computes: waiting and running sequences, a token budget per step,
//! chunked prefill, preemption. It is pure data, and must not know devices, clocks (callers pass the time in nanoseconds) or
//! threads. The same calls give the same plans.
//!
//! The vocabulary and the outline are nano-vllm's and vLLM V1's (`vllm/v1/core/sched/scheduler.py`): running
//! sequences first, one step mixes decodes and prompt chunks, preemption by recomputation. The differences:
//!
//! - **Order.** Waiting sequences are served by `arrival − priority · 1 s`, smallest first. This is priority
//!   with ageing (one level per second of waiting), expressed as a number that never changes, and FIFO within a level.
//!   A preempted sequence keeps its arrival time, so it goes to the front of its level.
//! - **Prompts share** their part of the budget (processor sharing, max-min fair with chunks of whole
//!   [`CHUNK`]s) instead of running one after the other, so a long prompt does not hold up short ones. A higher
//!   priority is always served first; a prompt that got nothing for a second rises one level.
//! - **Admission reserves all known tokens, and slack.** A sequence is admitted when there are blocks for all its known
//!   tokens and some for tokens to come (vLLM's `full_sequence_must_fit` and its watermark in one). So no prompt stalls
//!   half-way while it holds blocks, and each admission yields some generated tokens: the slack doubles with every
//!   preemption of the sequence. An engine with nothing else admitted needs no slack, so a sequence that fits the cache
//!   alone always runs.
//! - **Preemption** takes the blocks of the running sequence with the lowest level (priority plus whole seconds waited before
//!   admission), and of those the latest. No sequence takes blocks from one with a better claim; if all others have one, it
//!   gives up its own blocks. So no sequence holds blocks while it waits for more, and two engines on one cache cannot
//!   deadlock. Admission preempts only sequences whose level is below the newcomer's *priority*, so ageing alone never
//!   discards work.

mod plan;
mod queue;
#[expect(clippy::module_inception, reason = "the module's main noun has its name")]
mod scheduler;
mod sequences;
mod share;
#[cfg(test)]
mod tests;

pub use scheduler::Scheduler;

/// Id of a sequence, chosen by the engine.
pub type SeqId = u64;

/// Granularity of prompt chunks in tokens. Only the last chunk of a prompt or of the budget may be no multiple of it.
pub const CHUNK: usize = 16;

/// Limits of a step. They are passed with every plan, so that the engine's role can change between steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most running sequences, including paused ones. Lowering it stops admissions, not running sequences.
    pub max_sequences: usize,
    /// Token budget of a step. If it is below `max_sequences`, decodes take turns and prompts starve.
    pub max_batch_tokens: usize,
    /// Most prompt tokens in a step: few on a decode engine, to keep its inter-token latency low.
    pub max_prefill_tokens: usize,
}

/// A sequence that arrives: new, or continued from a KV handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewSeq {
    /// Id under which plans name the sequence.
    pub id: SeqId,
    /// Number of known tokens: the prompt, or prompt and generated tokens.
    pub tokens: usize,
    /// Number of leading tokens whose KV is already computed (an imported handle); 0 for a new prompt.
    pub computed: usize,
    /// Upper bound of the tokens whose KV the sequence will need: prompt + max_new_tokens, at most the context limit; on a
    /// prefill engine just `tokens`. It bounds the slack reserved at admission. `usize::MAX` if unknown.
    pub max_tokens: usize,
    /// Priority; sequences with a higher one run first.
    pub priority: u32,
    /// Time of arrival, monotonic, in nanoseconds.
    pub now_ns: u64,
}

/// The KV blocks of sequences, as the scheduler sees them.
pub trait Blocks {
    /// Reserves blocks for the tokens `[0, upto)` of `seq`, of which the first `computed` have their KV. Reserves all or,
    /// returning false, none; may evict from the prefix cache. Has no effect if the blocks are already reserved.
    fn reserve(&mut self, seq: SeqId, computed: usize, upto: usize) -> bool;

    /// Gives a sequence without blocks its cached prefix, just before it is admitted (for the first time, or again after a
    /// preemption). Returns the prefix's number of tokens, which is less than the sequence's. If the admission then fails for
    /// want of blocks, `release` follows.
    fn attach_prefix(&mut self, seq: SeqId) -> usize;

    /// Releases all blocks of `seq`, because it was preempted or not admitted after all.
    fn release(&mut self, seq: SeqId);
}

/// Consecutive tokens of one sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// The sequence.
    pub seq: SeqId,
    /// Position of the first token, which is the number of tokens computed so far.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// Whether the sequence's last known token is included, so that its logits are sampled.
    pub samples: bool,
}

/// The plan of one step. The value is reused from step to step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Tokens to compute: decodes first, then prompt chunks. A sequence occurs at most once.
    pub items: Vec<Item>,
    /// Sequences that were preempted: their blocks are released, and they wait again with nothing computed.
    pub preempted: Vec<SeqId>,
    /// Whether some sequence could not start or continue only for want of blocks. If the plan also has no items, nothing changes
    /// until blocks are freed elsewhere or a command arrives. If furthermore [`Scheduler::running`] is 0, the first waiting
    /// sequence does not fit into the blocks that others leave free.
    pub blocked: bool,
}
