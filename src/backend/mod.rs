//! Devices: memory for KV blocks, weights where a kernel wants them, and the fused operations of one decoder
//! step. Model code is written once over [`Backend`]; [`cpu`] and [`cuda`] implement it, and the CPU's portable
//! form is the oracle of every kernel test.
//!
//! **The rule of every kernel:** a row's result never depends on the other rows of the batch, on how a prompt
//! was cut into chunks or on thread counts. Reductions have one fixed order per element whatever the batch is.

mod batch;
mod block_store;
mod compute_share;
#[allow(unsafe_code)]
pub mod cpu;
#[allow(unsafe_code)]
pub mod cuda;
mod device;
mod device_memory;
mod device_sampling;
pub mod devices;
mod geometry;
pub(crate) mod int8;
mod operations;
pub mod weights;

pub use batch::{AttentionArgs, Batch, RopeRows, SeqSpan};
pub use block_store::{BlockStore, PoolExport};
pub use compute_share::ComputeShare;
pub use device::{BackendDevice, DeviceVisitor, ModelShape, Placement};
pub use device_memory::{DeviceMemory, ForeignBlocks};
pub use device_sampling::{DeviceSample, DeviceSamplingBatch, DeviceSamplingRow};
pub use geometry::{BlockId, KvGeometry};
pub use operations::{Backend, Linear};
pub use weights::{LinearSource, MatrixSource, TensorSource, WeightLoader, WeightsRequest};

use crate::error::Result;

/// Told how many bytes of weights have been loaded, and how many there are. What it returns ends the loading, if that is an
/// error.
pub type Progress<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;
