//! From logits to the next token, as a function of nothing but the logits, the parameters, the tokens so far
//! and the position: no generator state, no dependence on batch, thread count or host.

mod counts;
pub mod math;
mod penalties;
pub mod philox;
mod sampler;
mod stop;
#[cfg(test)]
mod tests;
mod topk;

pub use counts::TokenCounts;
pub use sampler::{Scratch, sample};
pub use stop::{check, validate};

/// The sequence whose next token is sampled.
#[derive(Clone, Copy, Debug)]
pub struct Ctx<'a> {
    /// Its tokens so far, as penalties see them.
    pub counts: &'a TokenCounts,
    /// Tokens generated since the last prompt (`Snapshot::generated`).
    pub generated: u32,
    /// Position in the sequence of the token to be sampled, which is how many tokens there are.
    pub position: u64,
    /// The model's end-of-sequence ids.
    pub eos_ids: &'a [u32],
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    pub token: u32,
    /// Log-softmax of the model's own logits at `token`, before bias, penalties and temperature, as OpenAI and
    /// vLLM (`raw_logprobs`) report it. 0 unless `params.logprobs`.
    pub logprob: f32,
    /// The likeliest tokens by the same measure, likeliest first, as many as `params.logprobs` asks for.
    pub top: Vec<(u32, f32)>,
}
