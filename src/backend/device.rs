//! A device as the engine uses it: it makes the KV pool of a cache, places weights, and gives each engine a backend.

use super::{Backend, ComputeShare, KvGeometry, Progress, WeightLoader, WeightsRequest};
use crate::error::Result;
use crate::tensor::Dtype;

/// The device ordinal of the CPU. Accelerators have ordinals from 0 on.
pub const DEVICE_CPU: i32 = -1;

/// Description of an accelerator.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// The vendor's name for the model.
    pub name: String,
    /// Unique identifier, as the vendor's tools write it ("GPU-...").
    pub uuid: String,
    /// Instruction set of the device: major * 10 + minor.
    pub compute_capability: u32,
    /// Nearest NUMA node.
    pub numa_node: u32,
    /// Size of its memory in bytes.
    pub total_bytes: u64,
    /// Unused bytes of its memory.
    pub free_bytes: u64,
}

/// Properties of a model that a backend needs before its first step.
pub struct ModelShape {
    /// Type of activations between the matrix products, where the device has a choice.
    pub activations: Dtype,
    /// Query heads.
    pub heads: u32,
    /// Sliding window of each layer.
    pub windows: Vec<Option<u32>>,
}

/// Where on a device an engine computes.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    /// Threads on the CPU; 0: one per CPU of `cpus`, or of the process.
    pub threads: usize,
    /// CPUs that the threads are bound to; empty: not bound.
    pub cpus: Vec<usize>,
    /// Share of the device's multiprocessors in percent; 0: all.
    pub sm_percent: u32,
}

/// One device of a kind that this library supports.
pub trait BackendDevice: Send + Sync + 'static {
    /// The operations on this kind of device.
    type Backend: Backend;

    /// Ordinal of the device.
    fn ordinal(&self) -> i32;

    /// Gets ready for KV of this layout. UNSUPPORTED if there are no kernels for it.
    fn prepare(&self, geometry: &KvGeometry) -> Result<()>;

    /// Allocates a KV pool; `shared`: so that other processes can map it, where the device supports that.
    fn pool(&self, geometry: KvGeometry, n_blocks: usize, shared: bool) -> Result<<Self::Backend as Backend>::Kv>;

    /// Bytes that the weights take on this device.
    fn weight_bytes(&self, request: &WeightsRequest<'_>) -> u64;

    /// Places weights: calls `build` with a loader, and waits until all that it placed is there. May call it again with
    /// another loader if the first attempt came to nothing.
    fn load<W>(
        &self,
        request: &WeightsRequest<'_>,
        progress: &mut Progress<'_>,
        build: impl Fn(&mut dyn WeightLoader<Self::Backend>) -> Result<W>,
    ) -> Result<W>;

    /// A backend for one engine, on all of the device's multiprocessors.
    fn backend(
        &self,
        model: &ModelShape,
        place: &Placement,
        kv: &<Self::Backend as Backend>::Kv,
    ) -> Result<Self::Backend>;

    /// A share of `percent` of the device's multiprocessors (0: all), for an engine that gives up the share `leaving`.
    /// UNSUPPORTED where the device has none to share out.
    fn compute_share(&self, percent: u32, leaving: u32) -> Result<ComputeShare>;

    /// True where the rate of prefill depends on a step's length enough to be worth measuring.
    fn measures_prefill(&self) -> bool;

    /// Names the instruction set or library that multiplies matrices for activations of this type, for logs and metrics.
    fn product_path(&self, activations: Dtype) -> Result<&'static str>;
}

/// Code that is generic over the kind of device; see [`super::devices::open`].
pub trait DeviceVisitor {
    /// Result of the visit.
    type Output;
    /// Runs with the device.
    fn visit<D: BackendDevice>(self, device: D) -> Result<Self::Output>;
}
