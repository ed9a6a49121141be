//! Launches of the kernels that treat each row by itself.

use super::layout::{Element, KvLayout, named};
use super::stream::{Shape, arg};
use super::{CudaBackend, CudaBuffer, CudaMatrix, CudaSlab, CudaVector};
use crate::backend::{AttentionArgs, BlockStore};
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;
use cleave_kernels::shapes;

impl CudaBackend {
    /// Implements [`Backend::embed`](crate::backend::Backend::embed); the other functions likewise.
    pub(super) fn run_embed(&mut self, table: &CudaMatrix, tokens: &[u32], out: &mut CudaBuffer) -> Result<()> {
        let (rows, hidden) = (self.step.rows.max(tokens.len() as u32), table.cols);
        self.shape(out, rows, hidden, Element::F32)?;
        let shape = Shape { grid: [rows, 1, 1], threads: shapes::EMBED_THREADS, shared: 0 };
        let kernel = named!(table.element, "embed_");
        self.stream.launch(
            kernel,
            shape,
            &mut [
                arg(&table.address()),
                arg(&self.step.address(self.step.tokens)),
                arg(&out.address()),
                arg(&rows),
                arg(&hidden),
            ],
        )
    }

    pub(super) fn run_rms_norm(
        &mut self,
        x: &CudaBuffer,
        rows: Option<&[u32]>,
        weight: &CudaVector,
        eps: f32,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        x.expect(Element::F32, x.cols)?;
        let (ids, n) = match rows {
            Some(rows) if rows.len() <= self.step.logit_rows.len => {
                (self.step.address(self.step.logit_rows), self.step.logit_rows.len as u32)
            }
            Some(rows) => bail!(Internal, "{} rows to normalise that the device was not told of", rows.len()),
            None => (0, x.rows),
        };
        self.shape(out, n, x.cols, self.element)?;
        let threads = shapes::norm_threads(x.cols);
        let shape = Shape { grid: [n, 1, 1], threads, shared: threads / 32 * 4 };
        self.stream.launch(
            named!(self.element, "rms_norm_"),
            shape,
            &mut [
                arg(&x.address()),
                arg(&ids),
                arg(&weight.address()),
                arg(&out.address()),
                arg(&n),
                arg(&x.cols),
                arg(&eps),
            ],
        )
    }

    pub(super) fn run_rope_store(
        &mut self,
        [q, k, v]: [&CudaBuffer; 3],
        norms: Option<(&CudaVector, &CudaVector, f32)>,
        args: &AttentionArgs<'_>,
        kv: &CudaSlab,
    ) -> Result<()> {
        let geometry = kv.geometry();
        let (heads, kv_heads) = (args.heads as u32, geometry.kv_heads);
        q.expect(self.element, heads * geometry.head_dim)?;
        k.expect(self.element, kv_heads * geometry.head_dim)?;
        v.expect(self.element, kv_heads * geometry.head_dim)?;
        let lanes = geometry.head_dim.div_ceil(8).next_power_of_two();
        let rows = q.rows;
        let items = rows as usize * (heads + 2 * kv_heads) as usize * lanes as usize;
        let (q_norm, k_norm, eps) = norms.map_or((0, 0, 0.0), |(q, k, eps)| (q.address(), k.address(), eps));
        let kernel = match geometry.dtype {
            Dtype::F32 => named!(self.element, "rope_store_", "_float"),
            Dtype::F16 => named!(self.element, "rope_store_", "_f16"),
            Dtype::Bf16 => named!(self.element, "rope_store_", "_bf16"),
            Dtype::I8 => named!(self.element, "rope_store_", "_int8"),
        };
        let layout = KvLayout::of(geometry)?;
        self.stream.launch(
            kernel,
            Shape::over(items, shapes::ROPE_THREADS),
            &mut [
                arg(&q.address()),
                arg(&q.stride),
                arg(&k.address()),
                arg(&k.stride),
                arg(&v.address()),
                arg(&v.stride),
                arg(&q_norm),
                arg(&k_norm),
                arg(&eps),
                arg(&self.step.address(self.step.cos)),
                arg(&self.step.address(self.step.sin)),
                arg(&self.step.address(self.step.slots)),
                arg(&kv.address()),
                arg(&layout),
                arg(&(args.layer as u32)),
                arg(&heads),
                arg(&rows),
            ],
        )
    }

    pub(super) fn run_add(&mut self, x: &CudaBuffer, residual: &CudaBuffer) -> Result<()> {
        x.expect(Element::F32, residual.cols)?;
        residual.expect(Element::F32, x.cols)?;
        let elements = x.rows * x.cols;
        self.stream.launch(
            "add_float",
            Shape::over(elements as usize, shapes::ACTIVATION_THREADS),
            &mut [arg(&residual.address()), arg(&x.address()), arg(&elements)],
        )
    }

    pub(super) fn run_silu_mul(&mut self, gate: &CudaBuffer, up: &CudaBuffer) -> Result<()> {
        gate.expect(self.element, up.cols)?;
        up.expect(self.element, gate.cols)?;
        let pieces = gate.rows as usize * gate.cols as usize * self.element.size() / 16;
        self.stream.launch(
            named!(self.element, "silu_mul_"),
            Shape::over(pieces, shapes::ACTIVATION_THREADS),
            &mut [
                arg(&gate.address()),
                arg(&gate.stride),
                arg(&up.address()),
                arg(&up.stride),
                arg(&gate.rows),
                arg(&gate.cols),
            ],
        )
    }
}
