//! cuBLASLt for machines without a GPU, as a shared library `libcublasLt.so` for tests: the functions that cleave calls,
//! with their C ABI. A product is a kernel of cleave's in the stream that it is given, on the driver of kernels/driver, so
//! it runs, is captured and replayed as all else there.
//!
//! It is stricter than cuBLASLt: an algorithm is good for the very product that it was found for, matrices have to be
//! aligned as was promised, and the workspace is written to. See `control.rs` for what tests can set and ask.

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
