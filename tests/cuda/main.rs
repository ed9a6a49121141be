//! Tests of the unmodified CUDA backend on a simulated driver (simulator/driver), which runs the kernels' sources on
//! the CPU, and a simulated cuBLASLt (simulator/blas): load, prefill, handoff, decode. The CPU backend gives the
//! expected results.

mod blas;
#[path = "../common/mod.rs"]
mod common;
mod device;
mod drivers;
mod generation;
mod handoff;
mod models;
mod operations;
mod partition;
mod peers;
mod progress;
mod roles;
mod saturation;
#[path = "../../benches/gpu/tool/mod.rs"]
mod tool;
