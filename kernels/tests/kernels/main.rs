//! Every kernel in the simulator against plain arithmetic in f64, in both orders of lanes.

mod activation;
mod common;
mod embed;
mod embedded;
mod geometry;
mod kv;
mod norm;
mod rope;
