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
    counter: Counter,
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
                        push(&mut self.draws, &mut self.counter, &active.snapshot.params, ctx);
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
    Ctx {
        tokens: &snapshot.tokens,
        prompts: &snapshot.prompts,
        generated: snapshot.generated(),
        position: snapshot.tokens.len() as u64,
        eos_ids,
    }
}

/// Counts the tokens of one sequence after the other, each in a few nanoseconds: with penalties that is all of the
/// context for every token, while the device waits.
#[derive(Default)]
struct Counter {
    sequence: u32,
    /// By token: the sequence that it was last met in, and its place in the list.
    places: Vec<(u32, u32)>,
}

impl Counter {
    /// Adds each token of both to `out` once, with how often it is in `counted`.
    fn count(&mut self, seen: &[u32], counted: &[u32], out: &mut Vec<(u32, u32)>) {
        self.sequence = self.sequence.wrapping_add(1);
        if self.sequence == 0 {
            self.places.clear();
            self.sequence = 1;
        }
        for (tokens, adds) in [(seen, 0), (counted, 1)] {
            for &token in tokens {
                if self.places.len() <= token as usize {
                    self.places.resize(token as usize + 1, (0, 0));
                }
                let place = &mut self.places[token as usize];
                if place.0 == self.sequence {
                    out[place.1 as usize].1 += adds;
                } else {
                    *place = (self.sequence, out.len() as u32);
                    out.push((token, adds));
                }
            }
        }
    }
}

/// Adds one row's draw: see `sampling::sample` and its penalties for what each number does.
fn push(draws: &mut DeviceSamplingBatch, counter: &mut Counter, params: &SamplingParams, ctx: Ctx<'_>) {
    fn range(begin: usize, end: usize) -> (u32, u32) {
        (begin as u32, (end - begin) as u32)
    }
    let biases = draws.biases.len();
    draws.biases.extend_from_slice(&params.logit_bias);
    draws.biases[biases..].sort_by_key(|bias| bias.0); // stable

    let counts = draws.counts.len();
    let of_turn = params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
    if params.repetition_penalty != 1.0 || of_turn {
        let turn = ctx.prompts.last().map_or(0, |prompt| prompt.1 as usize).min(ctx.tokens.len());
        let before = if params.repetition_penalty != 1.0 { turn } else { 0 };
        counter.count(&ctx.tokens[..before], &ctx.tokens[turn..], &mut draws.counts);
    }

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

#[cfg(test)]
mod tests {
    use super::Counter;

    #[test]
    fn tokens_are_counted_once_for_each_sequence() {
        let mut counter = Counter::default();
        let mut out = vec![(9, 9)];
        counter.count(&[3, 5, 3], &[5, 7, 5], &mut out);
        assert_eq!(out, [(9, 9), (3, 0), (5, 2), (7, 1)]);
        counter.count(&[], &[5, 3], &mut out);
        assert_eq!(out[4..], [(5, 1), (3, 1)]);
        // As after so many sequences that their numbers begin anew.
        counter.sequence = u32::MAX;
        counter.count(&[5], &[3], &mut out);
        assert_eq!(out[6..], [(5, 0), (3, 1)]);
    }
}
