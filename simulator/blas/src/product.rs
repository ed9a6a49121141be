//! Matrix products: which ones are supported, and how each maps to a kernel.

use crate::driver::Module;
use crate::*;
use std::ffi::{CStr, c_void};

/// Values of cudaDataType_t.
const F32: i32 = 0;
const F16: i32 = 2;
const BF16: i32 = 14;
/// CUBLAS_COMPUTE_32F
const COMPUTE_32F: i32 = 68;

/// Size of the workspace that every product requires.
const WORKSPACE: usize = 64 << 10;

/// Alignment in bytes that cuBLASLt assumes.
const ALIGN: u64 = 256;

/// First word of this library's algorithms, which marks them as its own.
const MAGIC: u64 = 0x6c62_7375_6c74_616c;

#[derive(Clone, Copy)]
pub struct Operation {
    pub compute: i32,
    pub scale: i32,
    /// Type of A and B.
    pub transposed: [bool; 2],
    pub epilogue: Epilogue,
    /// Address of a vector of D's type, with one element per row of D.
    pub bias: u64,
}

/// Epilogues of a product, as in cublasLtEpilogue_t.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    None = 1,
    /// Adds the bias to each column.
    Bias = 4,
}

impl Epilogue {
    pub fn of(value: u32) -> Result<Epilogue> {
        match value {
            1 => Ok(Epilogue::None),
            4 => Ok(Epilogue::Bias),
            _ => Err(NOT_SUPPORTED),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub kind: i32,
    pub rows: u64,
    pub columns: u64,
    pub stride: i64,
}

impl Layout {
    /// Checks that the layout is not empty and that its columns do not overlap.
    fn check(&self) -> Result<()> {
        let fits = self.rows > 0 && self.columns > 0 && u64::try_from(self.stride).is_ok_and(|ld| ld >= self.rows);
        if fits { Ok(()) } else { Err(INVALID_VALUE) }
    }
}

/// D = op(A) · op(B) + beta · C, plus the bias.
#[derive(Clone, Copy)]
pub struct Product {
    pub operation: Operation,
    pub a: Layout,
    pub b: Layout,
    pub c: Layout,
    pub d: Layout,
}

/// cublasLtMatmulAlgo_t
pub type Algorithm = [u64; 8];

impl Product {
    /// Returns the words for cublasLtMatmulAlgo_t and the workspace size. Fails with NOT_SUPPORTED if there is no
    /// kernel for the product, and with INVALID_VALUE if its shapes do not match.
    pub fn algorithm(&self) -> Result<(Algorithm, usize)> {
        let Product { operation, a, b, c, d } = self;
        [a, b, c, d].iter().try_for_each(|layout| layout.check())?;
        let turned = |layout: &Layout, turn| match turn {
            true => (layout.columns, layout.rows),
            false => (layout.rows, layout.columns),
        };
        let (left, right) = (turned(a, operation.transposed[0]), turned(b, operation.transposed[1]));
        if left.1 != right.0 || (d.rows, d.columns) != (left.0, right.1) || (c.rows, c.columns) != (d.rows, d.columns) {
            return Err(INVALID_VALUE);
        }
        let known = operation.compute == COMPUTE_32F
            && operation.scale == F32
            && operation.transposed == [true, false]
            && [F16, BF16].contains(&a.kind)
            && b.kind == a.kind
            && [F32, a.kind].contains(&d.kind)
            && c == d
            // cleave's kernels need a dense W and rows that are aligned to 16 bytes.
            && a.stride as u64 == a.rows
            && a.stride % 8 == 0
            && b.stride % 8 == 0
            && [a.rows, a.columns, b.columns, b.stride as u64, d.stride as u64].iter().all(|n| *n <= u32::MAX.into());
        if !known {
            return Err(NOT_SUPPORTED);
        }
        let kinds = (a.kind as u64) << 32 | d.kind as u64;
        let epilogue = operation.epilogue as u64;
        let algorithm = [MAGIC, a.rows, a.columns, b.columns, b.stride as u64, d.stride as u64, kinds, epilogue];
        Ok((algorithm, WORKSPACE + if self.widens() { d.rows as usize * 4 } else { 0 }))
    }

    /// Returns true if there is a bias that must be converted to floats first.
    fn widens(&self) -> bool {
        self.operation.epilogue == Epilogue::Bias && self.d.kind != F32
    }
}

/// Addresses of a product's matrices, its scalars and its workspace.
pub struct Place {
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub d: u64,
    pub alpha: f32,
    pub beta: f32,
    pub workspace: u64,
    pub workspace_bytes: usize,
}

/// Submits the product to a stream.
pub fn run(module: &Module, product: &Product, algorithm: Option<&Algorithm>, at: &Place, stream: usize) -> Result<()> {
    let (own, wants) = product.algorithm()?;
    if algorithm.is_some_and(|algorithm| *algorithm != own) {
        return Err(INVALID_VALUE);
    }
    if at.alpha != 1.0 || ![0.0, 1.0].contains(&at.beta) || (at.beta != 0.0 && at.c != at.d) {
        return Err(NOT_SUPPORTED);
    }
    let aligned = [at.a, at.b, at.c, at.d, at.workspace].iter().all(|at| *at != 0 && at.is_multiple_of(ALIGN));
    if !aligned || at.workspace_bytes < wants {
        return Err(INVALID_VALUE);
    }
    let mut bias = match product.operation.epilogue {
        Epilogue::None => 0,
        Epilogue::Bias => product.operation.bias,
    };
    if product.operation.epilogue == Epilogue::Bias && (bias == 0 || !bias.is_multiple_of(16)) {
        return Err(INVALID_VALUE);
    }
    module.clear(at.workspace, wants, stream)?;
    if product.widens() {
        let floats = at.workspace + WORKSPACE as u64;
        widen(module, product, bias, at.workspace, floats, stream)?;
        bias = floats;
    }
    let (to_float, half) = (product.d.kind == F32, product.a.kind == F16);
    let kernel: &CStr = match (half, to_float) {
        (true, true) => c"gemm_flat_f16_float",
        (true, false) => c"gemm_flat_f16_f16",
        (false, true) => c"gemm_flat_bf16_float",
        (false, false) => c"gemm_flat_bf16_bf16",
    };
    // In row-major terms this is D[m, n] = B[m, k] · A[n, k]ᵀ.
    let (mut m, mut n, mut k) = (product.d.columns as u32, product.d.rows as u32, product.a.rows as u32);
    let (mut d_stride, mut b_stride) = (product.d.stride as u32, product.b.stride as u32);
    let (mut a, mut b, mut d, mut accumulate) = (at.a, at.b, at.d, u32::from(at.beta != 0.0));
    let mut arguments: [*mut c_void; 10] = [
        (&raw mut d).cast(),
        (&raw mut d_stride).cast(),
        (&raw mut b).cast(),
        (&raw mut b_stride).cast(),
        (&raw mut a).cast(),
        (&raw mut bias).cast(),
        (&raw mut m).cast(),
        (&raw mut n).cast(),
        (&raw mut k).cast(),
        (&raw mut accumulate).cast(),
    ];
    let grid = [m.div_ceil(64), n.div_ceil(32)];
    // SAFETY: the arguments match kernels/gemm.cu.
    unsafe { module.launch(kernel, grid, 128, 73728, stream, &mut arguments) }
}

/// Submits the conversion of a bias to floats. It is an embedding lookup with the bias as row 0; the token at `zero`
/// selects that row.
fn widen(module: &Module, product: &Product, bias: u64, zero: u64, floats: u64, stream: usize) -> Result<()> {
    let kernel: &CStr = if product.d.kind == F16 { c"embed_f16" } else { c"embed_bf16" };
    let (mut bias, mut zero, mut floats, mut rows, mut columns) = (bias, zero, floats, 1u32, product.d.rows as u32);
    let mut arguments: [*mut c_void; 5] = [
        (&raw mut bias).cast(),
        (&raw mut zero).cast(),
        (&raw mut floats).cast(),
        (&raw mut rows).cast(),
        (&raw mut columns).cast(),
    ];
    // SAFETY: the arguments match kernels/embed.cu.
    unsafe { module.launch(kernel, [1, 1], 128, 0, stream, &mut arguments) }
}
