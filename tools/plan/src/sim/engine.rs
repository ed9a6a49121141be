//! One simulated engine: the library's scheduler over counted blocks.

use super::blocks::{BlockPool, EngineBlocks};
use super::deployment::{Pool, Role};
use super::request::Request;
use crate::cost::{StepCost, StepWork};
use crate::models::Model;
use cleave::engine::DECODE_ROLE_PREFILL_TOKENS;
use cleave::scheduler::{Limits, Plan, Scheduler};
use std::collections::VecDeque;

/// A message to an engine, which takes it up before its next step.
#[derive(Clone, Copy, Debug)]
pub enum Message {
    /// A request that is computed from its tokens.
    Tokens(usize),
    /// A request whose KV has arrived.
    Landed(usize),
}

/// An engine.
pub struct Engine {
    /// Index of its pool.
    pub pool: usize,
    /// Current role.
    pub role: Role,
    /// Decides what runs.
    pub scheduler: Scheduler,
    /// The step that runs; its buffers are reused.
    pub plan: Plan,
    /// KV blocks.
    pub blocks: BlockPool,
    /// Messages that came during the step.
    pub inbox: Vec<Message>,
    /// Requests that wait for blocks for their KV.
    pub imports: VecDeque<(usize, u32)>,
    /// Whether a step runs.
    pub busy: bool,
    /// Whether it is about to be woken.
    pub waking: bool,
    /// Whether it runs at all.
    pub alive: bool,
    /// Number of failures, which outdates events.
    pub epoch: u32,
    /// Requests that were routed here and are not over.
    pub open: usize,
    /// Prompt tokens that were routed here and are not computed.
    pub backlog: usize,
    /// Time of all steps until the last arrival, in nanoseconds.
    pub busy_ns: u64,
    /// Number of steps.
    pub steps: u64,
    /// Number of preemptions.
    pub preemptions: u64,
    /// Prompt tokens found in the prefix cache.
    pub prefix_hits: usize,
    /// Times until which its outgoing and its incoming link are taken.
    pub link_free_ns: [u64; 2],
}

impl Engine {
    /// An idle engine of a pool.
    pub fn new(pool: usize, spec: &Pool) -> Engine {
        Engine {
            pool,
            role: spec.role,
            scheduler: Scheduler::new(),
            plan: Plan::default(),
            blocks: BlockPool::new(spec.blocks),
            inbox: Vec::new(),
            imports: VecDeque::new(),
            busy: false,
            waking: false,
            alive: true,
            epoch: 0,
            open: 0,
            backlog: 0,
            busy_ns: 0,
            steps: 0,
            preemptions: 0,
            prefix_hits: 0,
            link_free_ns: [0; 2],
        }
    }

    /// Plans a step and returns its duration by `cost`; None if there is nothing to do.
    pub fn plan(
        &mut self,
        spec: &Pool,
        cost: &StepCost,
        window: Option<usize>,
        requests: &mut [Request],
        now_ns: u64,
    ) -> Option<u64> {
        let max_prefill_tokens = match self.role {
            Role::Decode => spec.max_batch_tokens.min(DECODE_ROLE_PREFILL_TOKENS),
            Role::Mixed | Role::Prefill => spec.max_batch_tokens,
        };
        let limits =
            Limits { max_sequences: spec.max_sequences, max_batch_tokens: spec.max_batch_tokens, max_prefill_tokens };
        let mut blocks = EngineBlocks { pool: &mut self.blocks, requests };
        self.scheduler.plan(&limits, now_ns, &mut blocks, &mut self.plan);
        self.preemptions += self.plan.preempted.len() as u64;
        if self.plan.items.is_empty() {
            return None;
        }
        let seconds = step_seconds(cost, &self.plan, window);
        let ns = ((seconds * 1e9) as u64).max(1);
        self.steps += 1;
        Some(ns)
    }

    /// Loses everything, as the process has ended.
    pub fn fail(&mut self, spec: &Pool) {
        let (busy_ns, steps, epoch, role) = (self.busy_ns, self.steps, self.epoch, self.role);
        let (preemptions, prefix_hits) = (self.preemptions, self.prefix_hits);
        *self = Engine::new(self.pool, spec);
        (self.busy_ns, self.steps, self.epoch, self.role) = (busy_ns, steps, epoch + 1, role);
        (self.preemptions, self.prefix_hits) = (preemptions, prefix_hits);
        self.alive = false;
    }
}

fn step_seconds(cost: &StepCost, plan: &Plan, window: Option<usize>) -> f64 {
    let mut work = StepWork::default();
    for item in &plan.items {
        work.add_item(item, |context| Model::attended_with(window, context));
    }
    cost.seconds(&work)
}
