//! The C API: one file per section of `include/cleave/cleave.h`, which is generated from them. Conversions only.
//!
//! Four files are not sections: [`boundary`] (panics, pointers, errors, buffers), [`versioned`] (structs that grow),
//! [`registry`] (the object behind a handle) and [`openmetrics`] (the text of the metrics).
//!
//! Every `unsafe` block in here rests on the contract that the header states: a pointer is NULL, or valid and aligned for
//! the size that goes with it, for the whole call. Handles are looked up, never dereferenced. Nothing in here knows how
//! requests are run or KV is stored.
#![allow(non_camel_case_types, clippy::missing_safety_doc)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("cleave hands out 64-bit handles in pointers: 32-bit targets are not supported");

mod boundary;
mod openmetrics;
mod registry;
mod versioned;

pub mod cache;
pub mod cache_event;
pub mod device;
pub mod engine;
pub mod error;
pub mod event;
pub mod handle;
pub mod insight;
pub mod kv;
pub mod log;
pub mod model;
pub mod peer;
pub mod queue;
pub mod request;
pub mod text;
pub mod version;

#[cfg(test)]
mod tests;
