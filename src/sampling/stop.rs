//! Rules for the end of a generation, and for valid sampling parameters.

use crate::bail;
use crate::error::Result;
use crate::sequence::{FinishReason, MAX_LOGPROBS, SamplingParams};

/// Decides whether a generation ends with its newest token, the last in `tokens`. `prompt_end` is the end of the last prompt
/// range; the tokens after it were generated in this turn, possibly in part on another engine. `context_limit` is the limit of
/// the model or the cache. Stop takes precedence over length, and neither EOS nor stops count before `min_new_tokens` (vLLM's
/// `check_stop`).
pub fn check(
    params: &SamplingParams,
    tokens: &[u32],
    prompt_end: usize,
    eos_ids: &[u32],
    context_limit: usize,
) -> Option<FinishReason> {
    let turn = tokens.get(prompt_end..).unwrap_or_default();
    if let Some(last) = turn.last()
        && turn.len() >= params.min_new_tokens as usize
    {
        let eos = !params.ignore_eos && eos_ids.contains(last);
        let ends = |stop: &Vec<u32>| !stop.is_empty() && turn.ends_with(stop);
        if eos || params.stop_ids.contains(last) || params.stop_sequences.iter().any(ends) {
            return Some(FinishReason::Stop);
        }
    }
    let long = turn.len() >= params.max_new_tokens as usize || tokens.len() >= context_limit;
    long.then_some(FinishReason::Length)
}

/// Refuses parameters that are not finite, are out of range or name tokens outside the vocabulary. The error names the field.
/// The ranges are vLLM's (`SamplingParams._verify_args`).
pub fn validate(params: &SamplingParams, vocab: usize) -> Result<()> {
    let in_range = |field: &str, value: f32, low: f32, high: f32, low_in: bool| {
        // False for NaN.
        if value <= high && (value > low || (low_in && value == low)) && value.is_finite() {
            return Ok(());
        }
        let bracket = if low_in { '[' } else { '(' };
        bail!(InvalidArgument, "{field} {value} is not in {bracket}{low}, {high}]")
    };
    in_range("temperature", params.temperature, 0.0, f32::MAX, true)?;
    in_range("top_p", params.top_p, 0.0, 1.0, false)?;
    in_range("min_p", params.min_p, 0.0, 1.0, true)?;
    in_range("repetition_penalty", params.repetition_penalty, 0.0, f32::MAX, false)?;
    in_range("presence_penalty", params.presence_penalty, -2.0, 2.0, true)?;
    in_range("frequency_penalty", params.frequency_penalty, -2.0, 2.0, true)?;
    if params.min_new_tokens > params.max_new_tokens {
        bail!(
            InvalidArgument,
            "min_new_tokens {} is more than max_new_tokens {}",
            params.min_new_tokens,
            params.max_new_tokens
        );
    }
    if let Some(n) = params.logprobs
        && n as usize > vocab.min(MAX_LOGPROBS as usize)
    {
        bail!(
            InvalidArgument,
            "logprobs {n} is over the limit of {MAX_LOGPROBS}, or over the vocabulary of {vocab} tokens"
        );
    }
    for (field, n) in [("stop_ids", params.stop_ids.len()), ("logit_bias", params.logit_bias.len())] {
        if n > vocab {
            bail!(InvalidArgument, "{field} has {n} entries, more than the vocabulary of {vocab} tokens");
        }
    }
    let known = |field: &str, id: u32| {
        if (id as usize) < vocab {
            return Ok(());
        }
        bail!(InvalidArgument, "{field} {id} is not in the vocabulary of {vocab} tokens")
    };
    for &id in &params.stop_ids {
        known("stop_ids", id)?;
    }
    for stop in &params.stop_sequences {
        if stop.len() < 2 {
            bail!(InvalidArgument, "stop_sequences: a stop sequence has {} tokens; it needs two or more", stop.len());
        }
        stop.iter().try_for_each(|&id| known("stop_sequences", id))?;
    }
    for &(id, bias) in &params.logit_bias {
        known("logit_bias", id)?;
        // Minus infinity bans a token.
        if bias.is_nan() || bias == f32::INFINITY {
            bail!(InvalidArgument, "logit_bias {bias} of token {id} is neither finite nor minus infinity");
        }
    }
    Ok(())
}
