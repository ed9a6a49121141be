//! Products of many rows through cuBLASLt, where there is one.
//!
//! cuBLASLt knows matrices by columns: our y[m, n] = x[m, k] · w[n, k]ᵀ, by rows, is its yᵀ[n, m] = op(w)[n, k] · xᵀ[k, m],
//! with w transposed. Sums are f32, also those of pieces of k.
//!
//! A row's result depends on no other row's values, but cuBLASLt takes another algorithm for another number of rows, and
//! algorithms add in different orders: the bits of a row may differ with the size of the batch that it is in. The same
//! batch on the same device gives the same bits.

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

/// As much as cuBLASLt is advised to have on newer devices.
const WORKSPACE: usize = 32 << 20;

/// What cuBLASLt takes for granted of addresses, unless it is told otherwise.
const ALIGN: u64 = 256;

/// What an algorithm is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    /// From row to row of x. Those of w and y have nothing between them.
    pub x_stride: u32,
    /// Of x and w: F16 or BF16.
    pub element: Element,
    /// y is f32, otherwise as x and w.
    pub to_float: bool,
    /// One is added, of y's type.
    pub bias: bool,
}

/// Where the matrices are, and the bias if there is one.
pub(super) struct Matrices {
    pub x: u64,
    pub w: u64,
    pub y: u64,
    pub bias: u64,
}

/// Whether it says that it has no kernel for what it was asked, and has done nothing. Versions differ in how they say that of
/// types, biases and strides that they do not combine, and of devices that are newer than they are.
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
    /// The device's.
    handle: sys::cublasLtHandle_t,
    operation: Operation,
    with_bias: Operation,
    preference: Preference,
    /// Stays where it is: recorded steps use it.
    workspace: Option<Allocation>,
    /// None: cuBLASLt has no algorithm.
    plans: HashMap<Product, Option<Plan>>,
}

// SAFETY: the library's functions may be called from any thread.
unsafe impl Send for Blas {}

impl Blas {
    /// Prompts have many numbers of rows; who sees more products than this begins anew.
    const MOST: usize = 4096;

    /// Whether products of many rows of this type go through cuBLASLt. Those of f32 do not: they would gain nothing without
    /// rounding to TF32.
    pub fn multiplies(device: &Device, element: Element) -> Result<bool> {
        Ok(element != Element::F32 && device.blas()?.is_some())
    }

    /// None where products of this type go without cuBLASLt.
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

    /// Has algorithms chosen for so many of the device's multiprocessors, or for all.
    pub fn set_multiprocessors(&mut self, multiprocessors: Option<u32>) -> Result<()> {
        self.plans.clear();
        self.operation.aim_at(multiprocessors.unwrap_or(0))?;
        self.with_bias.aim_at(multiprocessors.unwrap_or(0))
    }

    /// Makes room for what algorithms leave between their kernels. True if it moved.
    pub fn make_room(&mut self) -> Result<bool> {
        let moves = self.workspace.is_none();
        if moves {
            self.workspace = Some(Allocation::new(&self.device, WORKSPACE)?);
        }
        Ok(moves)
    }

    /// y = x · wᵀ + bias, or y += x · wᵀ + bias; false if cuBLASLt cannot, and nothing was done. A step is recorded only after one of
    /// its shape has run, so its algorithms are known then, and their kernels loaded.
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
