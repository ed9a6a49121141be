//! Every kernel in the simulator against plain arithmetic in f64, in both orders of lanes.

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
