//! Valid values of sampling parameters.

use crate::bail;
use crate::error::Result;
use crate::sequence::{MAX_LOGPROBS, SamplingParams};

/// Refuses parameters that are not finite, are out of range or name tokens outside the vocabulary. The error names the field.
/// The ranges are vLLM's (`SamplingParams._verify_args`).
pub fn validate(params: &SamplingParams, vocab: usize) -> Result<()> {
    // Without `..`: a parameter that is added gets its range here.
    let &SamplingParams {
        temperature,
        top_k: _,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        seed: _,
        max_new_tokens,
        min_new_tokens,
        logprobs,
        ignore_eos: _,
        ref stop_ids,
        ref stop_sequences,
        ref logit_bias,
    } = params;
    let in_range = |field: &str, value: f32, low: f32, high: f32, low_in: bool| {
        // False for NaN.
        if value <= high && (value > low || (low_in && value == low)) && value.is_finite() {
            return Ok(());
        }
        let bracket = if low_in { '[' } else { '(' };
        bail!(InvalidArgument, "{field} {value} is not in {bracket}{low}, {high}]")
    };
    in_range("temperature", temperature, 0.0, f32::MAX, true)?;
    in_range("top_p", top_p, 0.0, 1.0, false)?;
    in_range("min_p", min_p, 0.0, 1.0, true)?;
    in_range("repetition_penalty", repetition_penalty, 0.0, f32::MAX, false)?;
    in_range("presence_penalty", presence_penalty, -2.0, 2.0, true)?;
    in_range("frequency_penalty", frequency_penalty, -2.0, 2.0, true)?;
    if min_new_tokens > max_new_tokens {
        bail!(InvalidArgument, "min_new_tokens {min_new_tokens} is more than max_new_tokens {max_new_tokens}");
    }
    if let Some(n) = logprobs
        && n as usize > vocab.min(MAX_LOGPROBS as usize)
    {
        bail!(
            InvalidArgument,
            "logprobs {n} is over the limit of {MAX_LOGPROBS}, or over the vocabulary of {vocab} tokens"
        );
    }
    for (field, n) in [("stop_ids", stop_ids.len()), ("logit_bias", logit_bias.len())] {
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
    for &id in stop_ids {
        known("stop_ids", id)?;
    }
    for stop in stop_sequences {
        if stop.len() < 2 {
            bail!(InvalidArgument, "stop_sequences: a stop sequence has {} tokens; it needs two or more", stop.len());
        }
        stop.iter().try_for_each(|&id| known("stop_sequences", id))?;
    }
    for &(id, bias) in logit_bias {
        known("logit_bias", id)?;
        // Minus infinity bans a token.
        if bias.is_nan() || bias == f32::INFINITY {
            bail!(InvalidArgument, "logit_bias {bias} of token {id} is neither finite nor minus infinity");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn parameters_are_validated_by_name() {
        let ok = SamplingParams::default();
        assert!(
            validate(&ok, 100).is_ok() && validate(&SamplingParams { temperature: 1.0, ..ok.clone() }, 100).is_ok()
        );
        let nan = f32::NAN;
        let bad = [
            ("temperature", SamplingParams { temperature: -0.1, ..ok.clone() }),
            ("temperature", SamplingParams { temperature: f32::INFINITY, ..ok.clone() }),
            ("temperature", SamplingParams { temperature: nan, ..ok.clone() }),
            ("top_p", SamplingParams { top_p: 0.0, ..ok.clone() }),
            ("top_p", SamplingParams { top_p: 1.1, ..ok.clone() }),
            ("min_p", SamplingParams { min_p: nan, ..ok.clone() }),
            ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..ok.clone() }),
            ("presence_penalty", SamplingParams { presence_penalty: 2.5, ..ok.clone() }),
            ("frequency_penalty", SamplingParams { frequency_penalty: -2.5, ..ok.clone() }),
            ("min_new_tokens", SamplingParams { min_new_tokens: 3, max_new_tokens: 2, ..ok.clone() }),
            ("logprobs", SamplingParams { logprobs: Some(101), ..ok.clone() }),
            ("stop_ids", SamplingParams { stop_ids: vec![100], ..ok.clone() }),
            ("stop_sequences", SamplingParams { stop_sequences: vec![vec![1]], ..ok.clone() }),
            ("stop_sequences", SamplingParams { stop_sequences: vec![vec![1, 100]], ..ok.clone() }),
            ("logit_bias", SamplingParams { logit_bias: vec![(100, 1.0)], ..ok.clone() }),
            ("logit_bias", SamplingParams { logit_bias: vec![(1, nan)], ..ok.clone() }),
        ];
        for (field, params) in bad {
            let error = validate(&params, 100).unwrap_err();
            assert_eq!(error.status, Status::InvalidArgument);
            assert!(error.message.starts_with(field), "{error}");
        }
    }
}
