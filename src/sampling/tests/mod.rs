//! Sampling against values worked out by hand, and against its definition.

mod draws;
mod logits;

use super::{Ctx, Sampled, Scratch, TokenCounts, sample};
use crate::error::Result;
use crate::sequence::SamplingParams;

/// Samples after `tokens`, of which those from `turn` on were generated.
pub fn after(logits: &mut [f32], params: &SamplingParams, tokens: &[u32], turn: usize) -> Result<Sampled> {
    let counts = TokenCounts::new(params, tokens, turn);
    let generated = (tokens.len() - turn) as u32;
    let ctx = Ctx { counts: &counts, generated, position: tokens.len() as u64, eos_ids: &[7] };
    sample(logits, params, ctx, &mut Scratch::default())
}

pub fn at(logits: &[f32], params: &SamplingParams, position: u64) -> Result<Sampled> {
    let ctx = Ctx { counts: &TokenCounts::default(), generated: 0, position, eos_ids: &[7] };
    sample(&mut logits.to_vec(), params, ctx, &mut Scratch::default())
}

pub fn token(logits: &[f32], params: &SamplingParams, position: u64) -> u32 {
    at(logits, params, position).unwrap().token
}

pub fn warm() -> SamplingParams {
    SamplingParams { temperature: 1.0, seed: 42, ..SamplingParams::default() }
}

/// Logits of a distribution.
pub fn logits_of(p: &[f64]) -> Vec<f32> {
    p.iter().map(|p| p.ln() as f32 + 3.0).collect()
}

pub const P: [f64; 8] = [0.05, 0.3, 0.02, 0.25, 0.1, 0.15, 0.1, 0.03];
