//! Samples the tokens of a step. Rows without logprobs are sampled on the device, if it can; the logits of all other rows are
//! downloaded and sampled by `sampling`. Both give the same token for the same logits.

use super::running::RunningRequest;
use super::table::Running;
use crate::backend::{DeviceSample, DeviceSamplingBatch, DeviceSamplingRow};
use crate::error::Result;
use crate::model::decoder::{Executor, LaunchTicket};
use crate::sampling::{self, Ctx, Sampled, Scratch};
use crate::scheduler::Plan;
use crate::sequence::SamplingParams;

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
    /// Rows that the device samples.
    on_device: DeviceSamplingBatch,
    /// The device's results for `on_device`.
    samples: Vec<DeviceSample>,
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
        running: &Running,
        eos_ids: &[u32],
    ) -> Result<()> {
        self.on_device.clear();
        self.on_host.clear();
        self.sources.clear();
        for (row, item) in (0..).zip(plan.items.iter().filter(|item| item.samples)) {
            let pushed = running.get(&item.seq).is_some_and(|request| push(row, &mut self.on_device, request, eos_ids));
            if pushed {
                self.sources.push(RowSource::Device(self.on_device.rows.len() - 1));
            } else {
                self.sources.push(RowSource::Host(self.on_host.len()));
                self.on_host.push(row);
            }
        }
        if !self.on_device.rows.is_empty() {
            if executor.collect_samples(step, &self.on_device, &mut self.samples)? {
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
    pub fn token(&mut self, row: usize, vocab: usize, request: &RunningRequest, eos_ids: &[u32]) -> Result<Sampled> {
        let ctx = context(request, eos_ids);
        let index = match self.sources.get(row) {
            Some(RowSource::Device(index)) => *index,
            Some(RowSource::Host(index)) => {
                let logits = self.logits.get_mut(index * vocab..(index + 1) * vocab);
                let logits =
                    logits.ok_or_else(|| crate::error!(Internal, "the model returned too few rows of logits"))?;
                return sampling::sample(logits, &request.snapshot().params, ctx, &mut self.scratch);
            }
            None => crate::bail!(Internal, "row {row} is out of range: the step sampled {} rows", self.sources.len()),
        };
        match self.samples.get(index) {
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

fn context<'a>(request: &'a RunningRequest, eos_ids: &'a [u32]) -> Ctx<'a> {
    let (counts, snapshot) = (request.counts(), request.snapshot());
    Ctx { counts, generated: snapshot.generated(), position: snapshot.tokens.len() as u64, eos_ids }
}

/// Adds a row with its parameters, which have the meaning that `sampling::sample` gives them. Returns false, and adds nothing,
/// if the row asks for something that devices do not do.
fn push(row: u32, batch: &mut DeviceSamplingBatch, request: &RunningRequest, eos_ids: &[u32]) -> bool {
    // Without `..`: whoever adds a parameter decides here whether devices apply it.
    let &SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        seed,
        max_new_tokens: _,
        min_new_tokens,
        logprobs,
        ignore_eos: _,
        ref stop_ids,
        stop_sequences: _,
        ref logit_bias,
    } = &request.snapshot().params;
    if logprobs.is_some() {
        return false;
    }
    let ctx = context(request, eos_ids);
    let range = |begin: usize, end: usize| (begin as u32, (end - begin) as u32);
    let biases = batch.biases.len();
    batch.biases.extend_from_slice(logit_bias);
    batch.biases[biases..].sort_by_key(|bias| bias.0); // stable

    let counts = batch.counts.len();
    batch.counts.extend_from_slice(ctx.counts.entries());

    let masked = batch.masked.len();
    if ctx.generated < min_new_tokens {
        batch.masked.extend(ctx.eos_ids.iter().chain(stop_ids));
    }
    batch.rows.push(DeviceSamplingRow {
        row,
        seed,
        position: ctx.position,
        temperature,
        top_p,
        min_p,
        top_k,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        biases: range(biases, batch.biases.len()),
        counts: range(counts, batch.counts.len()),
        masked: range(masked, batch.masked.len()),
    });
    true
}
