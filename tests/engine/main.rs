//! Engines, through the library's Rust types and through its C API. The tests run side by side in one process: what arms
//! failpoints is in engine_faults.rs, and what measures the process in engine_costs.rs.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/face.rs"]
mod face;
#[path = "../model_support/mod.rs"]
mod model_support;

mod convert;
mod edges;
mod equality;
mod faces;
mod fairness;
mod forged;
mod imports;
mod lifecycle;
mod models;
mod shutdown;
