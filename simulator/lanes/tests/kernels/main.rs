//! Runs every kernel in the simulator, in both orders of lanes, and compares it with plain arithmetic in f64.

mod activation;
mod attention_common;
mod attention_decode;
mod attention_prefill;
mod common;
mod embed;
mod embedded;
mod geometry;
mod kv;
mod matmul;
mod norm;
mod rope;
mod sampling;
