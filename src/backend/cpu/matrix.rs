//! Weights and activations in host memory.

use super::memory::Aligned;
use crate::backend::MatrixSource;
use crate::backend::weights::Bytes;
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;

enum Data {
    InPlace { owner: Bytes, offset: usize },
    Copied(Aligned<u8>),
}

/// A weight matrix `[rows, cols]`, row-major in the checkpoint's dtype, used where the checkpoint is mapped. It is
/// copied only if the tensor is not aligned to its element size or not contiguous.
pub struct CpuMatrix {
    data: Data,
    rows: usize,
    cols: usize,
    dtype: Dtype,
}

/// Rejects int8 weights. They would need scales; on the CPU only KV can be int8.
fn refuse_int8(dtype: Dtype) -> Result<()> {
    if dtype == Dtype::I8 {
        bail!(Unsupported, "weights of {dtype}: expected float32, float16 or bfloat16");
    }
    Ok(())
}

impl CpuMatrix {
    /// The matrix `[rows, cols]` at byte `offset` of `owner`. CORRUPT if it does not fit there.
    pub fn new(owner: Bytes, offset: usize, rows: usize, cols: usize, dtype: Dtype) -> Result<CpuMatrix> {
        refuse_int8(dtype)?;
        let all = (*owner).as_ref();
        let Some(bytes) = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size())) else {
            bail!(Corrupt, "matrix of {rows} x {cols} overflows");
        };
        let Some(part) = offset.checked_add(bytes).and_then(|end| all.get(offset..end)) else {
            bail!(Corrupt, "matrix of {bytes} bytes at {offset} exceeds its {} bytes", all.len());
        };
        let data = if (part.as_ptr() as usize).is_multiple_of(dtype.size()) {
            Data::InPlace { owner, offset }
        } else {
            return Self::copied(part, rows, cols, dtype);
        };
        Ok(CpuMatrix { data, rows, cols, dtype })
    }

    /// The part of a checkpoint's matrix that `source` describes: used in place if it is contiguous, otherwise copied.
    pub fn load(source: &MatrixSource<'_>) -> Result<CpuMatrix> {
        let (rows, cols) = source.shape()?;
        let (owner, dtype) = (&source.storage.owner, source.storage.dtype);
        match source.in_place() {
            Some(offset) => CpuMatrix::new(owner.clone(), offset, rows, cols, dtype),
            None => CpuMatrix::copied(&source.bytes()?, rows, cols, dtype),
        }
    }

    fn copied(bytes: &[u8], rows: usize, cols: usize, dtype: Dtype) -> Result<CpuMatrix> {
        refuse_int8(dtype)?;
        let mut copy = Aligned::new(bytes.len())?;
        copy.as_mut_slice().copy_from_slice(bytes);
        Ok(CpuMatrix { data: Data::Copied(copy), rows, cols, dtype })
    }

    /// Number of rows: outputs of a projection, or tokens of an embedding table.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: inputs of a projection, or the width of an embedding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Element type, the checkpoint's.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The elements, row by row: where the checkpoint is mapped, unless they were copied.
    pub fn bytes(&self) -> &[u8] {
        let len = self.rows * self.cols * self.dtype.size();
        match &self.data {
            Data::InPlace { owner, offset } => &(**owner).as_ref()[*offset..offset + len],
            Data::Copied(copy) => copy.as_slice(),
        }
    }
}

/// A norm weight or bias, always f32.
#[derive(Clone, Debug)]
pub struct CpuVector {
    pub(super) values: Box<[f32]>,
}

impl CpuVector {
    /// A vector from a tensor's little-endian bytes, of any alignment, widened to f32.
    pub fn new(bytes: &[u8], dtype: Dtype) -> Result<CpuVector> {
        refuse_int8(dtype)?;
        if !bytes.len().is_multiple_of(dtype.size()) {
            bail!(Corrupt, "vector of {} bytes is no whole number of {dtype} elements", bytes.len());
        }
        let pair = |b: &[u8]| [b[0], b[1]];
        let values = bytes.chunks_exact(dtype.size()).map(|b| match dtype {
            Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Dtype::F16 => half::f16::from_le_bytes(pair(b)).to_f32(),
            Dtype::Bf16 => half::bf16::from_le_bytes(pair(b)).to_f32(),
            Dtype::I8 => unreachable!("refused above"),
        });
        Ok(CpuVector { values: values.collect() })
    }

    /// All elements.
    pub fn as_slice(&self) -> &[f32] {
        &self.values
    }
}

/// Activations `[rows, cols]`, row-major f32.
#[derive(Default)]
pub struct CpuBuffer {
    data: Aligned<f32>,
    rows: usize,
    cols: usize,
}

impl CpuBuffer {
    /// Sets the shape. The content is unspecified afterwards.
    pub fn resize(&mut self, rows: usize, cols: usize) -> Result<()> {
        let Some(len) = rows.checked_mul(cols) else { bail!(OutOfMemory, "activations of {rows} x {cols} overflow") };
        self.data.resize(len)?;
        (self.rows, self.cols) = (rows, cols);
        Ok(())
    }

    /// Number of rows: one per token or sampled position of the step.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of elements in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All elements, row by row.
    pub fn as_slice(&self) -> &[f32] {
        self.data.as_slice()
    }

    /// All elements, row by row, for writing.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        self.data.as_mut_slice()
    }

    /// Elements of one row. Panics if `index` is out of range.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.as_slice()[index * self.cols..(index + 1) * self.cols]
    }
}
