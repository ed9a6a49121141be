//! A sequence as plain data: how it is sampled, when it stops, and the snapshot a KV handle carries.
//!
//! Everything that decides the next token is in here, so that a snapshot taken by one engine continues in
//! another exactly as it would have gone on. There is no generator state: random numbers are a function of
//! (seed, position).

/// Defines the list of sampling parameters twice: with the values in force, and as a request states them.
macro_rules! sampling_parameters {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $default:expr;)*) => {
        /// Sampling and stopping with every default resolved.
        #[derive(Clone, Debug, PartialEq)]
        pub struct SamplingParams {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Default for SamplingParams {
            fn default() -> Self {
                SamplingParams { $($name: $default,)* }
            }
        }

        /// Sampling and stopping as a request states them: zero, empty or None stands for the default.
        #[derive(Clone, Debug, Default)]
        pub struct SamplingFields {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl SamplingFields {
            /// Takes the stated fields from the request and the others from `base`.
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
    /// Divides the logits; 0 takes the likeliest token.
    temperature: f32 = 0.0;
    /// Keeps the k likeliest tokens; 0 keeps all.
    top_k: u32 = 0;
    /// Keeps the likeliest tokens whose probabilities sum to this; 1 keeps all.
    top_p: f32 = 1.0;
    /// Drops tokens whose probability is below this share of the largest; 0 keeps all.
    min_p: f32 = 0.0;
    /// Applies to prompt and generated tokens; 1 is none.
    repetition_penalty: f32 = 1.0;
    /// Applies to generated tokens; 0 is none.
    presence_penalty: f32 = 0.0;
    /// Applies to generated tokens, once for each occurrence; 0 is none.
    frequency_penalty: f32 = 0.0;
    /// Seed of the random numbers, which are a function of it and the position.
    seed: u64 = 0;
    /// Tokens to generate after the last prompt token, over all engines that the sequence passes through.
    max_new_tokens: u32 = u32::MAX;
    /// Stop tokens cannot be sampled before this many tokens were generated.
    min_new_tokens: u32 = 0;
    /// None: no logprobs. Some(n): those of the chosen token and of the n likeliest.
    logprobs: Option<u32> = None;
    /// Does not stop at the model's EOS ids.
    ignore_eos: bool = false;
    /// Single tokens that stop, beside the model's EOS ids.
    stop_ids: Vec<u32> = Vec::new();
    /// Stop sequences of two or more tokens each.
    stop_sequences: Vec<Vec<u32>> = Vec::new();
    /// Added to the logits before sampling, by token.
    logit_bias: Vec<(u32, f32)> = Vec::new();
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

/// Most alternatives that a request may ask for with each token.
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
