//! cuBLASLt for machines without a GPU, as a shared library `libcublasLt.so` for tests. It offers the functions that
//! cleave calls, with their C ABI. A product launches one of cleave's kernels on the given stream of simulator/driver,
//! so it runs, is captured and is replayed like any other work there.
//!
//! It is stricter than cuBLASLt. An algorithm is valid only for the product for which it was found, matrices must have
//! the promised alignment, and every product writes to its workspace. `control.rs` has the settings and counters for
//! tests.

#![cfg(target_os = "linux")]
#![allow(non_snake_case)] // the library's name

mod api;
mod control;
mod driver;
mod product;
mod state;

/// A cublasStatus_t that is not CUBLAS_STATUS_SUCCESS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Error(pub i32);

pub(crate) type Result<T> = std::result::Result<T, Error>;

pub(crate) const NOT_INITIALIZED: Error = Error(1);
pub(crate) const ALLOC_FAILED: Error = Error(3);
pub(crate) const INVALID_VALUE: Error = Error(7);
pub(crate) const EXECUTION_FAILED: Error = Error(13);
pub(crate) const INTERNAL_ERROR: Error = Error(14);
pub(crate) const NOT_SUPPORTED: Error = Error(15);
