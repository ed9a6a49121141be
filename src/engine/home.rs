//! Where a cache lies: the weights and the KV pool of one device, and engines' executors there.

use crate::backend::cpu::{CpuBackend, CpuConfig, KvSlab};
use crate::backend::cuda::{CudaBackend, CudaSlab, Device};
use crate::backend::{BlockStore, KvGeometry, Progress};
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
    /// `threads` and `cpus` are for computing on the CPU.
    fn executor(&self, model: &Arc<Model>, threads: usize, cpus: Vec<usize>) -> Result<Box<dyn Executor>>;
}

/// `shared`: other processes can be given the pool to read, where its memory allows it. `progress` is told of the weights.
pub(super) fn make(
    model: &Arc<Model>,
    device: i32,
    geometry: KvGeometry,
    n_blocks: usize,
    shared: bool,
    progress: &mut Progress<'_>,
) -> Result<Box<dyn Home>> {
    if device == DEVICE_CPU {
        let slab = if shared { KvSlab::shared(geometry, n_blocks) } else { KvSlab::new(geometry, n_blocks) };
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
    let make = if shared { CudaSlab::shared } else { CudaSlab::new };
    let slab = Arc::new(make(&device, geometry, n_blocks)?);
    Ok(Box::new(Cuda { slab, weights: model.cuda_weights(&device, progress)?, device }))
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

    fn executor(&self, model: &Arc<Model>, _threads: usize, _cpus: Vec<usize>) -> Result<Box<dyn Executor>> {
        let config = model.config();
        let windows = config.layers.iter().map(|layer| layer.window);
        let backend = CudaBackend::new(&self.device, model.info().weight_dtype, config.heads, windows, &self.slab)?;
        Ok(Box::new(Decoder::new(model.clone(), self.weights.clone(), backend, self.slab.clone())?))
    }
}
