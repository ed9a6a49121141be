//! What `make gpu-check` does on a device; tests/cuda runs the same, small, on the simulated one.
#![allow(dead_code)]

pub mod bench;
pub mod host;
pub mod operations;
pub mod processes;
