//! Rules for the end of a generation.

use crate::sequence::{FinishReason, SamplingParams};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops() {
        let params = SamplingParams {
            stop_ids: vec![5],
            stop_sequences: vec![vec![1, 2, 3]],
            max_new_tokens: 6,
            min_new_tokens: 2,
            ..SamplingParams::default()
        };
        let check = |tokens: &[u32], prompt_end| check(&params, tokens, prompt_end, &[7, 8], 10);
        let (stop, length) = (Some(FinishReason::Stop), Some(FinishReason::Length));
        assert_eq!(check(&[0, 0, 0], 2), None);
        assert_eq!(check(&[0, 0, 0, 8], 2), stop);
        assert_eq!(check(&[0, 0, 0, 5], 2), stop);
        assert_eq!(check(&[0, 0, 0, 5], 3), None, "one of two tokens");
        assert_eq!(check(&[0, 7], 2), None, "the prompt does not stop it");
        assert_eq!(check(&[0, 1, 2, 3], 1), stop);
        assert_eq!(check(&[0, 1, 2, 3], 2), None, "begins in the prompt");
        assert_eq!(check(&[0, 1, 2, 3, 0, 0, 0], 1), length);
        assert_eq!(check(&[0, 0, 0, 0, 0, 0, 7], 1), stop, "stop wins");
        assert_eq!(check(&[0; 10], 9), length, "context");
        let ignore = SamplingParams { ignore_eos: true, ..params.clone() };
        assert_eq!(super::check(&ignore, &[0, 0, 0, 7], 1, &[7], 10), None);
        assert_eq!(super::check(&ignore, &[0, 0, 0, 5], 1, &[7], 10), stop);
    }
}
