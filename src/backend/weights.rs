//! Weights on their way from a checkpoint to a device, in two stages. *Read*: a source says where a tensor's bytes are mapped
//! and which part of it is wanted. *Place*: the device's [`WeightLoader`] copies, converts, stacks or packs it as the
//! device's kernels want it.

use super::{Backend, Linear};
use crate::bail;
use crate::error::{Error, Result};
use crate::tensor::Dtype;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Memory that weights are read from: a file mapping, or a vector in tests. It must return the same bytes at the same
/// address every time.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A tensor where the checkpoint is mapped.
#[derive(Clone)]
pub struct TensorSource<'a> {
    /// Path of the file, for errors.
    pub file: &'a str,
    /// Name in the file, for errors.
    pub name: &'a str,
    /// Keeps the bytes mapped.
    pub owner: Bytes,
    /// Start of the tensor in `owner`, in bytes.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
    /// Element type.
    pub dtype: Dtype,
    /// Rows of a matrix; 1 for a vector.
    pub rows: usize,
    /// Columns of a matrix; the length of a vector.
    pub cols: usize,
}

impl TensorSource<'_> {
    /// All bytes of the tensor.
    pub fn bytes(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.offset..self.offset + self.len]
    }

    /// Adds the tensor's name to an error.
    pub fn blame(&self, error: Error) -> Error {
        error.context(format!("{}: tensor {}", self.file, self.name))
    }
}

/// How a matrix lies in its storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// Outputs × inputs, row after row, as Hugging Face checkpoints store it.
    RowMajor,
}

/// The part of a matrix that one device of a group holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shard {
    /// The whole matrix.
    #[default]
    Whole,
    /// These outputs. Products of the parts stand side by side.
    Rows(Range<usize>),
    /// These inputs. Products of the parts are partial sums.
    Columns(Range<usize>),
}

/// A weight matrix as the checkpoint has it. The type of its elements says nothing about the type of activations.
#[derive(Clone)]
pub struct MatrixSource<'a> {
    /// The elements, packed or plain.
    pub storage: TensorSource<'a>,
    /// Scales of quantised elements; None for elements that are numbers by themselves.
    pub scales: Option<TensorSource<'a>>,
    /// Layout of the storage.
    pub layout: WeightLayout,
    /// The part to load.
    pub shard: Shard,
}

impl<'a> MatrixSource<'a> {
    /// A whole matrix of plain numbers, row after row.
    pub fn plain(storage: TensorSource<'a>) -> MatrixSource<'a> {
        MatrixSource { storage, scales: None, layout: WeightLayout::RowMajor, shard: Shard::Whole }
    }

    /// Rows and columns of the part to load. UNSUPPORTED for quantised elements, CORRUPT if the part exceeds the matrix.
    pub fn shape(&self) -> Result<(usize, usize)> {
        let TensorSource { rows, cols, .. } = self.storage;
        if self.scales.is_some() {
            bail!(Unsupported, "quantised weights");
        }
        let part = |range: &Range<usize>, all: usize| match range.end <= all && range.start < range.end {
            true => Ok(range.len()),
            false => Err(crate::error!(Corrupt, "shard {range:?} of a dimension of {all}")),
        };
        match &self.shard {
            Shard::Whole => Ok((rows, cols)),
            Shard::Rows(range) => Ok((part(range, rows)?, cols)),
            Shard::Columns(range) => Ok((rows, part(range, cols)?)),
        }
    }

    /// Start of the part in the storage's owner, in bytes, if the part lies there in one piece.
    pub fn in_place(&self) -> Option<usize> {
        let TensorSource { offset, cols, dtype, .. } = self.storage;
        match (self.layout, &self.shard) {
            (WeightLayout::RowMajor, Shard::Whole) => Some(offset),
            (WeightLayout::RowMajor, Shard::Rows(range)) => Some(offset + range.start * cols * dtype.size()),
            (WeightLayout::RowMajor, Shard::Columns(_)) => None,
        }
    }

    /// The bytes of the part, row after row.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        let (rows, cols) = self.shape()?;
        let (all, size) = (self.storage.bytes(), self.storage.dtype.size());
        if all.len() != self.storage.rows * self.storage.cols * size {
            bail!(Corrupt, "matrix of {} x {} has {} bytes", self.storage.rows, self.storage.cols, all.len());
        }
        Ok(match &self.shard {
            Shard::Whole => Cow::Borrowed(all),
            Shard::Rows(range) => Cow::Borrowed(&all[range.start * cols * size..][..rows * cols * size]),
            Shard::Columns(range) => {
                let columns = range.start * size..range.end * size;
                Cow::Owned(
                    all.chunks_exact(self.storage.cols * size).flat_map(|row| &row[columns.clone()]).copied().collect(),
                )
            }
        })
    }
}

/// A projection as the checkpoint has it: `y = x · Wᵀ (+ b)`.
#[derive(Clone)]
pub struct LinearSource<'a> {
    /// The matrix.
    pub weight: MatrixSource<'a>,
    /// The bias of the outputs that are loaded.
    pub bias: Option<TensorSource<'a>>,
}

/// Places weights on a device.
pub trait WeightLoader<B: Backend> {
    /// Places an embedding table or an output projection.
    fn matrix(&mut self, source: &MatrixSource<'_>) -> Result<B::Matrix>;
    /// Places a norm weight.
    fn vector(&mut self, source: &TensorSource<'_>) -> Result<B::Vector>;
    /// Places one projection.
    fn linear(&mut self, source: &LinearSource<'_>) -> Result<Linear<B>>;
    /// Places the projections of one input together.
    fn projections(&mut self, sources: &[LinearSource<'_>]) -> Result<B::Projections>;
}

/// A model's weights in numbers, for a device that is about to place them.
pub struct WeightsRequest<'a> {
    /// Fingerprint of the model: processes that share weights find each other by it.
    pub identity: [u8; 32],
    /// Type of most matrices.
    pub dtype: Dtype,
    /// Size of all tensors in the checkpoint.
    pub stored_bytes: u64,
    /// Elements of all matrices.
    pub matrix_elements: u64,
    /// Elements of all vectors.
    pub vector_elements: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Use one copy together with the other processes that ask for that, where the device supports it.
    pub shared: bool,
    /// Starts reading the checkpoint ahead; called only if its bytes are needed.
    pub read_ahead: &'a dyn Fn(),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn matrix(shard: Shard) -> MatrixSource<'static> {
        // 3 x 4 of float16, whose elements count up from 0; two bytes of something else before it.
        let bytes: Vec<u8> = [0xffff].into_iter().chain(0..12u16).flat_map(u16::to_le_bytes).collect();
        let storage = TensorSource {
            file: "f",
            name: "t",
            owner: Arc::new(bytes),
            offset: 2,
            len: 24,
            dtype: Dtype::F16,
            rows: 3,
            cols: 4,
        };
        MatrixSource { shard, ..MatrixSource::plain(storage) }
    }

    fn elements(source: &MatrixSource<'_>) -> Vec<u16> {
        source.bytes().unwrap().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
    }

    #[test]
    fn shards_are_cut_from_rows_and_columns() {
        let whole = matrix(Shard::Whole);
        assert_eq!((whole.shape().unwrap(), elements(&whole), whole.in_place()), ((3, 4), (0..12).collect(), Some(2)));
        let rows = matrix(Shard::Rows(1..3));
        assert_eq!((rows.shape().unwrap(), elements(&rows), rows.in_place()), ((2, 4), (4..12).collect(), Some(10)));
        let columns = matrix(Shard::Columns(1..3));
        assert_eq!((columns.shape().unwrap(), elements(&columns)), ((3, 2), vec![1, 2, 5, 6, 9, 10]));
        assert_eq!(columns.in_place(), None);
    }

    #[test]
    fn what_cannot_be_loaded_is_refused() {
        assert_eq!(matrix(Shard::Rows(2..4)).bytes().unwrap_err().status, Status::Corrupt);
        assert_eq!(matrix(Shard::Columns(2..2)).bytes().unwrap_err().status, Status::Corrupt);
        let plain = matrix(Shard::Whole);
        let quantised = MatrixSource { scales: Some(plain.storage.clone()), ..plain };
        assert_eq!(quantised.shape().unwrap_err().status, Status::Unsupported);
    }
}
