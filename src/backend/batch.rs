//! One step's work, as every backend is told of it.

use super::BlockId;

/// Rows of one sequence in a batch: consecutive tokens at consecutive positions.
#[derive(Clone, Copy, Debug)]
pub struct SeqSpan {
    /// First row in the batch.
    pub row: u32,
    /// Number of rows.
    pub rows: u32,
    /// Position of the first row in its sequence; a row attends to positions from 0 to its own.
    pub position: u32,
    /// Start of the sequence's block table in [`Batch::tables`].
    pub table: u32,
    /// Length of the block table, which covers at least `position + rows` tokens.
    pub table_len: u32,
}

/// One step's work for a model: the rows of all scheduled sequences, packed.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Sequence length by which a length-dependent rope (dynamic NTK) scales each row: the end of the prompt that a prompt
    /// token belongs to, position + 1 for a generated token.
    pub rope_lens: Vec<u32>,
    /// The sequences, in row order.
    pub spans: Vec<SeqSpan>,
    /// The block tables of all spans, one after the other.
    pub tables: Vec<BlockId>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
}

/// Rotation angles of every row of a step, computed once and used by all layers: `[rows, head_dim / 2]` each, with the
/// attention scaling of yarn multiplied in. Halves are rotated as in Hugging Face checkpoints:
/// `(x[i], x[i + head_dim/2])`.
#[derive(Clone, Debug, Default)]
pub struct RopeRows {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

/// Parameters of a layer's attention.
pub struct AttentionArgs<'a> {
    /// Index of the layer.
    pub layer: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Softmax scale.
    pub scale: f32,
    /// Sliding window: a row at position p attends to positions > p - window. None: all.
    pub window: Option<u32>,
    /// The step's rows.
    pub batch: &'a Batch,
}
