//! The checks of `make gpu-check`. tests/cuda runs smaller ones on the simulated device.
#![allow(dead_code)]

pub mod bench;
pub mod host;
pub mod operations;
pub mod processes;
