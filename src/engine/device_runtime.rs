//! A cache's devices: their weights, their KV pool and the executors of engines. Devices of every kind appear to the engine as
//! the trait [`DeviceRuntime`].

use crate::backend::devices;
use crate::backend::{
    Backend, BackendDevice, ComputeShare, DeviceVisitor, KvGeometry, ModelShape, Placement, Progress,
};
use crate::error::Result;
use crate::kv::Shards;
use crate::model::Model;
use crate::model::decoder::{Decoder, Executor};
use crate::model::weights::Weights;
use std::sync::Arc;

/// Weights and KV pool of a cache on its devices. One device implements it today; a group of devices would be a second
/// implementation.
pub(super) trait DeviceRuntime: Send + Sync {
    /// The KV pool, one shard per device.
    fn shards(&self) -> Result<Shards>;
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

/// Opens `devices`, allocates a cache's pool there and loads the weights, reporting to `progress`. UNSUPPORTED for more than
/// one device: no executor runs a step on several.
pub(super) fn make(
    model: &Arc<Model>,
    devices: &[i32],
    geometry: KvGeometry,
    n_blocks: usize,
    sharing: Sharing,
    progress: &mut Progress<'_>,
) -> Result<Box<dyn DeviceRuntime>> {
    let &[device] = devices else {
        crate::bail!(Unsupported, "{} devices given: a cache uses one", devices.len());
    };
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
    fn shards(&self) -> Result<Shards> {
        Shards::on_one_device(self.pool.clone())
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
