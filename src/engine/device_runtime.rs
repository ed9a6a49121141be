//! A cache's device: its weights, its KV pool and the executors of engines. Every kind of device appears to the engine as the
//! trait [`DeviceRuntime`].

use crate::backend::devices;
use crate::backend::{
    Backend, BackendDevice, BlockStore, ComputeShare, DeviceVisitor, KvGeometry, ModelShape, Placement, Progress,
};
use crate::error::Result;
use crate::model::Model;
use crate::model::decoder::{Decoder, Executor};
use crate::model::weights::Weights;
use std::sync::Arc;

/// One device's weights and KV pool.
pub(super) trait DeviceRuntime: Send + Sync {
    /// The device's KV pool.
    fn store(&self) -> Arc<dyn BlockStore>;
    /// Ordinal of the device, if prefill is measured there to choose the length of its steps.
    fn measured(&self) -> Option<i32>;
    /// Creates the executor that runs the steps of one engine.
    fn executor(&self, model: &Arc<Model>, place: Placement) -> Result<Box<dyn Executor>>;
    /// Acquires a share of `percent` of the device's multiprocessors (0: all) for an engine that gives up the share `leaving`.
    fn compute_share(&self, percent: u32, leaving: u32) -> Result<ComputeShare>;
    /// Name of the code that multiplies matrices on the device: an instruction set or a library.
    fn product_path(&self) -> &'static str;
}

/// Memory that a cache shares with other processes, on devices that support it.
#[derive(Clone, Copy)]
pub(super) struct Sharing {
    /// Lets other processes map the pool read-only.
    pub pool: bool,
    /// Uses one copy of the weights for all processes.
    pub weights: bool,
}

/// Opens a device, allocates a cache's pool there and loads the weights, reporting to `progress`.
pub(super) fn make(
    model: &Arc<Model>,
    device: i32,
    geometry: KvGeometry,
    n_blocks: usize,
    sharing: Sharing,
    progress: &mut Progress<'_>,
) -> Result<Box<dyn DeviceRuntime>> {
    devices::open(device, Make { model, geometry, n_blocks, sharing, progress })
}

struct Make<'a, 'p> {
    model: &'a Arc<Model>,
    geometry: KvGeometry,
    n_blocks: usize,
    sharing: Sharing,
    progress: &'a mut Progress<'p>,
}

impl DeviceVisitor for Make<'_, '_> {
    type Output = Box<dyn DeviceRuntime>;

    fn visit<D: BackendDevice>(self, device: D) -> Result<Box<dyn DeviceRuntime>> {
        device.prepare(&self.geometry)?;
        // The pool first: it fails at once if it does not fit, while loading the weights takes long.
        let pool = Arc::new(device.pool(self.geometry, self.n_blocks, self.sharing.pool)?);
        let weights = self.model.weights(&device, self.sharing.weights, self.progress)?;
        let product_path = device.product_path(self.model.info().weight_dtype)?;
        Ok(Box::new(Runtime { device, weights, pool, product_path }))
    }
}

struct Runtime<D: BackendDevice> {
    weights: Arc<Weights<D::Backend>>,
    pool: Arc<<D::Backend as Backend>::Kv>,
    product_path: &'static str,
    /// Declared last, so that it is dropped after everything allocated on it.
    device: D,
}

impl<D: BackendDevice> DeviceRuntime for Runtime<D> {
    fn store(&self) -> Arc<dyn BlockStore> {
        self.pool.clone()
    }

    fn measured(&self) -> Option<i32> {
        self.device.measures_prefill().then(|| self.device.ordinal())
    }

    fn executor(&self, model: &Arc<Model>, place: Placement) -> Result<Box<dyn Executor>> {
        let config = model.config();
        let shape = ModelShape {
            activations: model.info().weight_dtype,
            heads: config.heads,
            windows: config.layers.iter().map(|layer| layer.window).collect(),
        };
        let share = match place.sm_percent {
            0 => None,
            percent => Some(self.compute_share(percent, 0)?),
        };
        let mut backend = self.device.backend(&shape, &place, &self.pool)?;
        if let Some(share) = share {
            backend.set_compute_share(share)?;
        }
        Ok(Box::new(Decoder::new(model.clone(), self.weights.clone(), backend, self.pool.clone())?))
    }

    fn compute_share(&self, percent: u32, leaving: u32) -> Result<ComputeShare> {
        self.device.compute_share(percent, leaving)
    }

    fn product_path(&self) -> &'static str {
        self.product_path
    }
}
