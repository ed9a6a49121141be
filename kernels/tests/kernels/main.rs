//! Every kernel in the simulator against plain arithmetic in f64, in both orders of lanes.

mod activation;
mod common;
mod matmul;
mod sampling;
