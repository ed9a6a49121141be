//! How the next token of a row is drawn, for a device that draws it itself: `sampling` in plain data. A device that
//! does gives the very tokens that `sampling` gives from the same logits.

/// One row's draw. Its lists are ranges of those in [`DeviceSamplingBatch`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DeviceSamplingRow {
    pub seed: u64,
    /// In the sequence, of the token to be drawn.
    pub position: u64,
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    pub top_k: u32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub biases: (u32, u32),
    pub counts: (u32, u32),
    pub masked: (u32, u32),
}

/// The draws of a step, one for each row of its logits.
#[derive(Clone, Debug, Default)]
pub struct DeviceSamplingBatch {
    pub rows: Vec<DeviceSamplingRow>,
    /// Token and what is added to its logit; a row's by token, in the order given where that is the same.
    pub biases: Vec<(u32, f32)>,
    /// Each token of a sequence once, and how often it was generated since the last prompt. There for rows with penalties.
    pub counts: Vec<(u32, u32)>,
    /// Tokens that are not to be drawn.
    pub masked: Vec<u32>,
}

impl DeviceSamplingBatch {
    pub fn clear(&mut self) {
        self.rows.clear();
        self.biases.clear();
        self.counts.clear();
        self.masked.clear();
    }
}

/// What came of a draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceSample {
    Token(u32),
    /// The logit of this token is NaN or infinite.
    Broken(u32),
    /// No token has a logit above -infinity.
    Nothing,
}
