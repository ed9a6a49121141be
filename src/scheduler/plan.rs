//! Plans a step: decodes, admissions and prompt chunks, with preemption of the least entitled sequences.

use super::queue::{Rank, Seq, SeqState, Slot};
use super::sequences::Sequences;
use super::share::Share;
use super::{Blocks, CHUNK, Item, Limits, Plan};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Unbounded};

/// Value of [`Planner::places`] for a sequence that is not in the plan being made.
const UNPLANNED: usize = usize::MAX;

/// Memory from plan to plan, and buffers for the plan being made.
#[derive(Default)]
pub(super) struct Planner {
    /// Number of plans made so far.
    step: u64,
    /// Place among the decodes at which the next step begins, when they take turns.
    turn: usize,
    /// Running sequences in prefill.
    prefilling: Vec<Slot>,
    /// Shares of the sequences in prefill.
    share: Share,
    /// Index of each slot's item in the plan, or [`UNPLANNED`].
    places: Vec<usize>,
}

/// State of the plan being made.
struct Step<'a> {
    now_ns: u64,
    /// Tokens left in the step's budget.
    left: usize,
    /// Tokens left in the budget of prompts.
    prompts_left: usize,
    seqs: &'a mut Sequences,
    blocks: &'a mut dyn Blocks,
    plan: &'a mut Plan,
}

impl Planner {
    /// Plans a step over `seqs`; see [`super::Scheduler::plan`].
    pub fn plan(
        &mut self,
        seqs: &mut Sequences,
        limits: &Limits,
        now_ns: u64,
        blocks: &mut dyn Blocks,
        plan: &mut Plan,
    ) {
        plan.items.clear();
        plan.preempted.clear();
        plan.blocked = false;
        self.step += 1;
        self.places.resize(seqs.slots(), UNPLANNED);
        let (left, prompts_left) = (limits.max_batch_tokens, limits.max_prefill_tokens);
        let mut step = Step { now_ns, left, prompts_left, seqs, blocks, plan };
        self.plan_decodes(&mut step);
        self.find_prefilling(step.seqs);
        // vLLM's rule: no admissions in a step that ran out of blocks ...
        if step.plan.preempted.is_empty() {
            self.admit(limits.max_sequences, &mut step);
        }
        self.plan_prompts(&mut step);
        if step.plan.items.iter().all(|item| item.len == 0) && !step.plan.preempted.is_empty() {
            // ... unless the preempted sequence was the only one: it may be admitted again with the blocks it gave up.
            self.find_prefilling(step.seqs);
            self.admit(limits.max_sequences, &mut step);
            self.plan_prompts(&mut step);
        }
        step.plan.items.retain(|item| item.len > 0);
        for &slot in step.seqs.running() {
            self.places[slot] = UNPLANNED;
        }
    }

    /// Plans one token for each decoding sequence. If the budget is too small for all, they take turns.
    fn plan_decodes(&mut self, step: &mut Step<'_>) {
        let ready = step.seqs.running().iter().filter(|&&slot| step.seqs[slot].decodes()).count();
        let skip = if ready > step.left { self.turn % ready } else { 0 };
        let mut served = 0;
        for second_round in [false, true] {
            let (mut at, mut nth) = (0, 0);
            // The victims of a preemption are less entitled, so they come after `at`.
            while at < step.seqs.running().len() && step.left > 0 {
                let slot = step.seqs.running()[at];
                at += 1;
                if !step.seqs[slot].decodes() {
                    continue;
                }
                nth += 1;
                if (nth <= skip) == second_round && self.make_room(slot, step.seqs[slot].tokens, step) {
                    self.put(slot, 1, step);
                    served += 1;
                }
            }
        }
        self.turn = skip + served;
    }

    /// Admits waiting sequences, as long as there are places and enough prompt budget to give each a chunk. The first one that
    /// finds no blocks holds back those behind it, so that large ones do not starve. Sequences that already hold blocks are
    /// not held back.
    fn admit(&mut self, max_sequences: usize, step: &mut Step<'_>) {
        let mut lowest = self.prefilling.iter().map(|&slot| step.seqs[slot].priority).min().unwrap_or(0);
        let mut next_waiting = next(step.seqs, step.seqs.waiting(), None);
        let mut next_landed = next(step.seqs, step.seqs.landed(), None);
        while step.seqs.running().len() < max_sequences && step.left > 0 {
            let (rank, landed) = match (next_waiting, next_landed) {
                (Some(w), Some(l)) => (w.min(l), l < w),
                (Some(w), None) => (w, false),
                (None, Some(l)) => (l, true),
                (None, None) => break,
            };
            let slot = rank.2;
            let seq = &step.seqs[slot];
            let budget = step.left.min(step.prompts_left);
            let share = self.prefilling.len() * CHUNK < budget || (budget > 0 && seq.priority > lowest);
            let preempted = step.plan.preempted.len();
            let admitted = (share || seq.decodes()) && self.admit_one(slot, step);
            if admitted {
                let seq = &step.seqs[slot];
                if seq.decodes() {
                    self.put(slot, 1, step);
                } else {
                    lowest = lowest.min(seq.priority);
                    self.prefilling.push(slot);
                }
            }
            if step.plan.preempted.len() > preempted && step.seqs[slot].state == SeqState::Running {
                break;
            }
            match landed {
                true => next_landed = next(step.seqs, step.seqs.landed(), Some(rank)),
                false if admitted => next_waiting = next(step.seqs, step.seqs.waiting(), Some(rank)),
                false => next_waiting = None,
            }
        }
    }

    /// Admits a waiting or landed sequence if its blocks are free, or held by sequences whose level is below its priority.
    fn admit_one(&mut self, slot: Slot, step: &mut Step<'_>) -> bool {
        let landed = step.seqs[slot].state == SeqState::Landed;
        if !landed {
            let hit = step.blocks.attach_prefix(step.seqs[slot].id);
            step.seqs.set_prefix(slot, hit);
        }
        let seq = &step.seqs[slot];
        let (id, computed, priority) = (seq.id, seq.computed, u64::from(seq.priority));
        // A landed sequence keeps its blocks while it waits, so it needs no slack.
        let (wanted, least) = if landed { (seq.tokens, seq.tokens) } else { seq.admission_room() };
        while !step.blocks.reserve(id, computed, wanted) {
            step.plan.blocked = true;
            let alone = step.seqs.running().iter().all(|&slot| step.seqs[slot].paused);
            if alone && least < wanted && step.blocks.reserve(id, computed, least) {
                break;
            }
            let victim = step.seqs.least_entitled().filter(|&victim| {
                let weaker = step.seqs[victim].level < priority;
                weaker || (landed && alone && step.seqs[victim].state == SeqState::Landed)
            });
            match victim {
                Some(victim) => {
                    self.preempt(victim, step);
                    if victim == slot {
                        return false;
                    }
                }
                None if landed => return false,
                None => {
                    step.seqs.set_prefix(slot, 0);
                    step.blocks.release(id);
                    return false;
                }
            }
        }
        step.seqs.admit(slot, step.now_ns);
        true
    }

    /// Divides the prompt budget: by priority, with ageing since the last share, and evenly within a priority, beginning with the
    /// sequences served least recently.
    fn plan_prompts(&mut self, step: &mut Step<'_>) {
        let mut prefilling = std::mem::take(&mut self.prefilling);
        let mut share = std::mem::take(&mut self.share);
        let now_ns = step.now_ns;
        let level = |seq: &Seq| seq.level_at(seq.served_ns, now_ns);
        prefilling.sort_unstable_by_key(|&slot| {
            let seq = &step.seqs[slot];
            (Reverse(level(seq)), seq.served_step, seq.order)
        });
        let mut rest = &prefilling[..];
        while let Some(&first) = rest.first() {
            let top = level(&step.seqs[first]);
            let (group, lower) = rest.split_at(rest.partition_point(|&slot| level(&step.seqs[slot]) == top));
            rest = lower;
            let budget = step.left.min(step.prompts_left);
            share.divide(budget, group.iter().map(|&slot| step.seqs[slot].uncomputed()));
            for (&slot, &len) in group.iter().zip(&share.amounts) {
                let seq = &step.seqs[slot];
                // A sequence of the group may have lost its blocks to another one.
                if len > 0 && seq.state == SeqState::Running && self.make_room(slot, seq.computed + len, step) {
                    self.put(slot, len, step);
                    step.prompts_left -= len;
                    step.seqs.serve(slot, now_ns, self.step);
                }
            }
        }
        (self.prefilling, self.share) = (prefilling, share);
    }

    fn find_prefilling(&mut self, seqs: &Sequences) {
        self.prefilling.clear();
        self.prefilling.extend(seqs.running().iter().copied().filter(|&slot| seqs[slot].prefills()));
    }

    fn put(&mut self, slot: Slot, len: usize, step: &mut Step<'_>) {
        let seq = &step.seqs[slot];
        self.places[slot] = step.plan.items.len();
        step.left -= len;
        let samples = seq.computed + len == seq.tokens;
        step.plan.items.push(Item { seq: seq.id, start: seq.computed, len, samples });
    }

    /// Reserves blocks for the tokens `[0, upto)` of a running sequence, preempting less entitled ones if necessary. If that is
    /// not enough, the sequence itself is preempted and false returned.
    fn make_room(&mut self, slot: Slot, upto: usize, step: &mut Step<'_>) -> bool {
        while !step.blocks.reserve(step.seqs[slot].id, step.seqs[slot].computed, upto) {
            step.plan.blocked = true;
            let victim = step.seqs.least_entitled().unwrap_or(slot);
            self.preempt(victim, step);
            if victim == slot {
                return false;
            }
        }
        true
    }

    fn preempt(&mut self, victim: Slot, step: &mut Step<'_>) {
        let place = std::mem::replace(&mut self.places[victim], UNPLANNED);
        if place != UNPLANNED {
            step.left += std::mem::take(&mut step.plan.items[place].len);
        }
        let id = step.seqs[victim].id;
        step.seqs.preempt(victim);
        step.blocks.release(id);
        step.plan.preempted.push(id);
    }

    /// Panics if something refers to a finished plan.
    #[cfg(test)]
    pub fn check_integrity(&self) {
        assert!(self.places.iter().all(|&place| place == UNPLANNED));
    }
}

/// The first sequence in `queue` after `rank` that may be scheduled.
fn next(seqs: &Sequences, queue: &BTreeSet<Rank>, rank: Option<Rank>) -> Option<Rank> {
    let from = rank.map_or(Unbounded, Excluded);
    let ready = |rank: &&Rank| !seqs[rank.2].paused && seqs[rank.2].uncomputed() > 0;
    queue.range((from, Unbounded)).find(ready).copied()
}
