//! Products of many rows through cuBLASLt.
//!
//! cuBLASLt stores matrices by columns: y[m, n] = x[m, k] · w[n, k]ᵀ by rows is yᵀ[n, m] = op(w)[n, k] · xᵀ[k, m] with w
//! transposed. Sums are f32, also those over pieces of k.
//!
//! A row's result does not depend on the values of other rows. But cuBLASLt chooses an algorithm by the number of rows, and
//! algorithms add in different orders, so the bits of a row may change with the size of its batch. The same batch on the
//! same device gives the same bits.

use super::cublaslt::{Layout, Operation, Preference, check};
use super::device::Device;
use super::layout::Element;
use super::memory::Allocation;
use super::stream::Stream;
use crate::bail;
use crate::error::Result;
use cudarc::cublaslt::sys::{self, cublasStatus_t as BlasStatus, cudaDataType_t as DataType};
use std::collections::HashMap;
use std::sync::Arc;

/// Workspace in bytes, as NVIDIA recommends for recent devices.
const WORKSPACE: usize = 32 << 20;

/// Alignment of addresses that cuBLASLt assumes by default.
const ALIGN: u64 = 256;

/// The shape and types of a product, by which algorithms are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    /// Distance of x's rows in elements; w and y are dense.
    pub x_stride: u32,
    /// Type of x and w: F16 or BF16.
    pub element: Element,
    /// True if y is f32 instead of the type of x and w.
    pub to_float: bool,
    /// True if a bias of y's type is added.
    pub bias: bool,
}

/// Addresses of the matrices, and of the bias if there is one.
pub(super) struct Matrices {
    pub x: u64,
    pub w: u64,
    pub y: u64,
    pub bias: u64,
}

/// True if a status means that cuBLASLt has no kernel for a request and has done nothing. Versions report that differently
/// for unsupported combinations of types, biases and strides, and for devices newer than themselves.
fn cannot(status: BlasStatus) -> bool {
    matches!(
        status,
        BlasStatus::CUBLAS_STATUS_NOT_SUPPORTED
            | BlasStatus::CUBLAS_STATUS_INVALID_VALUE
            | BlasStatus::CUBLAS_STATUS_ARCH_MISMATCH
    )
}

struct Plan {
    w: Layout,
    x: Layout,
    y: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// One engine's use of cuBLASLt.
pub(super) struct Blas {
    device: Arc<Device>,
    /// Owned by the device.
    handle: sys::cublasLtHandle_t,
    operation: Operation,
    with_bias: Operation,
    preference: Preference,
    /// Never moves: recorded steps use it.
    workspace: Option<Allocation>,
    /// None for products that cuBLASLt has no algorithm for.
    plans: HashMap<Product, Option<Plan>>,
}

// SAFETY: the library's functions may be called from any thread.
unsafe impl Send for Blas {}

impl Blas {
    /// Greatest number of remembered plans. Prompts come in many lengths; beyond this the table is cleared.
    const MOST: usize = 4096;

    /// Whether products of many rows of this type go through cuBLASLt. Those of f32 do not: they would gain nothing without
    /// rounding to TF32.
    pub fn multiplies(device: &Device, element: Element) -> Result<bool> {
        Ok(element != Element::F32 && device.blas()?.is_some())
    }

    /// None where products of this type do not go through cuBLASLt.
    pub fn new(device: &Arc<Device>, element: Element, multiprocessors: Option<u32>) -> Result<Option<Blas>> {
        if !Self::multiplies(device, element)? {
            return Ok(None);
        }
        let Some(handle) = device.blas()? else { return Ok(None) };
        let mut blas = Blas {
            device: device.clone(),
            handle,
            operation: Operation::new(false)?,
            with_bias: Operation::new(true)?,
            preference: Preference::new(WORKSPACE)?,
            workspace: None,
            plans: HashMap::new(),
        };
        blas.set_multiprocessors(multiprocessors)?;
        Ok(Some(blas))
    }

    /// Chooses algorithms for so many multiprocessors from now on; None: all of the device.
    pub fn set_multiprocessors(&mut self, multiprocessors: Option<u32>) -> Result<()> {
        self.plans.clear();
        self.operation.aim_at(multiprocessors.unwrap_or(0))?;
        self.with_bias.aim_at(multiprocessors.unwrap_or(0))
    }

    /// Allocates the workspace unless it is there. True if it moved.
    pub fn make_room(&mut self) -> Result<bool> {
        let moves = self.workspace.is_none();
        if moves {
            self.workspace = Some(Allocation::new(&self.device, WORKSPACE)?);
        }
        Ok(moves)
    }

    /// y = x · wᵀ + bias, or y += x · wᵀ + bias. False, having done nothing, if cuBLASLt cannot. A step is recorded only
    /// after one of its shape has run, so that by then algorithms are chosen and their kernels loaded.
    pub fn run(&mut self, stream: &Stream, product: &Product, at: &Matrices, accumulate: bool) -> Result<bool> {
        if [at.x, at.w, at.y, at.bias].iter().any(|address| !address.is_multiple_of(ALIGN)) {
            return Ok(false);
        }
        let Some(workspace) = &self.workspace else { bail!(Internal, "a product without room to work in") };
        let _current = self.device.enter()?;
        if product.bias {
            self.with_bias.set_bias(at.bias)?;
        }
        if !self.plans.contains_key(product) {
            if self.plans.len() >= Self::MOST {
                self.plans.clear();
            }
            let plan = self.plan(product)?;
            self.plans.insert(*product, plan);
        }
        let Some(Some(plan)) = self.plans.get(product) else { return Ok(false) };
        let (alpha, beta) = (1f32, if accumulate { 1f32 } else { 0.0 });
        // SAFETY: matrices of these layouts, on the device of the handle and the stream, which the caller keeps until the
        // stream was waited for; the factors are read during the call.
        let status = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                self.operation(product).raw(),
                (&raw const alpha).cast(),
                at.w as *const _,
                plan.w.raw(),
                at.x as *const _,
                plan.x.raw(),
                (&raw const beta).cast(),
                at.y as *const _,
                plan.y.raw(),
                at.y as *mut _,
                plan.y.raw(),
                &plan.algorithm,
                workspace.address() as *mut _,
                workspace.bytes(),
                stream.raw().cast(),
            )
        };
        let Product { m, n, k, .. } = product;
        if cannot(status) {
            crate::log!(Info, "cuda", "cuBLASLt does not multiply {m} x {k} by {k} x {n}: {status:?}");
            self.plans.insert(*product, None);
            return Ok(false);
        }
        check(status, &format!("multiply {m} x {k} by {k} x {n} with cuBLASLt"))?;
        Ok(true)
    }

    fn operation(&self, product: &Product) -> &Operation {
        if product.bias { &self.with_bias } else { &self.operation }
    }

    fn plan(&self, product: &Product) -> Result<Option<Plan>> {
        let Product { m, n, k, x_stride, element, to_float, .. } = *product;
        let kind = match element {
            Element::F16 => DataType::CUDA_R_16F,
            Element::Bf16 => DataType::CUDA_R_16BF,
            Element::F32 => return Ok(None),
        };
        let (w, x) = (Layout::new(kind, k, n, k)?, Layout::new(kind, k, m, x_stride)?);
        let y = Layout::new(if to_float { DataType::CUDA_R_32F } else { kind }, n, m, n)?;
        // SAFETY: numbers, of which 0 is one.
        let mut found: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: all live; writes one result at most, and their number.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                self.operation(product).raw(),
                w.raw(),
                x.raw(),
                y.raw(),
                y.raw(),
                self.preference.raw(),
                1,
                &mut found,
                &mut count,
            )
        };
        if cannot(status) {
            crate::log!(Info, "cuda", "cuBLASLt has no kernel for {m} x {k} by {k} x {n}: {status:?}");
            return Ok(None);
        }
        check(status, &format!("find how to multiply {m} x {k} by {k} x {n} with cuBLASLt"))?;
        let good = count > 0 && found.state == BlasStatus::CUBLAS_STATUS_SUCCESS && found.workspaceSize <= WORKSPACE;
        Ok(good.then_some(Plan { w, x, y, algorithm: found.algo }))
    }
}
