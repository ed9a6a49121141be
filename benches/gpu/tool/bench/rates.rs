//! Bounds of the device: its copy rate, and the rate of the library's largest matrix product.

use super::report::{Bound, COPY, MATRIX, Report};
use super::{Outcome, locked, words};
use cleave::backend::cuda::{CudaBackend, CudaBuffer, CudaMatrix, CudaPool, CudaProjections, CudaSlab, Device, Loader};
use cleave::backend::{Backend, BlockStore, DeviceMemory, KvGeometry, Linear};
use cleave::tensor::Dtype;
use std::sync::{Arc, Mutex};
use std::time::Instant;

pub fn run(report: &Mutex<Report>, simulated: bool) -> Outcome<()> {
    let device = Device::open(0).map_err(words)?;
    let copied = copy(&device, simulated)?;
    locked(report).add("-", COPY, copied, "GB/s", Bound::None, None);
    handoff(&device, report, simulated)?;
    // Rows, outputs, inputs: a cube, and 8192 tokens in the MLP of an 8B model.
    let shapes = if simulated { vec![[80, 64, 64]] } else { vec![[8192, 8192, 8192], [8192, 14336, 4096]] };
    let mut best = 0f64;
    for shape in shapes {
        best = best.max(matrix(&device, shape)?);
    }
    locked(report).add("-", MATRIX, best, "TFLOP/s", Bound::None, None);
    Ok(())
}

/// GB/s of one large copy; bytes read and bytes written both count.
fn copy(device: &Arc<Device>, simulated: bool) -> Outcome<f64> {
    let block_tokens = if simulated { 1 << 10 } else { 1 << 23 }; // blocks of 4 GiB
    let geometry = KvGeometry { layers: 1, kv_heads: 1, head_dim: 128, block_tokens, dtype: Dtype::Bf16, shards: 1 };
    let slab = CudaSlab::new(device, geometry, 2).map_err(words)?;
    let mut best = f64::MAX;
    for _ in 0..8 {
        let begun = Instant::now();
        slab.copy(0, 1).map_err(words)?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(2.0 * geometry.block_bytes() as f64 / best / 1e9)
}

/// Measures KV of 8192 tokens of an 8B model, in scattered blocks, from another process's pool into a pool on the same
/// device. The pool is mapped as another process maps it.
fn handoff(device: &Arc<Device>, report: &Mutex<Report>, simulated: bool) -> Outcome<()> {
    const BLOCK_TOKENS: usize = 16;
    let (block_bytes, n) = if simulated { (4 << 10, 8) } else { (2 << 20, 512) };
    let pool = || CudaPool::new(device, n, block_bytes, true).map_err(words);
    let (exporter, importer) = (pool()?, pool()?);
    let (fd, bytes, uuid) = exporter.descriptor().map_err(words)?;
    let mapped = CudaPool::open(fd, bytes, &uuid, block_bytes).map_err(words)?;
    // Scatter the blocks, as in a pool that has been in use: consecutive blocks of a sequence are not adjacent.
    let from: Vec<u32> = (0..n as u32).map(|i| i * 13 % n as u32).collect();
    let to: Vec<u32> = (0..n as u32).map(|i| i * 29 % n as u32).collect();
    let mut best = f64::MAX;
    for _ in 0..8 {
        let begun = Instant::now();
        importer.copy_from(&mapped, &from, &to).map_err(words)?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    let tokens = n * BLOCK_TOKENS;
    // Bytes read and written both count, as in the copy rate.
    let bytes = Bound::Bytes(2.0 * (block_bytes / BLOCK_TOKENS) as f64);
    let what = format!("handoff of {tokens} tokens (8b) to another process");
    locked(report).add("-", &what, tokens as f64 / best, "tokens/s", bytes, Some(0.80));
    Ok(())
}

/// TFLOP/s of the product `x [m, k] · wᵀ [n, k]` in bf16.
fn matrix(device: &Arc<Device>, [m, n, k]: [usize; 3]) -> Outcome<f64> {
    const TIMES: usize = 10;
    let geometry = KvGeometry { layers: 1, kv_heads: 1, head_dim: 64, block_tokens: 16, dtype: Dtype::Bf16, shards: 1 };
    let slab = CudaSlab::new(device, geometry, 1).map_err(words)?;
    let mut cuda = CudaBackend::new(device, Dtype::Bf16, 1, std::iter::once(None), &slab).map_err(words)?;
    let value = |i: usize| (i * 7919 % 257) as f32 / 257.0 - 0.5;
    let x: Vec<f32> = (0..m * k).map(value).collect();
    let w: Vec<u8> = (0..n * k).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()).collect();
    let mut loader = Loader::new(device).map_err(words)?;
    let weight = CudaMatrix::new(&mut loader, &w, n, k, Dtype::Bf16).map_err(words)?;
    loader.finish().map_err(words)?;
    let projection = CudaProjections::new(Linear { weight, bias: None }, vec![n]).map_err(words)?;
    let x = cuda.upload(&x, m, k, false).map_err(words)?;
    let mut out = CudaBuffer::default();
    let mut best = f64::MAX;
    for times in [1, TIMES, TIMES, TIMES] {
        let begun = Instant::now();
        for _ in 0..times {
            cuda.project(&x, &projection, &mut [&mut out]).map_err(words)?;
        }
        cuda.wait().map_err(words)?;
        best = best.min(begun.elapsed().as_secs_f64() / times as f64);
    }
    Ok(2.0 * (m * n * k) as f64 / best / 1e12)
}
