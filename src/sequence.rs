//! A sequence as plain data: how it is sampled, when it stops, and the snapshot a KV handle carries.
//!
//! Everything that decides the next token is in here, so that a snapshot taken by one engine continues in
//! another exactly as it would have gone on. There is no generator state: random numbers are a function of
//! (seed, position).

/// Sampling and stopping, resolved: no field means "default" any more.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all: drop tokens whose probability is below min_p × the largest.
    pub min_p: f32,
    /// 1 is none; over prompt and generated tokens.
    pub repetition_penalty: f32,
    /// 0 is none; over generated tokens.
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub seed: u64,
    /// Tokens to generate after the last prompt token, over all engines the sequence passes through.
    pub max_new_tokens: u32,
    /// Stop tokens cannot be sampled before this many were generated.
    pub min_new_tokens: u32,
    /// None: no logprobs; Some(n): the chosen token's and the n likeliest ones'.
    pub logprobs: Option<u32>,
    /// Do not stop at the model's EOS ids.
    pub ignore_eos: bool,
    /// Single-token stops beside the model's EOS ids.
    pub stop_ids: Vec<u32>,
    /// Multi-token stops, each of two or more tokens.
    pub stop_sequences: Vec<Vec<u32>>,
    /// Added to the logits before sampling.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            max_new_tokens: u32::MAX,
            min_new_tokens: 0,
            logprobs: None,
            ignore_eos: false,
            stop_ids: Vec::new(),
            stop_sequences: Vec::new(),
            logit_bias: Vec::new(),
        }
    }
}

/// Why a request ended. The numbers are `CLEAVE_FINISH_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FinishReason {
    Stop = 1,
    Length = 2,
    Prefilled = 3,
    Exported = 4,
    Error = 5,
}

/// As many alternatives as a request may ask for with each token.
pub const MAX_LOGPROBS: u32 = 128;

/// Most bytes of host data that a sequence carries.
pub const MAX_HOST_DATA: usize = 4096;

/// A sequence at a step boundary: what a KV handle is, apart from the blocks themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Prompt and generated tokens, in order. In steady decode the last one is pending: sampled, not yet
    /// run through the model (`computed == tokens.len() - 1`).
    pub tokens: Vec<u32>,
    /// Tokens whose KV is in the block table, counted from the start.
    pub computed: u32,
    /// Ranges `[begin, end)` of `tokens` that came as prompt; the others were generated. Ascending,
    /// disjoint; a second one exists once a turn was appended.
    pub prompts: Vec<(u32, u32)>,
    /// Log-probability of the last generated token (0 unless `params.logprobs`).
    pub last_logprob: f32,
    /// Its likeliest alternatives, best first: as many as `params.logprobs` asked for.
    pub last_top: Vec<(u32, f32)>,
    /// Tokens of the last prompt that the prefix cache had where it was computed.
    pub cached_tokens: u32,
    pub params: SamplingParams,
    /// Separates prefix-cache entries of tenants that must not see each other's timing.
    pub cache_salt: u64,
    /// The KV of some token was converted from another dtype, so it is not what a cache of this dtype would have
    /// computed: no block of the sequence is shared through a prefix index.
    pub converted: bool,
    /// Set when the generation was over (stop or length) as the snapshot was taken.
    pub finished: Option<FinishReason>,
    /// Bytes of the host's own that travel with the sequence; nothing here reads them.
    pub host_data: Vec<u8>,
}

impl Snapshot {
    /// Tokens generated since the end of the last prompt.
    pub fn generated(&self) -> u32 {
        let end = self.prompts.last().map_or(0, |p| p.1);
        self.tokens.len() as u32 - end
    }

    /// The sampled-but-not-consumed token, if the sequence has one.
    pub fn pending(&self) -> Option<u32> {
        (self.generated() > 0 && (self.computed as usize) < self.tokens.len())
            .then(|| self.tokens[self.tokens.len() - 1])
    }
}
