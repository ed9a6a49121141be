//! Samples the next token from logits. The token is a function of the logits, the parameters, the tokens so far and the position
//! alone: there is no generator state, and no dependence on batch, thread count or host. This module must not know engines.

mod counts;
pub mod math;
mod penalties;
pub mod philox;
mod sampler;
mod stop;
#[cfg(test)]
mod tests;
mod topk;
mod validate;

pub use counts::TokenCounts;
pub use sampler::{Scratch, sample};
pub use stop::check;
pub use validate::validate;

/// Facts about the sequence whose next token is sampled.
#[derive(Clone, Copy, Debug)]
pub struct Ctx<'a> {
    /// Tokens so far, as penalties see them.
    pub counts: &'a TokenCounts,
    /// Number of tokens generated since the last prompt (`Snapshot::generated`).
    pub generated: u32,
    /// Position of the token to be sampled, which is the number of tokens so far.
    pub position: u64,
    /// The model's end-of-sequence ids.
    pub eos_ids: &'a [u32],
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token's id.
    pub token: u32,
    /// Log-softmax of the model's own logits at `token`, before bias, penalties and temperature, as OpenAI and
    /// vLLM (`raw_logprobs`) report it. 0 unless `params.logprobs` is set.
    pub logprob: f32,
    /// The likeliest tokens by the same measure, likeliest first, as many as `params.logprobs` asks for.
    pub top: Vec<(u32, f32)>,
}
