//! The weights of one model on the devices that use it: placed once per device, there until the last cache over them goes.

use super::checkpoint::Checkpoint;
use super::weights::Weights;
use crate::backend::{BackendDevice, Progress, WeightsRequest};
use crate::error::Result;
use crate::tensor::Dtype;
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// One device's weights, while anybody uses them. Their type depends on the kind of device.
type Slot = Arc<Mutex<Option<Weak<dyn Any + Send + Sync>>>>;

/// Weights by device ordinal.
#[derive(Default)]
pub(super) struct PlacedWeights {
    slots: Mutex<HashMap<i32, Slot>>,
}

impl PlacedWeights {
    /// The weights on `device`, placed there if nobody has them yet. `progress` must not ask for the same weights.
    pub fn get<D: BackendDevice>(
        &self,
        device: &D,
        checkpoint: &Checkpoint,
        request: &WeightsRequest<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Weights<D::Backend>>> {
        let slot =
            self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(device.ordinal()).or_default().clone();
        // Held while they are placed: who comes meanwhile waits for them, other devices do not.
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weights) = slot.as_ref().and_then(Weak::upgrade).and_then(|weights| weights.downcast().ok()) {
            let bytes = device.weight_bytes(request);
            progress(bytes, bytes)?;
            return Ok(weights);
        }
        let weights = Arc::new(device.load(request, progress, |loader| Weights::build(checkpoint, loader))?);
        let held: Arc<dyn Any + Send + Sync> = weights.clone();
        *slot = Some(Arc::downgrade(&held));
        Ok(weights)
    }
}

/// Describes a checkpoint's weights to a device.
pub(super) fn request<'a>(
    checkpoint: &Checkpoint,
    identity: [u8; 32],
    dtype: Dtype,
    shared: bool,
    read_ahead: &'a dyn Fn(),
) -> WeightsRequest<'a> {
    let tensors = checkpoint.tensors();
    let elements = |matrices: bool| {
        let counted = tensors.iter().filter(|tensor| (tensor.stored.shape.len() == 2) == matrices);
        counted.map(|tensor| tensor.stored.shape.iter().product::<usize>() as u64).sum()
    };
    WeightsRequest {
        identity,
        dtype,
        stored_bytes: checkpoint.weight_bytes(),
        matrix_elements: elements(true),
        vector_elements: elements(false),
        tensors: tensors.len(),
        shared,
        read_ahead,
    }
}
