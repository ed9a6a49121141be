//! Weights and activations on a device.

use super::device::Device;
use super::layout::Element;
use super::load::Loader;
use super::memory::DeviceMemory;
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;
use std::sync::Arc;

/// A weight matrix `[rows, cols]`, row-major, in the type that the device computes with.
pub struct CudaMatrix {
    memory: DeviceMemory,
    pub(super) rows: u32,
    pub(super) cols: u32,
    pub(super) element: Element,
}

impl CudaMatrix {
    /// From a tensor's bytes. It is there when the loader has finished.
    pub fn new(loader: &mut Loader, bytes: &[u8], rows: usize, cols: usize, dtype: Dtype) -> Result<Self> {
        let element = Element::of(dtype)?;
        if rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size())) != Some(bytes.len()) {
            bail!(Corrupt, "matrix of {rows} x {cols} {dtype} has {} bytes", bytes.len());
        }
        let (Ok(n_rows), Ok(n_cols)) = (u32::try_from(rows), u32::try_from(cols)) else {
            bail!(Unsupported, "matrix of {rows} x {cols}");
        };
        // Rows are read in pieces of 16 bytes.
        if !(cols * dtype.size()).is_multiple_of(16) {
            bail!(Unsupported, "matrix of {rows} x {cols} {dtype} on a CUDA device: rows are no multiple of 16 bytes");
        }
        let memory = DeviceMemory::new(loader.device(), bytes.len())?;
        loader.load(&memory, bytes)?;
        Ok(CudaMatrix { memory, rows: n_rows, cols: n_cols, element })
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }
}

/// A norm weight or bias, always f32.
pub struct CudaVector {
    memory: DeviceMemory,
}

impl CudaVector {
    pub fn new(loader: &mut Loader, values: &[f32]) -> Result<CudaVector> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let memory = DeviceMemory::new(loader.device(), bytes.len())?;
        loader.load(&memory, &bytes)?;
        Ok(CudaVector { memory })
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }
}

/// Activations `[rows, cols]`.
#[derive(Default)]
pub struct CudaBuffer {
    memory: Option<DeviceMemory>,
    pub(super) rows: u32,
    pub(super) cols: u32,
    pub(super) element: Option<Element>,
}

impl CudaBuffer {
    /// Gives it a shape; what it holds then is unspecified. Memory grows, and stays. True if it moved.
    pub(super) fn resize(&mut self, device: &Arc<Device>, rows: u32, cols: u32, element: Element) -> Result<bool> {
        let Some(bytes) = (rows as usize).checked_mul(cols as usize).and_then(|n| n.checked_mul(element.size())) else {
            bail!(OutOfMemory, "activations of {rows} x {cols} overflow");
        };
        let grows = self.memory.as_ref().is_none_or(|memory| memory.bytes() < bytes);
        if grows {
            self.memory = None; // the old one makes room first
            self.memory = Some(DeviceMemory::new(device, bytes.next_power_of_two())?);
        }
        (self.rows, self.cols, self.element) = (rows, cols, Some(element));
        Ok(grows)
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, DeviceMemory::address)
    }

    pub(super) fn memory(&self) -> Option<&DeviceMemory> {
        self.memory.as_ref()
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
