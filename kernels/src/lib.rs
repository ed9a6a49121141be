//! The kernels of cleave's CUDA backend. Their sources are the `.cu` files beside this crate's manifest: thin entry points
//! over the templates in `include/`, by topic.

#[cfg(feature = "simulator")]
pub mod simulator;
