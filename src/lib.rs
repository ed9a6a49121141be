//! cleave: disaggregated LLM inference as an embeddable library.
//!
//! Hosts use the C API (`include/cleave/cleave.h`), which [`ffi`] implements. The other modules are public so that tests and
//! benches can reach them; they make no promise of stability. ARCHITECTURE.md draws the order of dependencies:
//! `ffi → engine → {scheduler, sampling, transport, model} → kv → backend → tensor`, with [`mod@error`] and [`sequence`]
//! (plain data) below all of them.
#![deny(unsafe_code)]
#![warn(missing_docs)]
#![warn(clippy::undocumented_unsafe_blocks)]

pub mod backend;
pub mod engine;
pub mod error;
pub mod failpoint;
#[allow(unsafe_code)]
pub mod ffi;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod kv;
pub mod log;
pub mod model;
pub mod panics;
pub mod sampling;
pub mod scheduler;
pub mod sequence;
mod sync;
#[allow(unsafe_code)]
pub mod sys;
pub mod tensor;
pub mod transport;
