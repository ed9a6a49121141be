//! Parameters and results of sampling on the device, as plain data. A device that samples gives the very tokens that
//! `sampling` gives from the same logits.

/// How one row's token is sampled. Its lists are ranges (begin, length) of those in [`DeviceSamplingBatch`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DeviceSamplingRow {
    /// Row of the step's logits.
    pub row: u32,
    /// Seed of the request.
    pub seed: u64,
    /// Position of the new token in its sequence.
    pub position: u64,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f32,
    /// Nucleus: least probability mass kept.
    pub top_p: f32,
    /// Least probability kept, relative to the likeliest token's.
    pub min_p: f32,
    /// Number of tokens kept; 0: all.
    pub top_k: u32,
    /// Divides logits of tokens seen before.
    pub repetition_penalty: f32,
    /// Subtracted once from logits of generated tokens.
    pub presence_penalty: f32,
    /// Subtracted from logits of generated tokens, times their count.
    pub frequency_penalty: f32,
    /// Range of the row's biases.
    pub biases: (u32, u32),
    /// Range of the row's token counts.
    pub counts: (u32, u32),
    /// Range of the row's masked tokens.
    pub masked: (u32, u32),
}

/// The rows of a step that the device samples.
#[derive(Clone, Debug, Default)]
pub struct DeviceSamplingBatch {
    /// One entry per row to sample, in any order.
    pub rows: Vec<DeviceSamplingRow>,
    /// Tokens and what is added to their logits; those of a row sorted by token, equal tokens in the order given.
    pub biases: Vec<(u32, f32)>,
    /// Each token of a sequence once, with its count since the last prompt. Filled for rows with penalties.
    pub counts: Vec<(u32, u32)>,
    /// Tokens that must not be sampled.
    pub masked: Vec<u32>,
}

impl DeviceSamplingBatch {
    /// Removes everything, and keeps the memory.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.biases.clear();
        self.counts.clear();
        self.masked.clear();
    }
}

/// Outcome of sampling one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceSample {
    /// The token.
    Token(u32),
    /// The logit of this token is NaN or infinite.
    Broken(u32),
    /// No token has a logit above -infinity.
    Nothing,
}
