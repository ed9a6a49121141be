//! Where a cache lies: the weights and the KV pool of one device, and engines' executors there.

use crate::backend::cpu::{CpuBackend, CpuConfig, KvSlab};
use crate::backend::cuda::{CudaBackend, CudaSlab, Device};
use crate::backend::{BlockStore, KvGeometry};
use crate::error::Result;
use crate::model::Model;
use crate::model::decoder::{Decoder, Executor};
use crate::model::weights::Weights;
use std::sync::Arc;

/// The device ordinal of the CPU.
pub const DEVICE_CPU: i32 = -1;

/// One device's weights and KV pool.
pub(super) trait Home: Send + Sync {
    fn store(&self) -> Arc<dyn BlockStore>;
    /// Where prefill is measured to choose its steps: the device's ordinal. On the CPU a step's rate hardly depends on its
    /// length, and measuring would take long.
    fn measured(&self) -> Option<i32> {
        None
    }
    /// `threads` and `cpus` are for computing on the CPU.
    fn executor(&self, model: &Arc<Model>, threads: usize, cpus: Vec<usize>) -> Result<Box<dyn Executor>>;
}

/// `shared`: other processes can be given the pool to read, where it is host memory.
pub(super) fn make(
    model: &Arc<Model>,
    device: i32,
    geometry: KvGeometry,
    n_blocks: usize,
    shared: bool,
) -> Result<Box<dyn Home>> {
    if device == DEVICE_CPU {
        let slab = if shared { KvSlab::shared(geometry, n_blocks) } else { KvSlab::new(geometry, n_blocks) };
        return Ok(Box::new(Cpu { slab: Arc::new(slab?), weights: model.cpu_weights()? }));
    }
    let device = Device::open(device)?;
    CudaBackend::check(&geometry)?;
    device.load_kernels()?;
    // The pool first: whether it fits is known at once, the weights take their time.
    let slab = Arc::new(CudaSlab::new(&device, geometry, n_blocks)?);
    Ok(Box::new(Cuda { slab, weights: model.cuda_weights(&device)?, device }))
}

struct Cpu {
    weights: Arc<Weights<CpuBackend>>,
    slab: Arc<KvSlab>,
}

impl Home for Cpu {
    fn store(&self) -> Arc<dyn BlockStore> {
        self.slab.clone()
    }

    fn executor(&self, model: &Arc<Model>, threads: usize, cpus: Vec<usize>) -> Result<Box<dyn Executor>> {
        let cpus = (!cpus.is_empty()).then_some(cpus);
        let backend = CpuBackend::new(CpuConfig { threads, cpus, level: None })?;
        Ok(Box::new(Decoder::new(model.clone(), self.weights.clone(), backend, self.slab.clone())?))
    }
}

struct Cuda {
    weights: Arc<Weights<CudaBackend>>,
    slab: Arc<CudaSlab>,
    device: Arc<Device>,
}

impl Home for Cuda {
    fn store(&self) -> Arc<dyn BlockStore> {
        self.slab.clone()
    }

    fn measured(&self) -> Option<i32> {
        Some(self.device.ordinal())
    }

    fn executor(&self, model: &Arc<Model>, _threads: usize, _cpus: Vec<usize>) -> Result<Box<dyn Executor>> {
        let config = model.config();
        let windows = config.layers.iter().map(|layer| layer.window);
        let backend = CudaBackend::new(&self.device, model.info().weight_dtype, config.heads, windows, &self.slab)?;
        Ok(Box::new(Decoder::new(model.clone(), self.weights.clone(), backend, self.slab.clone())?))
    }
}
