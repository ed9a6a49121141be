//! The model's part of a step: packs the rows of a plan, has them computed, and samples.

use super::batch;
use super::sampler::Sampler;
use super::table::Running;
use crate::backend::Batch;
use crate::error::Result;
use crate::model::decoder::{Executor, LaunchTicket};
use crate::sampling::Sampled;
use crate::scheduler::{Plan, SeqId};

/// Runs plans on one executor. Reads sequences and changes none.
pub(super) struct ModelRunner {
    executor: Box<dyn Executor>,
    batch: Batch,
    sampler: Sampler,
    /// Tokens of a step that is being collected; kept for its memory.
    sampled: Vec<(SeqId, Result<Sampled>)>,
}

impl ModelRunner {
    pub fn new(executor: Box<dyn Executor>) -> ModelRunner {
        ModelRunner { executor, batch: Batch::default(), sampler: Sampler::default(), sampled: Vec::new() }
    }

    pub fn executor(&mut self) -> &mut dyn Executor {
        &mut *self.executor
    }

    /// The first half of a step: starts to compute the rows of `plan`.
    pub fn launch(&mut self, plan: &Plan, running: &Running, block_tokens: usize) -> Result<LaunchTicket> {
        batch::build(plan, running, block_tokens, &mut self.batch);
        self.executor.launch(&self.batch)
    }

    /// The second half: waits until the rows of a launched step are computed, and takes what the device sampled of them.
    pub fn collect(&mut self, step: LaunchTicket, plan: &Plan, running: &Running, eos_ids: &[u32]) -> Result<()> {
        self.sampler.begin(&mut *self.executor, &step, plan, running, eos_ids)
    }

    /// The tokens of the step that was collected, for each sequence whose last token was in it. Complete when this returns,
    /// so that events go out together and whoever polls wakes up once for a step.
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
