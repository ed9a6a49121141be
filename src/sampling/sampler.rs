use super::{Ctx, Sampled, Scratch};
use crate::error::Result;
use crate::sequence::SamplingParams;

/// Samples the next token. `logits` (one per vocabulary entry) is overwritten.
pub fn sample(_logits: &mut [f32], _params: &SamplingParams, _ctx: Ctx<'_>, _scratch: &mut Scratch) -> Result<Sampled> {
    todo!()
}
