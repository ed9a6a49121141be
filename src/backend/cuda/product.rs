//! Matrix products: cuBLASLt or the kernel that suits the number of rows.

use super::CudaBackend;
use super::blas::{Blas, Matrices, Product};
use super::layout::{Element, named};
use super::stream::{Shape, Stream, arg};
use super::tensors::{CudaBuffer, CudaProjections};
use crate::backend::Linear;
use crate::bail;
use crate::error::Result;
use cleave_kernels::shapes;

/// Number of rows up to which narrow tiles fill the device better than large ones.
const FLAT_ROWS: u32 = 64;

/// `out = linear(x)`, or `out += linear(x)`. `out` already has its shape and type, and no gaps between rows. True if memory
/// that recorded products use has moved.
pub(super) fn run(
    stream: &Stream,
    blas: Option<&mut Blas>,
    x: &CudaBuffer,
    linear: &Linear<CudaBackend>,
    out: &mut CudaBuffer,
    accumulate: bool,
) -> Result<bool> {
    let weight = &linear.weight;
    let element = weight.element;
    x.expect(element, weight.cols)?;
    let (m, n, k) = (x.rows, weight.rows, weight.cols);
    let bias = linear.bias.as_ref().map_or(0, |bias| bias.address());
    let to_float = out.element == Some(Element::F32);
    let mut moved = false;
    // cuBLASLt adds biases of y's type only.
    let of_y = match &linear.bias {
        Some(bias) if !to_float => bias.rounded(),
        _ => Some(bias),
    };
    if let (Some(blas), Some(bias)) = (blas.filter(|_| m > shapes::GEMV_ROWS && element != Element::F32), of_y) {
        let product = Product { m, n, k, x_stride: x.stride, element, to_float, bias: bias != 0 };
        let at = Matrices { x: x.address(), w: weight.address(), y: out.address(), bias };
        moved = blas.make_room()?;
        if blas.run(stream, &product, &at, accumulate)? {
            return Ok(moved);
        }
    }
    let (kernel, shape) = choose(element, to_float, m, n);
    stream.launch(
        kernel,
        shape,
        &mut [
            arg(&out.address()),
            arg(&out.stride),
            arg(&x.address()),
            arg(&x.stride),
            arg(&weight.address()),
            arg(&bias),
            arg(&m),
            arg(&n),
            arg(&k),
            arg(&u32::from(accumulate)),
        ],
    )?;
    Ok(moved)
}

/// True if [`gated`] can compute this product.
pub(super) fn is_gated(rows: u32, projections: &CudaProjections) -> bool {
    rows <= shapes::GEMV_ROWS && projections.linear.bias.is_none()
}

/// `out = silu(gate(x)) * up(x)` by one kernel, for few rows. `out` already has its shape and type.
pub(super) fn gated(
    stream: &Stream,
    x: &CudaBuffer,
    projections: &CudaProjections,
    out: &mut CudaBuffer,
) -> Result<()> {
    let weight = &projections.linear.weight;
    let &[n, ups] = projections.outputs.as_slice() else {
        bail!(Internal, "a gate and what it gates, in {} projections", projections.outputs.len());
    };
    x.expect(weight.element, weight.cols)?;
    out.expect(weight.element, ups)?;
    out.expect(weight.element, n)?;
    let up = weight.address() + u64::from(n) * u64::from(weight.cols) * weight.element.size() as u64;
    let (_, shape) = choose(weight.element, false, x.rows, n);
    stream.launch(
        named!(weight.element, "gemv_silu_"),
        Shape { shared: shape.shared * 2, ..shape },
        &mut [
            arg(&out.address()),
            arg(&out.stride),
            arg(&x.address()),
            arg(&x.stride),
            arg(&weight.address()),
            arg(&up),
            arg(&x.rows),
            arg(&n),
            arg(&weight.cols),
        ],
    )
}

fn choose(element: Element, to_float: bool, m: u32, n: u32) -> (&'static str, Shape) {
    let half = element != Element::F32;
    if m <= shapes::GEMV_ROWS {
        let kernel = match to_float {
            true => named!(element, "gemv_", "_float"),
            false => match element {
                Element::F32 => "gemv_float_float",
                Element::F16 => "gemv_f16_f16",
                Element::Bf16 => "gemv_bf16_bf16",
            },
        };
        let outputs = if half { shapes::GEMV_OUTPUTS } else { shapes::GEMV_FLOAT_OUTPUTS };
        let shared = if half { shapes::GEMV_SHARED } else { 0 };
        return (kernel, Shape { grid: [n.div_ceil(outputs), 1, 1], threads: shapes::GEMV_THREADS, shared });
    }
    if !half {
        let tiles = [m.div_ceil(shapes::GEMM_FLOAT_ROWS), n.div_ceil(shapes::GEMM_FLOAT_COLUMNS), 1];
        let (threads, shared) = (shapes::GEMM_FLOAT_THREADS, shapes::GEMM_FLOAT_SHARED);
        return ("gemm_float_float", Shape { grid: tiles, threads, shared });
    }
    if m <= FLAT_ROWS {
        let kernel = match (element, to_float) {
            (_, true) => named!(element, "gemm_flat_", "_float"),
            (Element::F16, false) => "gemm_flat_f16_f16",
            (_, false) => "gemm_flat_bf16_bf16",
        };
        let tiles = [m.div_ceil(shapes::GEMM_FLAT_ROWS), n.div_ceil(shapes::GEMM_FLAT_COLUMNS), 1];
        let (threads, shared) = (shapes::GEMM_FLAT_THREADS, shapes::GEMM_FLAT_SHARED);
        return (kernel, Shape { grid: tiles, threads, shared });
    }
    let kernel = match (element, to_float) {
        (_, true) => named!(element, "gemm_", "_float"),
        (Element::F16, false) => "gemm_f16_f16",
        (_, false) => "gemm_bf16_bf16",
    };
    let tiles = [m.div_ceil(shapes::GEMM_ROWS), n.div_ceil(shapes::GEMM_COLUMNS), 1];
    (kernel, Shape { grid: tiles, threads: shapes::GEMM_THREADS, shared: shapes::GEMM_SHARED })
}
