//! What a host asks for.

use crate::sequence::SamplingParams;
use std::time::Duration;

/// One request, as submitted. Numbers that are zero mean "default": of a fresh request the library's, of one
/// that continues a KV handle the handle's own.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub user_tag: u64,
    /// The handle to continue from, consumed; 0 for none.
    pub kv: u64,
    /// The prompt, or with a handle the tokens that follow it.
    pub prompt: Vec<u32>,
    pub sampling: SamplingFields,
    /// FINISHED carries a KV handle.
    pub keep_kv: bool,
    /// On an engine whose role is prefill: KV_STREAM_STARTED carries a handle that can be pulled while it is filled.
    pub stream_kv: bool,
    /// If the handle's KV does not come, compute it here from the tokens of its ticket.
    pub recompute: bool,
    /// Repeat the token that came with the handle.
    pub emit_pending: bool,
    /// With a handle: take every sampling field from this request, none from the handle.
    pub override_sampling: bool,
    /// Higher runs first.
    pub priority: u32,
    /// From submission.
    pub deadline: Option<Duration>,
    pub cache_salt: u64,
}

/// Sampling as the host wrote it; see [`SamplingFields::resolve`].
#[derive(Clone, Debug, Default)]
pub struct SamplingFields {
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub seed: u64,
    pub max_new_tokens: u32,
    pub min_new_tokens: u32,
    /// None: not asked for.
    pub logprobs: Option<u32>,
    pub ignore_eos: bool,
    pub stop_ids: Vec<u32>,
    pub stop_sequences: Vec<Vec<u32>>,
    pub logit_bias: Vec<(u32, f32)>,
}

impl SamplingFields {
    /// Puts the fields that are set over `base`.
    pub fn resolve(self, base: SamplingParams) -> SamplingParams {
        fn pick<T: PartialEq + Default>(field: T, base: T) -> T {
            if field == T::default() { base } else { field }
        }
        SamplingParams {
            temperature: pick(self.temperature, base.temperature),
            top_k: pick(self.top_k, base.top_k),
            top_p: pick(self.top_p, base.top_p),
            min_p: pick(self.min_p, base.min_p),
            repetition_penalty: pick(self.repetition_penalty, base.repetition_penalty),
            presence_penalty: pick(self.presence_penalty, base.presence_penalty),
            frequency_penalty: pick(self.frequency_penalty, base.frequency_penalty),
            seed: pick(self.seed, base.seed),
            max_new_tokens: pick(self.max_new_tokens, base.max_new_tokens),
            min_new_tokens: pick(self.min_new_tokens, base.min_new_tokens),
            logprobs: self.logprobs.or(base.logprobs),
            ignore_eos: self.ignore_eos || base.ignore_eos,
            stop_ids: pick(self.stop_ids, base.stop_ids),
            stop_sequences: pick(self.stop_sequences, base.stop_sequences),
            logit_bias: pick(self.logit_bias, base.logit_bias),
        }
    }
}
