//! The tokens of a step: drawn by the device where it can, else by `sampling` from the logits.

use super::running::RunningRequest;
use crate::backend::{DeviceSample, DeviceSamplingBatch, DeviceSamplingRow};
use crate::error::Result;
use crate::model::decoder::Executor;
use crate::sampling::{self, Ctx, Sampled, Scratch};
use crate::scheduler::Plan;
use crate::sequence::SamplingParams;
use std::collections::HashMap;

/// What a step's rows become tokens with. Holds nothing that a result depends on.
#[derive(Default)]
pub(super) struct Sampler {
    draws: DeviceSamplingBatch,
    drawn: Vec<DeviceSample>,
    logits: Vec<f32>,
    scratch: Scratch,
    /// The device has drawn.
    on_device: bool,
}

impl Sampler {
    /// Waits until the step is done, and has the device draw if it can: it does not report logprobs.
    pub fn begin(
        &mut self,
        executor: &mut dyn Executor,
        plan: &Plan,
        active: &HashMap<u64, RunningRequest>,
        eos_ids: &[u32],
    ) -> Result<()> {
        let sampling = || plan.items.iter().filter(|item| item.samples);
        let rows = sampling().count();
        self.on_device = false;
        if rows > 0 && sampling().all(|item| active.get(&item.seq).is_none_or(|a| a.snapshot.params.logprobs.is_none()))
        {
            self.draws.clear();
            for item in sampling() {
                match active.get(&item.seq) {
                    Some(active) => {
                        let ctx = context(active, eos_ids);
                        push(&mut self.draws, &active.snapshot.params, ctx);
                    }
                    None => self.draws.rows.push(DeviceSamplingRow::default()), // nobody asks for it
                }
            }
            self.on_device = executor.draw(&self.draws, &mut self.drawn)?;
        }
        if !self.on_device {
            executor.logits(rows, &mut self.logits)?;
        }
        Ok(())
    }

    /// The token of the step's `row`-th sampled sequence.
    pub fn token(&mut self, row: usize, vocab: usize, active: &RunningRequest, eos_ids: &[u32]) -> Result<Sampled> {
        let ctx = context(active, eos_ids);
        if !self.on_device {
            let logits = self.logits.get_mut(row * vocab..(row + 1) * vocab);
            let logits = logits.ok_or_else(|| crate::error!(Internal, "the model gave too few rows of logits"))?;
            return sampling::sample(logits, &active.snapshot.params, ctx, &mut self.scratch);
        }
        match self.drawn.get(row) {
            Some(&DeviceSample::Token(token)) => Ok(Sampled { token, logprob: 0.0, top: Vec::new() }),
            Some(DeviceSample::Broken(token)) => {
                crate::bail!(Internal, "the logit of token {token} at position {} is NaN or infinite", ctx.position)
            }
            Some(DeviceSample::Nothing) => {
                crate::bail!(
                    Internal,
                    "no token can be sampled at position {}: all logits are -inf or NaN",
                    ctx.position
                )
            }
            None => crate::bail!(Internal, "the device drew too few tokens"),
        }
    }
}

fn context<'a>(active: &'a RunningRequest, eos_ids: &'a [u32]) -> Ctx<'a> {
    let snapshot = &active.snapshot;
    Ctx { counts: &active.counts, generated: snapshot.generated(), position: snapshot.tokens.len() as u64, eos_ids }
}

/// Adds one row's draw: see `sampling::sample` and its penalties for what each number does.
fn push(draws: &mut DeviceSamplingBatch, params: &SamplingParams, ctx: Ctx<'_>) {
    fn range(begin: usize, end: usize) -> (u32, u32) {
        (begin as u32, (end - begin) as u32)
    }
    let biases = draws.biases.len();
    draws.biases.extend_from_slice(&params.logit_bias);
    draws.biases[biases..].sort_by_key(|bias| bias.0); // stable

    let counts = draws.counts.len();
    draws.counts.extend_from_slice(ctx.counts.entries());

    let masked = draws.masked.len();
    if ctx.generated < params.min_new_tokens {
        draws.masked.extend(ctx.eos_ids.iter().chain(&params.stop_ids));
    }
    draws.rows.push(DeviceSamplingRow {
        seed: params.seed,
        position: ctx.position,
        temperature: params.temperature,
        top_p: params.top_p,
        min_p: params.min_p,
        top_k: params.top_k,
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        biases: range(biases, draws.biases.len()),
        counts: range(counts, draws.counts.len()),
        masked: range(masked, draws.masked.len()),
    });
}
