//! Compares each operation of `CudaBackend` on device 0 with the portable form of the CPU backend.

mod attention;
mod rows;

use cleave::backend::KvGeometry;
use cleave::backend::cpu::{CpuBackend, CpuBuffer, CpuConfig, CpuMatrix, CpuVector, Level};
use cleave::backend::cuda::{CudaBackend, CudaSlab, Device, Loader};
use cleave::error::Result;
use cleave::tensor::Dtype;
use std::sync::Arc;
use std::time::Instant;

pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];
pub const KV_DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8];

/// Size of the sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Every kernel once, for a simulator or a sanitizer.
    Small,
    Full,
}

type Group = fn(&mut Check) -> Result<()>;

/// Groups of operations that can be run alone.
pub const GROUPS: [(&str, Group); 7] = [
    ("embed", rows::embed),
    ("rms_norm", rows::rms_norm),
    ("silu_mul", rows::silu_mul),
    ("linear", rows::linear),
    ("gated", rows::gated),
    ("decode", attention::decode),
    ("prefill", attention::prefill),
];

/// Runs a group and describes the result, or the first difference.
pub fn run(name: &str, sizes: Sizes) -> std::result::Result<String, String> {
    let begun = Instant::now();
    let (_, group) = GROUPS.into_iter().find(|(group, _)| *group == name).expect("a group of GROUPS");
    let mut check = Check::new(sizes).map_err(|error| error.to_string())?;
    group(&mut check).map_err(|error| format!("after {} comparisons: {error}", check.compared))?;
    let summary = format!("{} shapes, {} values, {:.1} s", check.shapes, check.compared, begun.elapsed().as_secs_f64());
    match check.failures.len() {
        0 => Ok(format!("{summary}; largest error {:.2} of its tolerance", check.worst)),
        n => Err(format!("{n} of {summary}; {}", check.failures[..n.min(8)].join("; "))),
    }
}

/// Both backends, and the results so far.
pub struct Check {
    pub sizes: Sizes,
    pub cpu: CpuBackend,
    pub device: Arc<Device>,
    pub random: Random,
    shapes: usize,
    compared: usize,
    /// Largest error as a fraction of the tolerance.
    worst: f64,
    failures: Vec<String>,
}

impl Check {
    fn new(sizes: Sizes) -> Result<Check> {
        let cpu = CpuBackend::new(CpuConfig { level: Some(Level::Portable), ..CpuConfig::default() })?;
        let device = Device::open(0)?;
        let (shapes, compared, worst, failures) = (0, 0, 0.0, Vec::new());
        Ok(Check { sizes, cpu, device, random: Random(0x1234_5678_9abc_def1), shapes, compared, worst, failures })
    }

    /// Backends for activations of `dtype`, for operations without KV.
    pub fn plain(&self, dtype: Dtype) -> Result<CudaBackend> {
        let geometry = KvGeometry { layers: 1, kv_heads: 1, head_dim: 64, block_tokens: 16, dtype, shards: 1 };
        let slab = CudaSlab::new(&self.device, geometry, 1)?;
        CudaBackend::new(&self.device, dtype, 1, std::iter::once(None), &slab)
    }

    pub fn loader(&self) -> Result<Loader<'_>> {
        Loader::new(&self.device)
    }

    /// Chooses between a value for small sweeps and one for full sweeps.
    pub fn pick<T>(&self, small: T, full: T) -> T {
        if self.sizes == Sizes::Small { small } else { full }
    }

    /// Requires every value to be near the CPU's, within `relative` of it plus `absolute`.
    pub fn same(&mut self, found: &[f32], expected: &[f32], relative: f64, absolute: f64, what: &str) {
        self.shapes += 1;
        self.compared += expected.len();
        if found.len() != expected.len() {
            return self.failures.push(format!("{what}: {} values for {}", found.len(), expected.len()));
        }
        let mut wrong: Option<(usize, f64)> = None;
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(*a) - f64::from(*b)).abs() / (relative * f64::from(b.abs()) + absolute);
            // NaN is wrong, and so is a CPU result that is not finite: no test intends one.
            let error = if error.is_nan() { f64::INFINITY } else { error };
            if error > 1.0 && wrong.is_none_or(|(_, worst)| error > worst) {
                wrong = Some((i, error));
            }
            self.worst = self.worst.max(error);
        }
        if let Some((i, error)) = wrong {
            let many = found.iter().zip(expected).filter(|(a, b)| {
                let error = (f64::from(**a) - f64::from(**b)).abs();
                error.is_nan() || error > relative * f64::from(b.abs()) + absolute
            });
            let many = many.count();
            self.failures.push(format!(
                "{what}: value {i} is {} for {}, {error:.1} times the tolerance; {many} of {} are wrong",
                found[i],
                expected[i],
                found.len()
            ));
        }
    }
}

/// Rounding error: half a unit in the last place of 1, or the step of an int8 row with values up to 1.
pub fn rounding(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 2f64.powi(-24),
        Dtype::F16 => 2f64.powi(-11),
        Dtype::Bf16 => 2f64.powi(-8),
        Dtype::I8 => 1.0 / 127.0,
    }
}

pub fn rounded(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
        Dtype::Bf16 => half::bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

pub fn bytes(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// Random numbers that are the same in every run.
pub struct Random(u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end
    }

    /// A number in -1..1, rounded to `dtype`.
    pub fn values(&mut self, n: usize, dtype: Dtype) -> Vec<f32> {
        let value = |random: &mut Random| (random.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        (0..n).map(|_| rounded(value(self), dtype)).collect()
    }
}

/// Weights `[rows, cols]` on the host, rounded to `dtype`.
pub fn host_matrix(values: &[f32], rows: usize, cols: usize, dtype: Dtype) -> Result<CpuMatrix> {
    CpuMatrix::new(Arc::new(bytes(values, dtype)), 0, rows, cols, dtype)
}

/// A norm weight or bias on the host.
pub fn host_vector(values: &[f32]) -> Result<CpuVector> {
    CpuVector::new(&bytes(values, Dtype::F32), Dtype::F32)
}

/// Activations `[rows, cols]` on the host.
pub fn host_buffer(values: &[f32], rows: usize, cols: usize) -> Result<CpuBuffer> {
    let mut buffer = CpuBuffer::default();
    buffer.resize(rows, cols)?;
    buffer.as_mut_slice().copy_from_slice(values);
    Ok(buffer)
}
