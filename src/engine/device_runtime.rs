//! Where a cache lies: the weights and the KV pool of one device, and engines' executors there.

use crate::backend::cpu::{CpuBackend, CpuConfig, KvSlab};
use crate::backend::cuda::{CudaBackend, CudaSlab, Device};
use crate::backend::devices::DEVICE_CPU;
use crate::backend::{Backend, BlockStore, ComputeShare, KvGeometry, Progress};
use crate::bail;
use crate::error::Result;
use crate::model::Model;
use crate::model::decoder::{Decoder, Executor};
use crate::model::weights::Weights;
use std::sync::Arc;

/// Where on a device an engine computes.
#[derive(Clone, Debug, Default)]
pub(super) struct Placement {
    /// On the CPU.
    pub threads: usize,
    pub cpus: Vec<usize>,
    /// Of a device's multiprocessors; 0: all.
    pub sm_percent: u32,
}

/// One device's weights and KV pool.
pub(super) trait DeviceRuntime: Send + Sync {
    fn store(&self) -> Arc<dyn BlockStore>;
    /// Where prefill is measured to choose its steps: the device's ordinal. On the CPU a step's rate hardly depends on its
    /// length, and measuring would take long.
    fn measured(&self) -> Option<i32> {
        None
    }
    fn executor(&self, model: &Arc<Model>, place: Placement) -> Result<Box<dyn Executor>>;
    /// ComputeShare on `percent` of the device's multiprocessors (0: all), for an engine that has `leaving` now.
    fn streams(&self, percent: u32, leaving: u32) -> Result<ComputeShare>;
}

/// What other processes can have of it, where its memory allows it.
#[derive(Clone, Copy)]
pub(super) struct Sharing {
    /// To read.
    pub pool: bool,
    /// And this one theirs.
    pub weights: bool,
}

/// `progress` is told of the weights.
pub(super) fn make(
    model: &Arc<Model>,
    device: i32,
    geometry: KvGeometry,
    n_blocks: usize,
    sharing: Sharing,
    progress: &mut Progress<'_>,
) -> Result<Box<dyn DeviceRuntime>> {
    if device == DEVICE_CPU {
        let slab = if sharing.pool { KvSlab::shared(geometry, n_blocks) } else { KvSlab::new(geometry, n_blocks) };
        let home = Cpu { slab: Arc::new(slab?), weights: model.cpu_weights()? };
        // They are where they are mapped: there is nothing to be waited for.
        let bytes = model.checkpoint().weight_bytes();
        progress(bytes, bytes)?;
        return Ok(Box::new(home));
    }
    let device = Device::open(device)?;
    CudaBackend::check(&geometry)?;
    device.load_kernels()?;
    // The pool first: whether it fits is known at once, the weights take their time.
    let make = if sharing.pool { CudaSlab::shared } else { CudaSlab::new };
    let slab = Arc::new(make(&device, geometry, n_blocks)?);
    Ok(Box::new(Cuda { slab, weights: model.cuda_weights(&device, sharing.weights, progress)?, device }))
}

struct Cpu {
    weights: Arc<Weights<CpuBackend>>,
    slab: Arc<KvSlab>,
}

impl DeviceRuntime for Cpu {
    fn store(&self) -> Arc<dyn BlockStore> {
        self.slab.clone()
    }

    fn executor(&self, model: &Arc<Model>, place: Placement) -> Result<Box<dyn Executor>> {
        if place.sm_percent > 0 {
            self.streams(place.sm_percent, 0)?;
        }
        let Placement { threads, cpus, .. } = place;
        let cpus = (!cpus.is_empty()).then_some(cpus);
        let backend = CpuBackend::new(CpuConfig { threads, cpus, level: None })?;
        Ok(Box::new(Decoder::new(model.clone(), self.weights.clone(), backend, self.slab.clone())?))
    }

    fn streams(&self, percent: u32, _leaving: u32) -> Result<ComputeShare> {
        bail!(
            Unsupported,
            "sm_percent {percent}: the CPU has no multiprocessors to share out, but threads and cpu_mask"
        )
    }
}

struct Cuda {
    weights: Arc<Weights<CudaBackend>>,
    slab: Arc<CudaSlab>,
    device: Arc<Device>,
}

impl DeviceRuntime for Cuda {
    fn store(&self) -> Arc<dyn BlockStore> {
        self.slab.clone()
    }

    fn measured(&self) -> Option<i32> {
        Some(self.device.ordinal())
    }

    fn executor(&self, model: &Arc<Model>, place: Placement) -> Result<Box<dyn Executor>> {
        let config = model.config();
        let windows = config.layers.iter().map(|layer| layer.window);
        let dtype = model.info().weight_dtype;
        let mut backend = CudaBackend::new(&self.device, dtype, config.heads, windows, &self.slab)?;
        if place.sm_percent > 0 {
            backend.set_compute_share(self.streams(place.sm_percent, 0)?)?;
        }
        Ok(Box::new(Decoder::new(model.clone(), self.weights.clone(), backend, self.slab.clone())?))
    }

    fn streams(&self, percent: u32, leaving: u32) -> Result<ComputeShare> {
        self.device.compute_share(percent, leaving)
    }
}
