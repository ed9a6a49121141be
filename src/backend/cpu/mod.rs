//! CPU backend: a thread pool, KV blocks and weights in host memory, and kernels for each instruction set.

mod affinity;
mod attention;
mod elementwise;
mod level;
mod linear;
mod load;
mod matrix;
mod memory;
mod norm;
mod per_thread;
mod pool;
mod rope;
mod simd;
mod slab;
#[cfg(target_arch = "x86_64")]
mod tile;

pub use affinity::bind_current_thread;
pub use level::Level;
pub use load::CpuDevice;
pub use matrix::{CpuBuffer, CpuMatrix, CpuVector};
pub use pool::Pool;
pub use slab::KvSlab;

use super::{AttentionArgs, Backend, Linear, RopeRows};
use crate::bail;
use crate::error::Result;

/// Options of a CPU backend.
#[derive(Clone, Debug, Default)]
pub struct CpuConfig {
    /// Number of threads that compute, including the calling one. 0: one per CPU in `cpus`, or per CPU available to the
    /// process.
    pub threads: usize,
    /// CPUs the workers are bound to. The calling thread binds itself, with [`bind_current_thread`].
    pub cpus: Option<Vec<usize>>,
    /// Instruction set to use. None: the best this CPU has.
    pub level: Option<Level>,
}

/// Worker threads and scratch memory of one engine on the CPU.
pub struct CpuBackend {
    level: Level,
    pool: Pool,
    packed: linear::Packed,
    scratches: attention::Scratches,
}

impl CpuBackend {
    /// Starts the worker threads. UNSUPPORTED if this CPU lacks the instructions of `config.level`.
    pub fn new(config: CpuConfig) -> Result<CpuBackend> {
        let level = config.level.unwrap_or_else(Level::best);
        if level > Level::best() {
            bail!(Unsupported, "this CPU runs {} at most, not {}", Level::best().name(), level.name());
        }
        let cpus = config.cpus.as_deref().filter(|cpus| !cpus.is_empty());
        let available = || std::thread::available_parallelism().map_or(1, |count| count.get());
        let threads = match (config.threads, cpus) {
            (0, Some(cpus)) => cpus.len(),
            (0, None) => available(),
            (threads, _) => threads,
        };
        let pool = Pool::new(threads, cpus)?;
        Ok(CpuBackend { level, pool, packed: Default::default(), scratches: Default::default() })
    }
}

impl Backend for CpuBackend {
    type Buffer = CpuBuffer;
    type Matrix = CpuMatrix;
    type Vector = CpuVector;
    /// Each matrix stays separate and in the mapped checkpoint; one parallel region computes all of them.
    type Projections = Vec<Linear<Self>>;
    type Kv = KvSlab;

    fn embed(&mut self, table: &CpuMatrix, tokens: &[u32], out: &mut CpuBuffer) -> Result<()> {
        elementwise::embed(&mut self.pool, self.level, table, tokens, out)
    }

    fn rms_norm(
        &mut self,
        x: &CpuBuffer,
        rows: Option<&[u32]>,
        weight: &CpuVector,
        eps: f32,
        out: &mut CpuBuffer,
    ) -> Result<()> {
        norm::rms_norm(&mut self.pool, self.level, x, rows, weight, eps, out)
    }

    fn project(&mut self, x: &CpuBuffer, linears: &Vec<Linear<Self>>, outs: &mut [&mut CpuBuffer]) -> Result<()> {
        if linears.len() != outs.len() {
            bail!(Internal, "{} projections into {} buffers", linears.len(), outs.len());
        }
        let tasks = linears.iter().zip(outs);
        let mut tasks: Vec<_> = tasks
            .map(|(linear, out)| linear::Task { weight: &linear.weight, bias: linear.bias.as_ref(), out, add: false })
            .collect();
        linear::linear(&mut self.pool, self.level, &mut self.packed, x, &mut tasks)
    }

    fn product(&mut self, x: &CpuBuffer, linear: &Linear<Self>, out: &mut CpuBuffer) -> Result<()> {
        let task = linear::Task { weight: &linear.weight, bias: linear.bias.as_ref(), out, add: false };
        linear::linear(&mut self.pool, self.level, &mut self.packed, x, &mut [task])
    }

    fn linear_add(&mut self, x: &CpuBuffer, linear: &Linear<Self>, residual: &mut CpuBuffer) -> Result<()> {
        let task = linear::Task { weight: &linear.weight, bias: linear.bias.as_ref(), out: residual, add: true };
        linear::linear(&mut self.pool, self.level, &mut self.packed, x, &mut [task])
    }

    fn add(&mut self, x: &CpuBuffer, residual: &mut CpuBuffer) -> Result<()> {
        elementwise::add(x, residual)
    }

    fn rope_store(
        &mut self,
        q: &mut CpuBuffer,
        k: &mut CpuBuffer,
        v: &CpuBuffer,
        norms: Option<(&CpuVector, &CpuVector, f32)>,
        rope: &RopeRows,
        args: &AttentionArgs<'_>,
        kv: &KvSlab,
    ) -> Result<()> {
        rope::rope_store(&mut self.pool, self.level, q, k, v, norms, rope, args, kv)
    }

    fn attention(&mut self, q: &CpuBuffer, args: &AttentionArgs<'_>, kv: &KvSlab, out: &mut CpuBuffer) -> Result<()> {
        attention::attention(&mut self.pool, self.level, &mut self.scratches, q, args, kv, out)
    }

    fn silu_mul(&mut self, gate: &mut CpuBuffer, up: &CpuBuffer) -> Result<()> {
        elementwise::silu_mul(&mut self.pool, self.level, gate, up)
    }

    fn download(&mut self, x: &CpuBuffer, rows: &[u32], out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        if out.try_reserve(rows.len() * x.cols()).is_err() {
            bail!(OutOfMemory, "cannot copy {} x {} activations", rows.len(), x.cols());
        }
        rows.iter().for_each(|row| out.extend_from_slice(x.row(*row as usize)));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
