//! A sequence as plain data: its sampling and stopping parameters, and the snapshot that a KV handle carries.
//!
//! A snapshot contains everything that decides the next token, so a sequence continues on another engine exactly as it would
//! have on the first. There is no generator state: random numbers are a function of (seed, position). This module must not
//! know any other.

/// Defines two structs from one list of sampling parameters: resolved values, and the fields of a request.
macro_rules! sampling_parameters {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $default:expr;)*) => {
        /// Sampling and stopping parameters with every default resolved.
        #[derive(Clone, Debug, PartialEq)]
        pub struct SamplingParams {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Default for SamplingParams {
            fn default() -> Self {
                SamplingParams { $($name: $default,)* }
            }
        }

        /// Sampling and stopping parameters as a request gives them. Zero, empty or None stands for the default.
        #[derive(Clone, Debug, Default)]
        pub struct SamplingFields {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl SamplingFields {
            /// Takes the fields that the request sets from the request, and the others from `base`.
            pub fn resolve(self, base: SamplingParams) -> SamplingParams {
                SamplingParams { $($name: stated(self.$name, base.$name),)* }
            }
        }
    };
}

fn stated<T: PartialEq + Default>(field: T, base: T) -> T {
    if field == T::default() { base } else { field }
}

sampling_parameters! {
    /// Divisor of the logits; 0 takes the likeliest token.
    temperature: f32 = 0.0;
    /// Number of likeliest tokens to keep; 0 keeps all.
    top_k: u32 = 0;
    /// Sum of probabilities up to which the likeliest tokens are kept; 1 keeps all.
    top_p: f32 = 1.0;
    /// Share of the largest probability below which tokens are dropped; 0 keeps all.
    min_p: f32 = 0.0;
    /// Penalty on tokens that occur in the prompt or were generated; 1 is none.
    repetition_penalty: f32 = 1.0;
    /// Penalty on tokens that were generated; 0 is none.
    presence_penalty: f32 = 0.0;
    /// Penalty on tokens that were generated, for each occurrence; 0 is none.
    frequency_penalty: f32 = 0.0;
    /// Seed of the random numbers, which are a function of it and the position.
    seed: u64 = 0;
    /// Most tokens to generate after the last prompt, counted over all engines that the sequence passes through.
    max_new_tokens: u32 = u32::MAX;
    /// Number of generated tokens before which no stop token can be sampled.
    min_new_tokens: u32 = 0;
    /// Logprobs to report: those of the chosen token and of the n likeliest tokens. None reports none.
    logprobs: Option<u32> = None;
    /// Whether to continue past the model's EOS ids.
    ignore_eos: bool = false;
    /// Tokens that end the generation, in addition to the model's EOS ids.
    stop_ids: Vec<u32> = Vec::new();
    /// Sequences of two or more tokens that end the generation.
    stop_sequences: Vec<Vec<u32>> = Vec::new();
    /// Values added to the logits of given tokens before sampling.
    logit_bias: Vec<(u32, f32)> = Vec::new();
}

/// Why a request ended. The numbers are `CLEAVE_FINISH_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FinishReason {
    /// A stop token, a stop sequence or EOS was generated.
    Stop = 1,
    /// `max_new_tokens` were generated, or the context is full.
    Length = 2,
    /// A prefill engine has done its part.
    Prefilled = 3,
    /// The host asked for the sequence to be exported.
    Exported = 4,
    /// The request failed.
    Error = 5,
}

/// Most alternatives that a request may ask for with each token.
pub const MAX_LOGPROBS: u32 = 128;

/// Most bytes of host data that a sequence carries.
pub const MAX_HOST_DATA: usize = 4096;

/// A sequence at a step boundary. A KV handle consists of a snapshot and the blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Prompt and generated tokens, in order. In steady decode the last one is pending: sampled, not yet
    /// run through the model (`computed == tokens.len() - 1`).
    pub tokens: Vec<u32>,
    /// Number of leading tokens whose KV is in the block table.
    pub computed: u32,
    /// Ranges `[begin, end)` of `tokens` that came as prompts; all other tokens were generated. The ranges are ascending and
    /// disjoint. Each appended turn adds one.
    pub prompts: Vec<(u32, u32)>,
    /// Log-probability of the last generated token; 0 unless `params.logprobs` is set.
    pub last_logprob: f32,
    /// Likeliest tokens at the last generated position, likeliest first, as many as `params.logprobs` asks for.
    pub last_top: Vec<(u32, f32)>,
    /// Tokens of the last prompt that were found in the prefix cache of the engine that computed it.
    pub cached_tokens: u32,
    /// Sampling and stopping parameters.
    pub params: SamplingParams,
    /// Separates prefix-cache entries of tenants that must not see each other's timing.
    pub cache_salt: u64,
    /// Whether the KV of some token was converted from another dtype. Such KV differs from KV computed in this dtype, so no block
    /// of the sequence is shared through a prefix index.
    pub converted: bool,
    /// Reason (stop or length) if the generation had ended when the snapshot was taken.
    pub finished: Option<FinishReason>,
    /// Bytes of the host's own that travel with the sequence. The library does not interpret them.
    pub host_data: Vec<u8>,
}

impl Snapshot {
    /// Number of tokens generated since the end of the last prompt.
    pub fn generated(&self) -> u32 {
        let end = self.prompts.last().map_or(0, |p| p.1);
        self.tokens.len() as u32 - end
    }

    /// The token that was sampled and has not run through the model, if there is one.
    pub fn pending(&self) -> Option<u32> {
        (self.generated() > 0 && (self.computed as usize) < self.tokens.len())
            .then(|| self.tokens[self.tokens.len() - 1])
    }
}
