//! Changes to logits that depend on the tokens so far.

use super::Ctx;
use crate::sequence::SamplingParams;

/// Applies, in this order: the logit bias; the repetition penalty over all tokens (CTRL, Keskar et al. 2019, as Hugging Face
/// applies it: divides positive logits and multiplies others); the frequency and presence penalties over the tokens generated
/// in this turn (OpenAI's formula, which does not count a prompt); and, before `min_new_tokens`, a mask over EOS and stop ids.
pub(super) fn apply(logits: &mut [f32], params: &SamplingParams, ctx: &Ctx<'_>) {
    for &(id, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit += bias;
        }
    }
    if params.repetition_penalty != 1.0 {
        for &(id, _) in ctx.counts.entries() {
            let Some(logit) = logits.get_mut(id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / params.repetition_penalty } else { *logit * params.repetition_penalty };
        }
    }
    if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
        for &(id, count) in ctx.counts.entries().iter().filter(|entry| entry.1 > 0) {
            let Some(logit) = logits.get_mut(id as usize) else { continue };
            *logit -= params.frequency_penalty * count as f32 + params.presence_penalty;
        }
    }
    if ctx.generated < params.min_new_tokens {
        for &id in ctx.eos_ids.iter().chain(&params.stop_ids) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}
