//! Copies of activations from and to the host, for tests and benches. In a step activations stay on the device.

use super::layout::Element;
use super::{CudaBackend, CudaBuffer};
use crate::bail;
use crate::error::Result;

impl CudaBackend {
    /// Uploads activations `[rows, cols]`: as f32 like the residual stream, or rounded to the type of other activations.
    pub fn upload(&mut self, values: &[f32], rows: usize, cols: usize, residual: bool) -> Result<CudaBuffer> {
        assert_eq!(values.len(), rows * cols);
        let element = if residual { Element::F32 } else { self.element };
        let bytes: Vec<u8> = match element {
            Element::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Element::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
            Element::Bf16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        };
        let mut out = CudaBuffer::default();
        self.shape(&mut out, rows as u32, cols as u32, element)?;
        if let Some(memory) = out.memory() {
            memory.write(0, &bytes, &self.stream)?;
        }
        Ok(out)
    }

    /// Waits, and downloads a buffer of any type.
    pub fn fetch(&mut self, x: &CudaBuffer) -> Result<Vec<f32>> {
        let (Some((memory, offset)), Some(element)) = (x.place(), x.element) else {
            bail!(Internal, "activations that nothing was written to");
        };
        let (row, stride) = (x.cols as usize * element.size(), x.stride as usize * element.size());
        let mut bytes = vec![0; x.rows as usize * row];
        for (i, row) in bytes.chunks_mut(row.max(1)).enumerate() {
            memory.read(offset + i * stride, row, &self.stream)?;
        }
        let pairs = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        Ok(match element {
            Element::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Element::F16 => pairs.map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
            Element::Bf16 => pairs.map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        })
    }

    /// Waits until the work so far is done.
    pub fn wait(&mut self) -> Result<()> {
        self.stream.synchronize()
    }
}
