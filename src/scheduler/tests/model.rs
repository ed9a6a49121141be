//! A block pool, an engine that runs plans, and the checks that hold for every plan.

use crate::scheduler::{Blocks, Limits, NewSeq, Plan, Scheduler, SeqId};
use std::collections::{BTreeMap, HashSet};

pub const BLOCK: usize = 4;

/// Blocks by sequence; one pool may serve several engines.
#[derive(Default)]
pub struct Pool {
    pub free: usize,
    pub held: BTreeMap<SeqId, usize>,
    /// Tokens that the next `attach_prefix` finds, as far as there are blocks.
    pub hit: usize,
    attached: BTreeMap<SeqId, usize>,
}

impl Pool {
    pub fn new(blocks: usize) -> Self {
        Pool { free: blocks, ..Pool::default() }
    }
}

impl Blocks for Pool {
    fn reserve(&mut self, seq: SeqId, computed: usize, upto: usize) -> bool {
        let held = self.held.entry(seq).or_default();
        assert!(computed <= *held * BLOCK, "sequence {seq}: {computed} tokens computed, {held} blocks");
        let wanted = upto.div_ceil(BLOCK).saturating_sub(*held);
        if wanted > self.free {
            return false;
        }
        self.free -= wanted;
        *held += wanted;
        true
    }

    fn attach_prefix(&mut self, seq: SeqId) -> usize {
        assert_eq!(self.held.get(&seq).copied().unwrap_or(0), 0, "sequence {seq} holds blocks already");
        let blocks = (self.hit / BLOCK).min(self.free);
        self.free -= blocks;
        self.held.insert(seq, blocks);
        self.attached.insert(seq, blocks * BLOCK);
        blocks * BLOCK
    }

    fn release(&mut self, seq: SeqId) {
        self.free += self.held.remove(&seq).unwrap_or(0);
        self.attached.remove(&seq);
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub tokens: usize,
    pub computed: usize,
    /// Tokens in all when it is done.
    pub end: usize,
    pub paused: bool,
}

/// A model of the engine around a scheduler.
#[derive(Default)]
pub struct Engine {
    pub scheduler: Scheduler,
    pub plan: Plan,
    pub jobs: BTreeMap<SeqId, Job>,
    pub done: Vec<SeqId>,
    pub preemptions: usize,
    pub now_ns: u64,
}

impl Engine {
    pub fn add(&mut self, id: SeqId, tokens: usize, generate: usize, priority: u32) {
        let new = NewSeq { id, tokens, computed: 0, max_tokens: tokens + generate - 1, priority, now_ns: self.now_ns };
        assert!(self.scheduler.add(new));
        assert!(!self.scheduler.add(new), "an id is taken once");
        self.jobs.insert(id, Job { tokens, computed: 0, end: tokens + generate, paused: false });
    }

    /// Adds a sequence with KV of all tokens but the last. False if the pool has no room for it.
    pub fn import(&mut self, pool: &mut Pool, id: SeqId, tokens: usize, generate: usize, priority: u32) -> bool {
        if tokens < 2 || !pool.reserve(id, 0, tokens - 1) {
            pool.release(id);
            return false;
        }
        let (computed, max_tokens) = (tokens - 1, tokens + generate - 1);
        let new = NewSeq { id, tokens, computed, max_tokens, priority, now_ns: self.now_ns };
        assert!(self.scheduler.add(new));
        self.jobs.insert(id, Job { tokens, computed, end: tokens + generate, paused: false });
        true
    }

    pub fn pause(&mut self, id: SeqId, paused: bool) {
        assert!(if paused { self.scheduler.pause(id) } else { self.scheduler.resume(id) });
        self.jobs.get_mut(&id).unwrap().paused = paused;
    }

    pub fn remove(&mut self, pool: &mut Pool, id: SeqId) {
        assert!(self.scheduler.remove(id) && !self.scheduler.remove(id));
        self.jobs.remove(&id);
        pool.release(id);
    }

    /// Plans, checks, runs. Returns the lengths planned, by sequence.
    pub fn step(&mut self, limits: &Limits, pool: &mut Pool) -> Vec<(SeqId, usize)> {
        let before = self.scheduler.running();
        self.scheduler.plan(limits, self.now_ns, pool, &mut self.plan);
        self.scheduler.check_integrity();
        for id in &self.plan.preempted {
            self.preemptions += 1;
            self.jobs.get_mut(id).unwrap().computed = 0;
        }
        let running = self.scheduler.running();
        assert!(running <= limits.max_sequences.max(before));
        let (mut seen, mut tokens, mut prompts) = (HashSet::new(), 0, 0);
        for item in &self.plan.items {
            let job = self.jobs.get_mut(&item.seq).unwrap();
            if let Some(hit) = pool.attached.remove(&item.seq) {
                job.computed = hit.min(job.tokens - 1);
            }
            assert!(seen.insert(item.seq), "sequence {} occurs twice", item.seq);
            assert!(!job.paused && item.len > 0);
            assert_eq!(item.start, job.computed);
            assert!(item.start + item.len <= job.tokens);
            assert!(item.start + item.len <= pool.held[&item.seq] * BLOCK, "tokens without blocks");
            assert_eq!(item.samples, item.start + item.len == job.tokens);
            tokens += item.len;
            prompts += if job.tokens - job.computed > 1 { item.len } else { 0 };
        }
        assert!(tokens <= limits.max_batch_tokens);
        assert!(prompts <= limits.max_prefill_tokens);
        self.scheduler.commit(&self.plan);
        let lens = self.plan.items.iter().map(|item| (item.seq, item.len)).collect();
        for item in std::mem::take(&mut self.plan.items) {
            let job = self.jobs.get_mut(&item.seq).unwrap();
            job.computed += item.len;
            if item.samples {
                job.tokens += 1;
                if job.tokens == job.end {
                    self.remove(pool, item.seq);
                    self.done.push(item.seq);
                } else {
                    assert!(self.scheduler.append(item.seq));
                }
            }
        }
        for (&id, job) in &self.jobs {
            let (tokens, computed) = self.scheduler.progress(id).unwrap();
            // A prefix hit of a sequence that got no tokens yet is not in the model.
            assert!(tokens == job.tokens && (computed == job.computed || pool.attached.contains_key(&id)));
        }
        lens
    }
}
