//! cuBLASLt: loading it at run time, and owners for the objects that describe products and matrices to it.

use super::{driver, wheels};
use crate::error::{Error, Result, Status};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue,
    cublasLtMatmulDescAttributes_t as OperationAttribute, cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute,
    cublasLtReductionScheme_t as Reduction, cublasStatus_t as BlasStatus, cudaDataType_t as DataType,
};
use std::path::PathBuf;
use std::sync::OnceLock;

/// Oldest usable version: that of CUDA 12.0.
const OLDEST: usize = 120_000;

/// The value of CUBLAS_OP_T.
const TRANSPOSED: i32 = 1;

/// The functions that are called here, checked before use: cudarc panics where one is missing.
const USED: &[&str] = &[
    "cublasLtGetVersion",
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmul",
];

/// File names of cuBLASLt in wheels, newest first.
const IN_WHEELS: &[&str] = &["libcublasLt.so.13", "libcublasLt.so.12"];

/// Whether there is a cuBLASLt to use. Decided once per process, for good or ill: sums are added in another order with it,
/// so engines of one process must agree. What is in the way is logged.
fn usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| {
        let found = crate::panics::catch(find).unwrap_or_else(|error| Err(error.to_string()));
        if let Err(why) = &found {
            crate::log!(Warn, "cuda", "{why}: products of many rows use this library's own kernels, which are slower");
        }
        found.is_ok()
    })
}

/// Loads cuBLASLt and checks it; otherwise says what was tried.
fn find() -> std::result::Result<(), String> {
    // SAFETY: loads a library by its well-known name, which is made to be loaded so.
    let present = || unsafe { sys::is_culib_present() };
    if !present() {
        let folders = wheels::folders();
        let loads = |folder: &PathBuf| IN_WHEELS.iter().any(|library| wheels::load(folder, library));
        if !folders.iter().any(loads) || !present() {
            let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
            let tried = if folders.is_empty() { "no Python wheel of it".to_string() } else { folders.join(", ") };
            return Err(format!("cuBLASLt was not found (tried libcublasLt.so, .so.13, .so.12 by name; {tried})"));
        }
    }
    if let Some(name) = USED.iter().find(|name| !has(name)) {
        return Err(format!("cuBLASLt has no function {name}"));
    }
    if has("simulated_cublaslt_configure") != driver::has("simulated_cuda_configure") {
        return Err("cuBLASLt and the driver are not both simulated or both real".to_string());
    }
    // SAFETY: takes nothing.
    match unsafe { sys::cublasLtGetVersion() } {
        version if version < OLDEST => Err(format!("cuBLASLt {version} is too old: expected {OLDEST} or newer")),
        version => {
            crate::log!(Info, "cuda", "cuBLASLt {version} multiplies matrices of many rows");
            Ok(())
        }
    }
}

/// True if the loaded library has a function of that name.
fn has(name: &str) -> bool {
    let Ok(name) = std::ffi::CString::new(name) else { return false };
    // SAFETY: the symbol is looked up, not called.
    unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes_with_nul()).is_ok() }
}

pub(super) fn check(status: BlasStatus, doing: &str) -> Result<()> {
    let kind = match status {
        BlasStatus::CUBLAS_STATUS_SUCCESS => return Ok(()),
        BlasStatus::CUBLAS_STATUS_ALLOC_FAILED => Status::OutOfMemory,
        BlasStatus::CUBLAS_STATUS_NOT_SUPPORTED | BlasStatus::CUBLAS_STATUS_ARCH_MISMATCH => Status::Unsupported,
        _ => Status::Device,
    };
    Err(Error::new(kind, format!("cannot {doing}: {status:?}")))
}

/// Defines the owner of an object that one function of the library creates and another destroys.
macro_rules! owner {
    ($name:ident, $raw:ident, $destroy:ident) => {
        pub(super) struct $name(sys::$raw);

        impl $name {
            pub fn raw(&self) -> sys::$raw {
                self.0
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: made by the library, given back once.
                unsafe { sys::$destroy(self.0) };
            }
        }

        // SAFETY: the library's functions may be called from any thread.
        unsafe impl Send for $name {}
    };
}

owner!(Handle, cublasLtHandle_t, cublasLtDestroy);
owner!(Operation, cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy);
owner!(Layout, cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy);
owner!(Preference, cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy);

impl Handle {
    /// A handle for the calling thread's current device. None if cuBLASLt is missing or does not fit the driver or device.
    pub fn new() -> Result<Option<Handle>> {
        if !usable() {
            return Ok(None);
        }
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle.
        match unsafe { sys::cublasLtCreate(&mut raw) } {
            BlasStatus::CUBLAS_STATUS_NOT_INITIALIZED
            | BlasStatus::CUBLAS_STATUS_NOT_SUPPORTED
            | BlasStatus::CUBLAS_STATUS_ARCH_MISMATCH => {
                crate::log!(
                    Warn,
                    "cuda",
                    "cuBLASLt does not work with this device or driver: its products use slower kernels"
                );
                return Ok(None);
            }
            status => check(status, "begin to use cuBLASLt")?,
        }
        Ok(Some(Handle(raw)))
    }
}

impl Operation {
    /// Describes op(w) · xᵀ with sums in f32 and factors in host memory; `bias` adds one of y's type.
    pub fn new(bias: bool) -> Result<Operation> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle.
        let made =
            unsafe { sys::cublasLtMatmulDescCreate(&mut raw, Compute::CUBLAS_COMPUTE_32F, DataType::CUDA_R_32F) };
        check(made, "describe a product")?;
        let mut operation = Operation(raw);
        operation.set(OperationAttribute::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        if bias {
            let epilogue = Epilogue::CUBLASLT_EPILOGUE_BIAS as u32;
            operation.set(OperationAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
        }
        Ok(operation)
    }

    /// Sets the address of the bias for the following products.
    pub fn set_bias(&mut self, address: u64) -> Result<()> {
        self.set(OperationAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, address)
    }

    /// Sets an attribute, whose type must be `T`.
    fn set<T: Copy>(&mut self, which: OperationAttribute, value: T) -> Result<()> {
        let from = (&raw const value).cast();
        // SAFETY: reads a value of this size.
        check(unsafe { sys::cublasLtMatmulDescSetAttribute(self.0, which, from, size_of::<T>()) }, "describe a product")
    }

    /// Advises cuBLASLt to choose algorithms for so many multiprocessors (0: all). Versions that do not know the attribute
    /// go without.
    pub fn aim_at(&self, multiprocessors: u32) -> Result<()> {
        let (which, value) = (OperationAttribute::CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, multiprocessors as i32);
        // SAFETY: reads one int.
        let set = unsafe { sys::cublasLtMatmulDescSetAttribute(self.0, which, (&raw const value).cast(), 4) };
        match set {
            BlasStatus::CUBLAS_STATUS_NOT_SUPPORTED | BlasStatus::CUBLAS_STATUS_INVALID_VALUE => Ok(()),
            set => check(set, "describe a product"),
        }
    }
}

impl Layout {
    /// Describes a matrix by columns that begin `stride` elements apart.
    pub fn new(kind: DataType, rows: u32, columns: u32, stride: u32) -> Result<Layout> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle.
        let made =
            unsafe { sys::cublasLtMatrixLayoutCreate(&mut raw, kind, rows.into(), columns.into(), stride.into()) };
        check(made, "describe a matrix")?;
        Ok(Layout(raw))
    }
}

impl Preference {
    /// Accepts algorithms that need at most so many bytes of workspace.
    pub fn new(workspace: usize) -> Result<Preference> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle.
        check(unsafe { sys::cublasLtMatmulPreferenceCreate(&mut raw) }, "describe what a product may use")?;
        let preference = Preference(raw);
        // A product in pieces of k adds them in f32, which others than this one (and no pieces) do not.
        let reduction = Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        // SAFETY: read a size and an unsigned int.
        unsafe {
            let which = PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let bytes = (&raw const workspace).cast();
            let set = sys::cublasLtMatmulPreferenceSetAttribute(raw, which, bytes, size_of::<usize>());
            check(set, "describe what a product may use")?;
            let which = PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
            let set = sys::cublasLtMatmulPreferenceSetAttribute(raw, which, (&raw const reduction).cast(), 4);
            check(set, "describe what a product may use")?;
        }
        Ok(preference)
    }
}
