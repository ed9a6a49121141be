//! Plans a step: decodes, admissions and prompt chunks, with preemption of the least entitled sequences.

use super::queue::{Rank, Seq, SeqState, Slot, UNPLANNED};
use super::{Blocks, CHUNK, Item, Limits, Plan, Scheduler};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Unbounded};

/// State of the plan being made.
struct Step<'a> {
    now_ns: u64,
    /// Tokens left in the step's budget.
    left: usize,
    /// Tokens left in the budget of prompts.
    prompts_left: usize,
    blocks: &'a mut dyn Blocks,
    plan: &'a mut Plan,
}

impl Scheduler {
    /// Plans a step. `now_ns` is monotonic; `plan` is overwritten. O(running + scheduled), and O(log waiting)
    /// for each admission.
    pub fn plan(&mut self, limits: &Limits, now_ns: u64, blocks: &mut dyn Blocks, plan: &mut Plan) {
        plan.clear();
        self.step += 1;
        let (left, prompts_left) = (limits.max_batch_tokens, limits.max_prefill_tokens);
        let mut step = Step { now_ns, left, prompts_left, blocks, plan };
        self.plan_decodes(&mut step);
        self.find_prefilling();
        // vLLM's rule: no admissions in a step that ran out of blocks ...
        if step.plan.preempted.is_empty() {
            self.admit(limits.max_sequences, &mut step);
        }
        self.plan_prompts(&mut step);
        if step.plan.items.iter().all(|item| item.len == 0) && !step.plan.preempted.is_empty() {
            // ... unless the preempted sequence was the only one: it may be admitted again with the blocks it gave up.
            self.find_prefilling();
            self.admit(limits.max_sequences, &mut step);
            self.plan_prompts(&mut step);
        }
        plan.items.retain(|item| item.len > 0);
        for &slot in &self.running {
            self.seqs[slot].item = UNPLANNED;
        }
    }

    /// Plans one token for each decoding sequence. If the budget is too small for all, they take turns.
    fn plan_decodes(&mut self, step: &mut Step<'_>) {
        let ready = self.running.iter().filter(|&&slot| self.seqs[slot].decodes()).count();
        let skip = if ready > step.left { self.turn % ready } else { 0 };
        let mut served = 0;
        for second_round in [false, true] {
            let (mut at, mut nth) = (0, 0);
            // The victims of a preemption are less entitled, so they come after `at`.
            while at < self.running.len() && step.left > 0 {
                let slot = self.running[at];
                at += 1;
                if !self.seqs[slot].decodes() {
                    continue;
                }
                nth += 1;
                if (nth <= skip) == second_round && self.make_room(slot, self.seqs[slot].tokens, step) {
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
        let mut lowest = self.prefilling.iter().map(|&slot| self.seqs[slot].priority).min().unwrap_or(0);
        let mut next_waiting = self.next(&self.waiting, None);
        let mut next_landed = self.next(&self.landed, None);
        while self.running.len() < max_sequences && step.left > 0 {
            let (rank, landed) = match (next_waiting, next_landed) {
                (Some(w), Some(l)) => (w.min(l), l < w),
                (Some(w), None) => (w, false),
                (None, Some(l)) => (l, true),
                (None, None) => break,
            };
            let slot = rank.2;
            let seq = &self.seqs[slot];
            let budget = step.left.min(step.prompts_left);
            let share = self.prefilling.len() * CHUNK < budget || (budget > 0 && seq.priority > lowest);
            let preempted = step.plan.preempted.len();
            let admitted = (share || seq.decodes()) && self.admit_one(slot, step);
            if admitted {
                let seq = &self.seqs[slot];
                if seq.decodes() {
                    self.put(slot, 1, step);
                } else {
                    lowest = lowest.min(seq.priority);
                    self.prefilling.push(slot);
                }
            }
            if step.plan.preempted.len() > preempted && self.seqs[slot].state == SeqState::Running {
                break;
            }
            match landed {
                true => next_landed = self.next(&self.landed, Some(rank)),
                false if admitted => next_waiting = self.next(&self.waiting, Some(rank)),
                false => next_waiting = None,
            }
        }
    }

    /// The first sequence in `queue` after `rank` that may be scheduled.
    fn next(&self, queue: &BTreeSet<Rank>, rank: Option<Rank>) -> Option<Rank> {
        let from = rank.map_or(Unbounded, Excluded);
        let ready = |rank: &&Rank| !self.seqs[rank.2].paused && self.seqs[rank.2].uncomputed() > 0;
        queue.range((from, Unbounded)).find(ready).copied()
    }

    /// Admits a waiting or landed sequence if its blocks are free, or held by sequences whose level is below its priority.
    fn admit_one(&mut self, slot: Slot, step: &mut Step<'_>) -> bool {
        let seq = &mut self.seqs[slot];
        let landed = seq.state == SeqState::Landed;
        if !landed {
            seq.computed = step.blocks.attach_prefix(seq.id).min(seq.tokens - 1);
        }
        let (id, computed, priority) = (seq.id, seq.computed, u64::from(seq.priority));
        // A landed sequence keeps its blocks while it waits, so it needs no slack.
        let (wanted, least) = if landed { (seq.tokens, seq.tokens) } else { seq.admission_room() };
        while !step.blocks.reserve(id, computed, wanted) {
            step.plan.blocked = true;
            let alone = self.running.iter().all(|&slot| self.seqs[slot].paused);
            if alone && least < wanted && step.blocks.reserve(id, computed, least) {
                break;
            }
            let victim = self.least_entitled().filter(|&victim| {
                let weaker = self.seqs[victim].level < priority;
                weaker || (landed && alone && self.seqs[victim].state == SeqState::Landed)
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
                    self.seqs[slot].computed = 0;
                    step.blocks.release(id);
                    return false;
                }
            }
        }
        self.dequeue(slot);
        let seq = &mut self.seqs[slot];
        seq.state = SeqState::Running;
        seq.level = seq.level_at(seq.arrival_ns, step.now_ns);
        self.enqueue(slot);
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
            let seq = &self.seqs[slot];
            (Reverse(level(seq)), seq.served_step, seq.order)
        });
        let mut rest = &prefilling[..];
        while let Some(&first) = rest.first() {
            let top = level(&self.seqs[first]);
            let (group, lower) = rest.split_at(rest.partition_point(|&slot| level(&self.seqs[slot]) == top));
            rest = lower;
            let budget = step.left.min(step.prompts_left);
            share.divide(budget, group.iter().map(|&slot| self.seqs[slot].uncomputed()));
            for (&slot, &len) in group.iter().zip(&share.amounts) {
                let seq = &self.seqs[slot];
                // A sequence of the group may have lost its blocks to another one.
                if len > 0 && seq.state == SeqState::Running && self.make_room(slot, seq.computed + len, step) {
                    self.put(slot, len, step);
                    step.prompts_left -= len;
                    let seq = &mut self.seqs[slot];
                    (seq.served_ns, seq.served_step) = (now_ns, self.step);
                }
            }
        }
        (self.prefilling, self.share) = (prefilling, share);
    }

    fn find_prefilling(&mut self) {
        self.prefilling.clear();
        self.prefilling.extend(self.running.iter().copied().filter(|&slot| self.seqs[slot].prefills()));
    }

    fn put(&mut self, slot: Slot, len: usize, step: &mut Step<'_>) {
        let seq = &mut self.seqs[slot];
        seq.item = step.plan.items.len();
        step.left -= len;
        let samples = seq.computed + len == seq.tokens;
        step.plan.items.push(Item { seq: seq.id, start: seq.computed, len, samples });
    }

    /// Reserves blocks for the tokens `[0, upto)` of a running sequence, preempting less entitled ones if necessary. If that is
    /// not enough, the sequence itself is preempted and false returned.
    fn make_room(&mut self, slot: Slot, upto: usize, step: &mut Step<'_>) -> bool {
        while !step.blocks.reserve(self.seqs[slot].id, self.seqs[slot].computed, upto) {
            step.plan.blocked = true;
            let victim = self.least_entitled().unwrap_or(slot);
            self.preempt(victim, step);
            if victim == slot {
                return false;
            }
        }
        true
    }

    /// Picks the least entitled of the sequences that hold blocks.
    fn least_entitled(&self) -> Option<Slot> {
        let landed = self.landed.iter().map(|rank| rank.2);
        landed.chain(self.running.last().copied()).max_by_key(|&slot| self.seqs[slot].entitlement())
    }

    fn preempt(&mut self, victim: Slot, step: &mut Step<'_>) {
        self.dequeue(victim);
        let seq = &mut self.seqs[victim];
        if seq.item != UNPLANNED {
            step.left += std::mem::take(&mut step.plan.items[seq.item].len);
        }
        seq.lose_blocks();
        step.blocks.release(seq.id);
        step.plan.preempted.push(seq.id);
        self.enqueue(victim);
    }
}
