//! Samples the tokens of a step. Rows without logprobs are sampled on the device, if it can; the logits of all other rows are
//! downloaded and sampled by `sampling`. Both give the same token for the same logits.

use super::running::RunningRequest;
use crate::backend::{DeviceSample, DeviceSamplingBatch, DeviceSamplingRow};
use crate::error::Result;
use crate::model::decoder::{Executor, LaunchTicket};
use crate::sampling::{self, Ctx, Sampled, Scratch};
use crate::scheduler::Plan;
use crate::sequence::SamplingParams;
use std::collections::HashMap;

/// Origin of the token of one sampled row.
#[derive(Clone, Copy)]
enum RowSource {
    /// Index into the samples that the device took.
    Device(usize),
    /// Index into the downloaded rows of logits.
    Host(usize),
}

/// Turns a step's logits into tokens. Results do not depend on what earlier steps left in its buffers.
#[derive(Default)]
pub(super) struct Sampler {
    draws: DeviceSamplingBatch,
    drawn: Vec<DeviceSample>,
    /// Rows whose logits are downloaded and sampled on the host.
    on_host: Vec<u32>,
    logits: Vec<f32>,
    sources: Vec<RowSource>,
    scratch: Scratch,
}

impl Sampler {
    /// Waits until the step is computed, has the device sample the rows without logprobs and downloads the logits of the others.
    pub fn begin(
        &mut self,
        executor: &mut dyn Executor,
        step: &LaunchTicket,
        plan: &Plan,
        active: &HashMap<u64, RunningRequest>,
        eos_ids: &[u32],
    ) -> Result<()> {
        self.draws.clear();
        self.on_host.clear();
        self.sources.clear();
        for (row, item) in (0..).zip(plan.items.iter().filter(|item| item.samples)) {
            match active.get(&item.seq) {
                Some(active) if active.snapshot.params.logprobs.is_none() => {
                    self.sources.push(RowSource::Device(self.draws.rows.len()));
                    let ctx = context(active, eos_ids);
                    push(row, &mut self.draws, &active.snapshot.params, ctx);
                }
                _ => {
                    self.sources.push(RowSource::Host(self.on_host.len()));
                    self.on_host.push(row);
                }
            }
        }
        if !self.draws.rows.is_empty() {
            if executor.collect_samples(step, &self.draws, &mut self.drawn)? {
                if self.on_host.is_empty() {
                    return Ok(());
                }
            } else {
                self.on_host = (0..self.sources.len() as u32).collect();
                self.sources = (0..self.sources.len()).map(RowSource::Host).collect();
            }
        }
        executor.collect_logits(step, &self.on_host, &mut self.logits)
    }

    /// The token of the step's sampled row number `row`.
    pub fn token(&mut self, row: usize, vocab: usize, active: &RunningRequest, eos_ids: &[u32]) -> Result<Sampled> {
        let ctx = context(active, eos_ids);
        let index = match self.sources.get(row) {
            Some(RowSource::Device(index)) => *index,
            Some(RowSource::Host(index)) => {
                let logits = self.logits.get_mut(index * vocab..(index + 1) * vocab);
                let logits =
                    logits.ok_or_else(|| crate::error!(Internal, "the model returned too few rows of logits"))?;
                return sampling::sample(logits, &active.snapshot.params, ctx, &mut self.scratch);
            }
            None => crate::bail!(Internal, "row {row} is out of range: the step sampled {} rows", self.sources.len()),
        };
        match self.drawn.get(index) {
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
            None => crate::bail!(Internal, "the device sampled too few tokens"),
        }
    }
}

fn context<'a>(active: &'a RunningRequest, eos_ids: &'a [u32]) -> Ctx<'a> {
    let snapshot = &active.snapshot;
    Ctx { counts: &active.counts, generated: snapshot.generated(), position: snapshot.tokens.len() as u64, eos_ids }
}

/// Adds the parameters of one row. They have the meaning that `sampling::sample` gives them.
fn push(row: u32, draws: &mut DeviceSamplingBatch, params: &SamplingParams, ctx: Ctx<'_>) {
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
        row,
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
