//! The kernels of cleave's CUDA backend. Their sources are the `.cu` files beside this crate's manifest: thin entry points
//! over the templates in `include/`, by topic.

/// Placeholder until nvcc's output is embedded.
pub const FATBINS: &[(&str, &[u8])] = &[];

#[cfg(feature = "simulator")]
pub mod simulator;
