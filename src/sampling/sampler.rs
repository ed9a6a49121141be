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
    boundary: Vec<(Candidate, f64)>,
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
    let broken = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    // Without a branch per logit first: this vectorises.
    if logits.iter().fold(false, |any, logit| any | broken(logit))
        && let Some(id) = logits.iter().position(broken)
    {
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
    let largest = largest(logits);
    let id = logits.iter().position(|&logit| logit == largest && logit > f32::NEG_INFINITY)?;
    Some((id as u32, largest))
}

/// −∞ of none. Passes over NaN.
fn largest(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    for sixteen in logits.chunks(16) {
        for (lane, &logit) in lanes.iter_mut().zip(sixteen) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

fn draw(logits: &[f32], best: Candidate, params: &SamplingParams, u: f64, scratch: &mut Scratch) -> u32 {
    let Scratch { candidates, weights, sums, boundary, .. } = scratch;
    let softmax = Softmax { largest: f64::from(best.1), scale: 1.0 / f64::from(params.temperature) };
    let top_k_on = params.top_k > 0 && (params.top_k as usize) < logits.len();
    if !top_k_on && params.top_p >= 1.0 && params.min_p <= 0.0 {
        softmax.weigh(logits.iter().copied(), weights, sums);
        return pick(u, weights, sums).map_or(best.0, |index| index as u32);
    }
    if top_k_on {
        top_k(logits, params.top_k as usize, candidates);
        candidates.sort_unstable_by_key(|candidate| candidate.0);
    } else {
        candidates.clear();
        candidates.extend((0..).zip(logits.iter().copied()));
    }
    let total = softmax.weigh(candidates.iter().map(|candidate| candidate.1), weights, sums);
    let mut last = (u32::MAX, f32::NEG_INFINITY);
    if params.top_p < 1.0 {
        last = softmax.nucleus(candidates, weights, f64::from(params.top_p) * total, sums, boundary);
    }
    let least = f64::from(params.min_p);
    let mut kept = 0;
    for index in 0..candidates.len() {
        let ((id, logit), weight) = (candidates[index], weights[index]);
        // As `likelier` orders them. No branches: which are kept is as good as random.
        let likely = (logit > last.1) | ((logit == last.1) & (id <= last.0));
        (candidates[kept], weights[kept]) = ((id, logit), weight);
        kept += usize::from(likely & (weight >= least));
    }
    weights.truncate(kept);
    sum_up(weights, sums);
    pick(u, weights, sums).map_or(best.0, |index| candidates[index].0)
}

/// Probabilities up to a factor: not above 1, and 1 for the largest logit, at any temperature.
struct Softmax {
    largest: f64,
    scale: f64,
}

impl Softmax {
    /// How far below the largest, at this temperature: 0 or more.
    fn distance(&self, logit: f32) -> f64 {
        (self.largest - f64::from(logit)) * self.scale
    }

    /// Weights, their sums by [`STRIDE`] and the total, in an order that only their number decides.
    fn weigh(&self, logits: impl ExactSizeIterator<Item = f32>, weights: &mut Vec<f64>, sums: &mut Vec<f64>) -> f64 {
        weights.resize(logits.len(), 0.0);
        for (weight, logit) in weights.iter_mut().zip(logits) {
            *weight = math::exp(-self.distance(logit));
        }
        sum_up(weights, sums)
    }

    /// The last of the smallest set of likeliest candidates whose weights reach `wanted`. Weights are added up
    /// by distance first, so only the candidates of one bin need sorting.
    fn nucleus(
        &self,
        candidates: &[Candidate],
        weights: &[f64],
        wanted: f64,
        bins: &mut Vec<f64>,
        boundary: &mut Vec<(Candidate, f64)>,
    ) -> Candidate {
        // Ascending in distance; the last bin holds what is e⁻⁶⁴ and less.
        let bin = |logit: f32| ((self.distance(logit) * 16.0) as usize).min(1023);
        bins.clear();
        bins.resize(1024, 0.0);
        for (candidate, weight) in candidates.iter().zip(weights) {
            bins[bin(candidate.1)] += weight;
        }
        let mut sum = 0.0;
        let reached = |weight: &f64| {
            sum += weight;
            sum >= wanted
        };
        let Some(at) = bins.iter().position(reached) else { return (u32::MAX, f32::NEG_INFINITY) };
        boundary.clear();
        let both = candidates.iter().copied().zip(weights.iter().copied());
        boundary.extend(both.filter(|(candidate, _)| bin(candidate.1) == at));
        boundary.sort_unstable_by(|a, b| likelier(&a.0, &b.0));
        let mut sum: f64 = bins[..at].iter().sum();
        let reached = boundary.iter().position(|(_, weight)| {
            sum += weight;
            sum >= wanted
        });
        // Not reached in this order of addition: the whole bin.
        boundary[reached.unwrap_or(boundary.len() - 1)].0
    }
}

fn sum_up(weights: &[f64], sums: &mut Vec<f64>) -> f64 {
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
    let softmax = Softmax { largest: f64::from(largest(raw)), scale: 1.0 };
    let log_total = softmax.largest + math::ln(softmax.weigh(raw.iter().copied(), weights, sums));
    let logprob = |logit: f32| (f64::from(logit) - log_total) as f32;
    sampled.logprob = logprob(raw[sampled.token as usize]);
    top_k(raw, n, candidates);
    candidates.sort_unstable_by(likelier);
    sampled.top.extend(candidates.iter().map(|&(id, logit)| (id, logprob(logit))));
}
