//! Compares the kernels of every level this machine has with plain f64 arithmetic, and checks that results do not
//! depend on batches or threads.

mod attention;
mod linear;
mod operations;
mod pool;

use super::{CpuBackend, CpuBuffer, CpuConfig, CpuMatrix, CpuVector, Level};
use crate::tensor::Dtype;
use std::sync::Arc;

/// A small random generator that yields the same numbers on every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end
    }

    /// A number in -1..1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

/// The levels that this machine runs.
pub fn levels() -> impl Iterator<Item = Level> {
    let all = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Amx];
    all.into_iter().filter(|level| *level <= Level::best())
}

/// A matrix of these values, rounded to `dtype`.
pub fn matrix(values: &[f32], rows: usize, cols: usize, dtype: Dtype) -> CpuMatrix {
    let bytes: Vec<u8> = match dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::I8 => panic!("there are no weights of int8"),
    };
    CpuMatrix::new(Arc::new(bytes), 0, rows, cols, dtype).unwrap()
}

pub fn vector(values: &[f32]) -> CpuVector {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    CpuVector::new(&bytes, Dtype::F32).unwrap()
}

pub fn buffer(values: &[f32], rows: usize, cols: usize) -> CpuBuffer {
    let mut buffer = CpuBuffer::default();
    buffer.resize(rows, cols).unwrap();
    buffer.as_mut_slice().copy_from_slice(values);
    buffer
}

pub fn backend(level: Level, threads: usize) -> CpuBackend {
    CpuBackend::new(CpuConfig { threads, cpus: None, level: Some(level) }).unwrap()
}

pub fn rounded(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => value,
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
        Dtype::Bf16 => half::bf16::from_f32(value).to_f32(),
        Dtype::I8 => panic!("int8 is rounded by the row"),
    }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];
pub const KV_DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8];
