//! The CUDA backend as it is, on a simulated driver (simulator/driver) that runs the kernels' sources on the CPU, and a
//! simulated cuBLASLt (simulator/blas): load, prefill, handoff, decode. The CPU backend says what has to come out.

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
