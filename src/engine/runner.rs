//! The model's part of a step: packs the rows of a plan, has them computed, and samples tokens.

use super::batch;
use super::sampler::Sampler;
use super::table::Running;
use crate::backend::Batch;
use crate::error::Result;
use crate::model::decoder::{Executor, LaunchTicket};
use crate::sampling::Sampled;
use crate::scheduler::{Plan, SeqId};

/// Runs plans on one executor. It reads sequences and never changes them.
pub(super) struct ModelRunner {
    executor: Box<dyn Executor>,
    batch: Batch,
    sampler: Sampler,
    /// Tokens of the step being collected. The buffer is reused from step to step.
    sampled: Vec<(SeqId, Result<Sampled>)>,
}

impl ModelRunner {
    /// A runner that uses `executor`.
    pub fn new(executor: Box<dyn Executor>) -> ModelRunner {
        ModelRunner { executor, batch: Batch::default(), sampler: Sampler::default(), sampled: Vec::new() }
    }

    /// The executor itself, for everything but steps.
    pub fn executor(&mut self) -> &mut dyn Executor {
        &mut *self.executor
    }

    /// Starts to compute the rows of `plan`: the first half of a step.
    pub fn launch(&mut self, plan: &Plan, running: &Running, block_tokens: usize) -> Result<LaunchTicket> {
        batch::build(plan, running, block_tokens, &mut self.batch);
        self.executor.launch(&self.batch)
    }

    /// Waits until the rows of a launched step are computed, and fetches its samples and logits: the second half of a step.
    pub fn collect(&mut self, step: LaunchTicket, plan: &Plan, running: &Running, eos_ids: &[u32]) -> Result<()> {
        self.sampler.begin(&mut *self.executor, &step, plan, running, eos_ids)
    }

    /// Samples the next token of each sequence whose last known token was in the collected step. All tokens are sampled before
    /// this returns, so that their events go out together and a poller wakes up once per step.
    pub fn sample(
        &mut self,
        plan: &Plan,
        running: &Running,
        eos_ids: &[u32],
    ) -> std::vec::Drain<'_, (SeqId, Result<Sampled>)> {
        self.sampled.clear();
        let vocab = self.executor.vocab_size();
        let sampling = plan.items.iter().filter(|item| item.samples).enumerate();
        for (row, item) in sampling {
            if let Some(sequence) = running.get(&item.seq) {
                self.sampled.push((item.seq, self.sampler.token(row, vocab, sequence, eos_ids)));
            }
        }
        self.sampled.drain(..)
    }
}
