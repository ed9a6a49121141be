//! Weights and activations on a device.

use super::CudaBackend;
use super::depot::Weight;
use super::device::Device;
use super::layout::Element;
use super::load::Loader;
use super::memory::Allocation;
use crate::backend::Linear;
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;
use std::borrow::Cow;
use std::sync::Arc;

/// A weight matrix `[rows, cols]`, row-major, in the type that the device computes with.
pub struct CudaMatrix {
    memory: Weight,
    pub(super) rows: u32,
    pub(super) cols: u32,
    pub(super) element: Element,
}

impl CudaMatrix {
    /// A matrix from a tensor's bytes, complete when the loader has finished.
    pub fn new(loader: &mut Loader, bytes: &[u8], rows: usize, cols: usize, dtype: Dtype) -> Result<Self> {
        Self::stacked(loader, std::iter::once(Ok(Cow::Borrowed(bytes))), rows, cols, dtype)
    }

    /// One matrix of `rows` rows from the bytes of several, stacked in order.
    pub fn stacked<'a>(
        loader: &mut Loader,
        parts: impl Iterator<Item = Result<Cow<'a, [u8]>>>,
        rows: usize,
        cols: usize,
        dtype: Dtype,
    ) -> Result<Self> {
        let element = Element::of(dtype)?;
        let (Ok(n_rows), Ok(n_cols)) = (u32::try_from(rows), u32::try_from(cols)) else {
            bail!(Unsupported, "matrix of {rows} x {cols}");
        };
        let Some(total) = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size())) else {
            bail!(Corrupt, "matrix of {rows} x {cols} overflows");
        };
        // Rows are read in pieces of 16 bytes.
        if !(cols * dtype.size()).is_multiple_of(16) {
            bail!(Unsupported, "matrix of {rows} x {cols} {dtype} on a CUDA device: rows are no multiple of 16 bytes");
        }
        let memory = loader.place(total)?;
        if loader.is_filled() {
            return Ok(CudaMatrix { memory, rows: n_rows, cols: n_cols, element });
        }
        let mut loaded = 0;
        for bytes in parts {
            let bytes = bytes?;
            if bytes.len() > total - loaded {
                bail!(Corrupt, "matrix of {rows} x {cols} {dtype} has more than {total} bytes");
            }
            loader.load(&memory, loaded, &bytes)?;
            loaded += bytes.len();
        }
        if loaded < total {
            bail!(Corrupt, "matrix of {rows} x {cols} {dtype} has {loaded} bytes");
        }
        Ok(CudaMatrix { memory, rows: n_rows, cols: n_cols, element })
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }
}

/// A norm weight or bias in f32.
pub struct CudaVector {
    memory: Weight,
    /// A bias also in the type of matrices, for cuBLASLt, if that type represents all its values exactly.
    rounded: Option<Weight>,
}

impl CudaVector {
    /// A vector with these values, complete when the loader has finished.
    pub fn new(loader: &mut Loader, values: &[f32]) -> Result<CudaVector> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(CudaVector { memory: load(loader, &bytes)?, rounded: None })
    }

    /// The bias of a matrix of type `dtype`.
    pub fn bias(loader: &mut Loader, values: &[f32], dtype: Dtype) -> Result<CudaVector> {
        let rounded = exactly(values, Element::of(dtype)?).map(|bytes| load(loader, &bytes)).transpose()?;
        Ok(CudaVector { rounded, ..CudaVector::new(loader, values)? })
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Address of the bias in the type of matrices.
    pub(super) fn rounded(&self) -> Option<u64> {
        self.rounded.as_ref().map(Weight::address)
    }
}

fn load(loader: &mut Loader, bytes: &[u8]) -> Result<Weight> {
    let memory = loader.place(bytes.len())?;
    loader.load(&memory, 0, bytes)?;
    Ok(memory)
}

/// The values in a 16-bit type, if it represents all of them exactly.
fn exactly(values: &[f32], element: Element) -> Option<Vec<u8>> {
    let narrow = |value: &f32| {
        let (bits, back) = match element {
            Element::F16 => (half::f16::from_f32(*value).to_bits(), half::f16::from_f32(*value).to_f32()),
            Element::Bf16 => (half::bf16::from_f32(*value).to_bits(), half::bf16::from_f32(*value).to_f32()),
            Element::F32 => return None,
        };
        (back == *value).then_some(bits.to_le_bytes())
    };
    values.iter().map(narrow).collect::<Option<Vec<_>>>().map(|pairs| pairs.concat())
}

/// Projections of one input, computed as one product whose outputs lie side by side.
pub struct CudaProjections {
    pub(super) linear: Linear<CudaBackend>,
    /// Number of outputs of each projection.
    pub(super) outputs: Vec<u32>,
}

impl CudaProjections {
    /// `outputs`: how many of the rows of `linear` are each projection's.
    pub fn new(linear: Linear<CudaBackend>, outputs: Vec<usize>) -> Result<CudaProjections> {
        let rows = linear.weight.rows;
        if outputs.is_empty() || outputs.iter().try_fold(0usize, |sum, n| sum.checked_add(*n)) != Some(rows as usize) {
            bail!(Internal, "projections of {outputs:?} outputs in a matrix of {rows} rows");
        }
        Ok(CudaProjections { linear, outputs: outputs.into_iter().map(|n| n as u32).collect() })
    }
}

/// Activations `[rows, cols]`, in their own memory or as columns of a wider buffer.
#[derive(Default)]
pub struct CudaBuffer {
    memory: Option<Arc<Allocation>>,
    /// Offset of the first element, in bytes.
    offset: usize,
    pub(super) rows: u32,
    pub(super) cols: u32,
    /// Distance of rows, in elements.
    pub(super) stride: u32,
    pub(super) element: Option<Element>,
}

impl CudaBuffer {
    /// Gives it a shape; what it holds then is unspecified. Memory grows, and stays. True if it moved.
    pub(super) fn resize(&mut self, device: &Arc<Device>, rows: u32, cols: u32, element: Element) -> Result<bool> {
        let Some(bytes) = (rows as usize).checked_mul(cols as usize).and_then(|n| n.checked_mul(element.size())) else {
            bail!(OutOfMemory, "activations of {rows} x {cols} overflow");
        };
        // Memory that another buffer shares cannot be reused.
        let own = self.memory.as_mut().and_then(Arc::get_mut);
        let grows = own.is_none_or(|memory| memory.bytes() < bytes);
        if grows {
            self.memory = None; // the old one makes room first
            self.memory = Some(Arc::new(Allocation::new(device, bytes.next_power_of_two())?));
        }
        (self.rows, self.cols, self.stride, self.element) = (rows, cols, cols, Some(element));
        self.offset = 0;
        Ok(grows)
    }

    /// Lets go of what it holds.
    pub(super) fn release(&mut self) {
        *self = CudaBuffer::default();
    }

    /// Keeps its first `cols` columns, and gives each of `others` the columns after those before it.
    pub(super) fn split(&mut self, cols: &[u32], others: &mut [&mut CudaBuffer]) {
        let size = self.element.map_or(0, Element::size);
        let mut offset = self.offset;
        for (i, cols) in cols.iter().enumerate() {
            match i.checked_sub(1) {
                None => self.cols = *cols,
                Some(other) => {
                    let memory = self.memory.clone();
                    *others[other] = CudaBuffer { memory, offset, cols: *cols, ..*self };
                }
            }
            offset += *cols as usize * size;
        }
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.address() + self.offset as u64)
    }

    /// The memory that holds it, and its offset there in bytes.
    pub(super) fn place(&self) -> Option<(&Allocation, usize)> {
        Some((self.memory.as_deref()?, self.offset))
    }

    /// The same, of one whose rows have nothing between them.
    pub(super) fn memory(&self) -> Option<&Allocation> {
        self.memory.as_deref().filter(|_| self.stride == self.cols)
    }

    /// An error if it holds something else than a kernel is about to take.
    pub(super) fn expect(&self, element: Element, cols: u32) -> Result<()> {
        if self.element != Some(element) || self.cols != cols {
            bail!(
                Internal,
                "activations of {} x {} {:?} where {cols} columns of {element:?} are wanted",
                self.rows,
                self.cols,
                self.element
            );
        }
        Ok(())
    }
}
