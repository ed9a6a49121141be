//! One token from one row of logits.

use super::penalties::{self, Marks};
use super::topk::{Candidate, likelier, top_k};
use super::{Ctx, Sampled, math, philox};
use crate::bail;
use crate::error::Result;
use crate::sequence::SamplingParams;

/// Tokens whose weights are added up together: makes one long sum short ones, which vectorise.
const STRIDE: usize = 512;

/// Memory kept from call to call. Holds nothing that a result depends on.
#[derive(Default)]
pub struct Scratch {
    raw: Vec<f32>,
    marks: Marks,
    candidates: Vec<Candidate>,
    kept: Vec<Candidate>,
    weights: Vec<f64>,
    sums: Vec<f64>,
}

/// Samples the next token. `logits` (one per vocabulary entry) is overwritten.
///
/// Order: logit bias, penalties, `min_new_tokens`; temperature; top-k, top-p, min-p; draw. Filters come in
/// Hugging Face's order (`_get_logits_processor`), which llama.cpp and SGLang share; vLLM has min-p before the
/// other two. Top-k keeps exactly k (lowest ids on ties), top-p the smallest set that reaches p of what top-k
/// left, min-p what has `min_p` times the largest probability. The draw is the inverse of the cumulative
/// distribution over the kept tokens in ascending id, at the number that seed and position give.
pub fn sample(logits: &mut [f32], params: &SamplingParams, ctx: Ctx<'_>, scratch: &mut Scratch) -> Result<Sampled> {
    if let Some(id) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        bail!(Internal, "the logit of token {id} at position {} is {}", ctx.position, logits[id]);
    }
    scratch.raw.clear();
    if params.logprobs.is_some() {
        scratch.raw.extend_from_slice(logits);
    }
    penalties::apply(logits, params, &ctx, &mut scratch.marks);
    let Some(best) = argmax(logits) else {
        bail!(
            Internal,
            "no token can be sampled at position {}: all {} logits are -inf or NaN",
            ctx.position,
            logits.len()
        );
    };
    let token = match params.temperature > 0.0 {
        true => draw(logits, best, params, philox::uniform(params.seed, ctx.position), scratch),
        false => best.0,
    };
    let mut sampled = Sampled { token, logprob: 0.0, top: Vec::new() };
    if let Some(n) = params.logprobs {
        logprobs(&mut sampled, n as usize, scratch);
    }
    Ok(sampled)
}

/// The largest, lowest id on ties; None if all are −∞ (or NaN, which a penalty can make of infinities).
fn argmax(logits: &[f32]) -> Option<Candidate> {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let id = logits.iter().position(|&logit| logit == largest && logit > f32::NEG_INFINITY)?;
    Some((id as u32, largest))
}

fn draw(logits: &[f32], best: Candidate, params: &SamplingParams, u: f64, scratch: &mut Scratch) -> u32 {
    let Scratch { candidates, kept, weights, sums, .. } = scratch;
    let temperature = f64::from(params.temperature);
    // Not above 1, and 1 for the likeliest, at any temperature.
    let weight = |logit: f32| math::exp((f64::from(logit) - f64::from(best.1)) / temperature);
    let top_k_on = params.top_k > 0 && (params.top_k as usize) < logits.len();
    if !top_k_on && params.top_p >= 1.0 && params.min_p <= 0.0 {
        weigh(logits.iter().copied(), weight, weights, sums);
        return pick(u, weights, sums).map_or(best.0, |index| index as u32);
    }
    let total = if top_k_on {
        top_k(logits, params.top_k as usize, candidates);
        candidates.sort_unstable_by_key(|candidate| candidate.0);
        weigh(candidates.iter().map(|candidate| candidate.1), weight, weights, sums)
    } else {
        candidates.clear();
        if params.top_p < 1.0 { weigh(logits.iter().copied(), weight, weights, sums) } else { 0.0 }
    };
    if params.top_p < 1.0 {
        // The likeliest ones, four times as many as long as they do not reach p.
        let wanted = f64::from(params.top_p) * total;
        let mut n = 256;
        loop {
            match top_k_on {
                true => kept.clone_from(candidates),
                false => top_k(logits, n, kept),
            }
            kept.sort_unstable_by(likelier);
            let mut sum = 0.0;
            let reached = kept.iter().position(|candidate| {
                sum += weight(candidate.1);
                sum >= wanted
            });
            if let Some(last) = reached {
                kept.truncate(last + 1);
                break;
            }
            if top_k_on || n >= logits.len() {
                break;
            }
            n *= 4;
        }
    } else if top_k_on {
        kept.clone_from(candidates);
    } else {
        kept.clear();
        kept.extend((0..).zip(logits.iter().copied()));
    }
    let least = f64::from(params.min_p);
    kept.retain(|candidate| weight(candidate.1) >= least);
    kept.sort_unstable_by_key(|candidate| candidate.0);
    weigh(kept.iter().map(|candidate| candidate.1), weight, weights, sums);
    pick(u, weights, sums).map_or(best.0, |index| kept[index].0)
}

/// Weights, their sums by [`STRIDE`] and the total, in an order that only their number decides.
fn weigh(
    logits: impl Iterator<Item = f32>,
    weight: impl Fn(f32) -> f64,
    weights: &mut Vec<f64>,
    sums: &mut Vec<f64>,
) -> f64 {
    weights.clear();
    weights.extend(logits.map(weight));
    sums.clear();
    sums.extend(weights.chunks(STRIDE).map(sum));
    sums.iter().sum()
}

/// Eight partial sums, then their sum.
fn sum(weights: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    for eight in weights.chunks(8) {
        for (lane, weight) in lanes.iter_mut().zip(eight) {
            *lane += weight;
        }
    }
    lanes.iter().sum()
}

/// The first index at which the cumulative weight exceeds u of the total; one of positive weight always.
fn pick(u: f64, weights: &[f64], sums: &[f64]) -> Option<usize> {
    let target = u * sums.iter().sum::<f64>();
    let mut before = 0.0;
    let mut last = None;
    for (stride, (chunk, sum)) in weights.chunks(STRIDE).zip(sums).enumerate() {
        if before + sum > target {
            let mut cumulative = before;
            for (index, &weight) in chunk.iter().enumerate() {
                cumulative += weight;
                if weight > 0.0 {
                    last = Some(stride * STRIDE + index);
                    if cumulative > target {
                        return last;
                    }
                }
            }
            // Rounding: the sum in this order stays just short.
            return last;
        }
        before += sum;
        if *sum > 0.0 {
            last = chunk.iter().rposition(|&weight| weight > 0.0).map(|index| stride * STRIDE + index);
        }
    }
    last
}

fn logprobs(sampled: &mut Sampled, n: usize, scratch: &mut Scratch) {
    let Scratch { raw, weights, sums, candidates, .. } = scratch;
    let largest = raw.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let largest = f64::from(largest);
    let total = weigh(raw.iter().copied(), |logit| math::exp(f64::from(logit) - largest), weights, sums);
    let log_total = largest + math::ln(total);
    let logprob = |logit: f32| (f64::from(logit) - log_total) as f32;
    sampled.logprob = logprob(raw[sampled.token as usize]);
    top_k(raw, n, candidates);
    candidates.sort_unstable_by(likelier);
    sampled.top.extend(candidates.iter().map(|&(id, logit)| (id, logprob(logit))));
}
