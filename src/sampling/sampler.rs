//! Samples one token from one row of logits.

use super::penalties;
use super::topk::{Candidate, likelier, top_k};
use super::{Ctx, Sampled, math, philox};
use crate::bail;
use crate::error::Result;
use crate::sequence::SamplingParams;

/// Number of tokens whose weights are added up together. Short sums vectorise, one long sum does not.
const STRIDE: usize = 512;

/// Weight of the likeliest token. Weights are integers, in units of 2⁻⁴² of the likeliest token's weight. Their sums are exact,
/// so a device that adds them in another order draws the same token (kernels/include/sampling.cuh does). Sums over up to 2²²
/// tokens do not overflow.
const ONE: f64 = (1u64 << 42) as f64;
/// Distance from the likeliest logit from which a token is never drawn: e⁻³⁰ is less than half a unit of weight.
const NONE_FROM: f64 = 30.0;

/// Buffers reused from call to call. No result depends on their former content.
#[derive(Default)]
pub struct Scratch {
    raw: Vec<f32>,
    candidates: Vec<Candidate>,
    boundary: Vec<(Candidate, u64)>,
    weights: Vec<u64>,
    sums: Vec<u64>,
    probabilities: Vec<f64>,
    partial: Vec<f64>,
}

/// Samples the next token. `logits`, one per vocabulary entry, is overwritten.
///
/// The order is: logit bias, penalties, `min_new_tokens`; temperature; top-k, top-p, min-p; draw. The filters come in Hugging
/// Face's order (`_get_logits_processor`), which llama.cpp and SGLang share; vLLM applies min-p before the other two. Top-k
/// keeps exactly k tokens, the lowest ids on ties. Top-p keeps the smallest set that reaches the share p of what top-k kept.
/// Min-p keeps the tokens with at least `min_p` times the largest probability. The draw inverts the cumulative distribution
/// over the kept tokens, in ascending id, at the random number given by seed and position.
pub fn sample(logits: &mut [f32], params: &SamplingParams, ctx: Ctx<'_>, scratch: &mut Scratch) -> Result<Sampled> {
    let broken = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    // The first pass has no branch per logit, so it vectorises.
    if logits.iter().fold(false, |any, logit| any | broken(logit))
        && let Some(id) = logits.iter().position(broken)
    {
        bail!(Internal, "the logit of token {id} at position {} is {}", ctx.position, logits[id]);
    }
    scratch.raw.clear();
    if params.logprobs.is_some() {
        scratch.raw.extend_from_slice(logits);
    }
    penalties::apply(logits, params, &ctx);
    let Some(best) = argmax(logits) else {
        bail!(
            Internal,
            "no token can be sampled at position {}: all {} logits are -inf or NaN",
            ctx.position,
            logits.len()
        );
    };
    let token = match params.temperature > 0.0 {
        true => draw(logits, best, params, philox::random53(params.seed, ctx.position), scratch),
        false => best.0,
    };
    let mut sampled = Sampled { token, logprob: 0.0, top: Vec::new() };
    if let Some(n) = params.logprobs {
        logprobs(&mut sampled, n as usize, scratch);
    }
    Ok(sampled)
}

/// The token with the largest logit, the lowest id on ties. None if all logits are −∞ or NaN, which a penalty can turn infinities
/// into.
fn argmax(logits: &[f32]) -> Option<Candidate> {
    let largest = largest(logits);
    let id = logits.iter().position(|&logit| logit == largest && logit > f32::NEG_INFINITY)?;
    Some((id as u32, largest))
}

/// The largest logit, ignoring NaN; −∞ if there is none.
fn largest(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    for sixteen in logits.chunks(16) {
        for (lane, &logit) in lanes.iter_mut().zip(sixteen) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

fn draw(logits: &[f32], best: Candidate, params: &SamplingParams, random: u64, scratch: &mut Scratch) -> u32 {
    let Scratch { candidates, weights, sums, boundary, .. } = scratch;
    let softmax = Softmax { largest: f64::from(best.1), scale: 1.0 / f64::from(params.temperature) };
    let top_k_on = params.top_k > 0 && (params.top_k as usize) < logits.len();
    if !top_k_on && params.top_p >= 1.0 && params.min_p <= 0.0 {
        softmax.weigh(logits.iter().copied(), weights, sums);
        return pick(random, weights, sums).map_or(best.0, |index| index as u32);
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
        let wanted = (f64::from(params.top_p) * total as f64).ceil() as u64;
        last = softmax.nucleus(candidates, weights, wanted, sums, boundary);
    }
    let least = (f64::from(params.min_p) * ONE).ceil() as u64;
    let mut kept = 0;
    for index in 0..candidates.len() {
        let ((id, logit), weight) = (candidates[index], weights[index]);
        // The order of `likelier`, without branches: the outcome is unpredictable for each token.
        let likely = (logit > last.1) | ((logit == last.1) & (id <= last.0));
        (candidates[kept], weights[kept]) = ((id, logit), weight);
        kept += usize::from(likely & (weight >= least));
    }
    weights.truncate(kept);
    sum_by_stride(weights, sums);
    pick(random, weights, sums).map_or(best.0, |index| candidates[index].0)
}

/// Probabilities up to a common factor, scaled so that the largest logit has 1 at any temperature.
struct Softmax {
    largest: f64,
    scale: f64,
}

impl Softmax {
    /// Distance of a logit below the largest one, at this temperature; 0 or more.
    fn distance(&self, logit: f32) -> f64 {
        (self.largest - f64::from(logit)) * self.scale
    }

    /// Weight of a logit; 0 for NaN.
    fn weight(&self, logit: f32) -> u64 {
        let distance = self.distance(logit);
        // Adding 2⁵² rounds to an integer and leaves it in the low bits. (A cast does not vectorise.)
        let shifted = math::exp(-distance) * ONE + (1u64 << 52) as f64;
        let weight = shifted.to_bits() & ((1 << 52) - 1);
        if distance < NONE_FROM { weight } else { 0 }
    }

    /// Computes all weights and their sums by [`STRIDE`], and returns the total.
    fn weigh(&self, logits: impl ExactSizeIterator<Item = f32>, weights: &mut Vec<u64>, sums: &mut Vec<u64>) -> u64 {
        weights.resize(logits.len(), 0);
        for (weight, logit) in weights.iter_mut().zip(logits) {
            *weight = self.weight(logit);
        }
        sum_by_stride(weights, sums)
    }

    /// The last candidate of the smallest set of likeliest candidates whose weights reach `wanted`. The weights are first added
    /// up in bins by distance, so that only the candidates of one bin need sorting.
    fn nucleus(
        &self,
        candidates: &[Candidate],
        weights: &[u64],
        wanted: u64,
        bins: &mut Vec<u64>,
        boundary: &mut Vec<(Candidate, u64)>,
    ) -> Candidate {
        // Bins ascend in distance.
        let bin = |logit: f32| ((self.distance(logit) * 32.0) as usize).min(1023);
        bins.clear();
        bins.resize(1024, 0);
        for (candidate, weight) in candidates.iter().zip(weights) {
            bins[bin(candidate.1)] += weight;
        }
        let mut sum = 0;
        let reached = |weight: &u64| {
            sum += weight;
            sum >= wanted.max(1)
        };
        // None if an infinite logit leaves no weights.
        let Some(at) = bins.iter().position(reached) else { return (u32::MAX, f32::NEG_INFINITY) };
        boundary.clear();
        let both = candidates.iter().copied().zip(weights.iter().copied());
        // Leaves out NaN, which has no order and no weight.
        boundary.extend(both.filter(|(candidate, weight)| *weight > 0 && bin(candidate.1) == at));
        boundary.sort_unstable_by(|a, b| likelier(&a.0, &b.0));
        let mut sum: u64 = bins[..at].iter().sum();
        let reached = boundary.iter().find(|(_, weight)| {
            sum += weight;
            sum >= wanted
        });
        reached.map_or((u32::MAX, f32::NEG_INFINITY), |last| last.0)
    }

    /// The logarithm of the sum of e to the power of each logit. Only the number of logits decides the order of the additions.
    fn log_total(&self, logits: &[f32], probabilities: &mut Vec<f64>, partial: &mut Vec<f64>) -> f64 {
        probabilities.clear();
        probabilities.extend(logits.iter().map(|&logit| math::exp(-self.distance(logit))));
        partial.clear();
        partial.extend(probabilities.chunks(STRIDE).map(sum));
        self.largest + math::ln(partial.iter().sum())
    }
}

fn sum_by_stride(weights: &[u64], sums: &mut Vec<u64>) -> u64 {
    sums.clear();
    sums.extend(weights.chunks(STRIDE).map(|chunk| chunk.iter().sum::<u64>()));
    sums.iter().sum()
}

/// Adds the values in eight lanes, and then the lanes.
fn sum(values: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    for eight in values.chunks(8) {
        for (lane, value) in lanes.iter_mut().zip(eight) {
            *lane += value;
        }
    }
    lanes.iter().sum()
}

/// The first index at which the cumulative weight exceeds `random` · total / 2⁵³. None if all weights are 0.
fn pick(random: u64, weights: &[u64], sums: &[u64]) -> Option<usize> {
    let total: u64 = sums.iter().sum();
    let mut left = ((u128::from(random) * u128::from(total)) >> 53) as u64;
    let mut exceeds = |weight: &u64| {
        let found = *weight > left;
        left -= if found { 0 } else { *weight };
        found
    };
    let begin = sums.iter().position(&mut exceeds)? * STRIDE;
    weights[begin..].iter().position(exceeds).map(|index| begin + index)
}

fn logprobs(sampled: &mut Sampled, n: usize, scratch: &mut Scratch) {
    let Scratch { raw, probabilities, partial, candidates, .. } = scratch;
    let softmax = Softmax { largest: f64::from(largest(raw)), scale: 1.0 };
    let log_total = softmax.log_total(raw, probabilities, partial);
    let logprob = |logit: f32| (f64::from(logit) - log_total) as f32;
    sampled.logprob = logprob(raw[sampled.token as usize]);
    top_k(raw, n, candidates);
    candidates.sort_unstable_by(likelier);
    sampled.top.extend(candidates.iter().map(|&(id, logit)| (id, logprob(logit))));
}
