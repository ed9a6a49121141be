use crate::error::Result;
use crate::sequence::{FinishReason, SamplingParams};

/// Whether the sequence is over with its newest token, which is in `tokens`. `prompt_end` is the end of the last
/// prompt range; what follows it was generated in this turn. `context_limit` is the model's or the cache's.
pub fn check(
    _params: &SamplingParams,
    _tokens: &[u32],
    _prompt_end: usize,
    _eos_ids: &[u32],
    _context_limit: usize,
) -> Option<FinishReason> {
    todo!()
}

/// Refuses parameters that are not finite, out of range or name tokens outside the vocabulary; the text names
/// the field.
pub fn validate(_params: &SamplingParams, _vocab: usize) -> Result<()> {
    todo!()
}
