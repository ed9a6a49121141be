//! The CPU as a device. Weights are used directly from the mapped checkpoint.

use super::{CpuBackend, CpuConfig, CpuMatrix, CpuVector, KvSlab, Level};
use crate::backend::device::DEVICE_CPU;
use crate::backend::{
    BackendDevice, ComputeShare, KvGeometry, Linear, LinearSource, MatrixSource, ModelShape, Placement, Progress,
    TensorSource, WeightLoader, WeightsRequest,
};
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;

/// The CPUs available to this process.
pub struct CpuDevice;

impl BackendDevice for CpuDevice {
    type Backend = CpuBackend;

    fn ordinal(&self) -> i32 {
        DEVICE_CPU
    }

    fn prepare(&self, _: &KvGeometry) -> Result<()> {
        Ok(())
    }

    fn pool(&self, geometry: KvGeometry, n_blocks: usize, shared: bool) -> Result<KvSlab> {
        if shared { KvSlab::shared(geometry, n_blocks) } else { KvSlab::new(geometry, n_blocks) }
    }

    fn weight_bytes(&self, request: &WeightsRequest<'_>) -> u64 {
        request.stored_bytes
    }

    fn load<W>(
        &self,
        request: &WeightsRequest<'_>,
        progress: &mut Progress<'_>,
        build: impl Fn(&mut dyn WeightLoader<CpuBackend>) -> Result<W>,
    ) -> Result<W> {
        (request.read_ahead)();
        let weights = build(&mut InPlace)?;
        // Nothing is copied, so there is no intermediate progress to report.
        progress(request.stored_bytes, request.stored_bytes)?;
        Ok(weights)
    }

    fn backend(&self, _: &ModelShape, place: &Placement, _: &KvSlab) -> Result<CpuBackend> {
        let cpus = (!place.cpus.is_empty()).then(|| place.cpus.clone());
        CpuBackend::new(CpuConfig { threads: place.threads, cpus, level: None })
    }

    fn compute_share(&self, percent: u32, _leaving: u32) -> Result<ComputeShare> {
        bail!(
            Unsupported,
            "sm_percent {percent}: the CPU has no multiprocessors to share out, but threads and cpu_mask"
        )
    }

    /// Always false: on the CPU, tokens per second hardly depend on the step length, and measuring would take long.
    fn measures_prefill(&self) -> bool {
        false
    }

    fn product_path(&self, _: Dtype) -> Result<&'static str> {
        Ok(Level::best().name())
    }
}

/// Weight loader that leaves weights in the mapped checkpoint.
struct InPlace;

impl WeightLoader<CpuBackend> for InPlace {
    fn matrix(&mut self, source: &MatrixSource<'_>) -> Result<CpuMatrix> {
        CpuMatrix::load(source).map_err(|error| source.storage.blame(error))
    }

    fn vector(&mut self, source: &TensorSource<'_>) -> Result<CpuVector> {
        CpuVector::new(source.bytes(), source.dtype).map_err(|error| source.blame(error))
    }

    fn linear(&mut self, source: &LinearSource<'_>) -> Result<Linear<CpuBackend>> {
        let bias = source.bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
        Ok(Linear { weight: self.matrix(&source.weight)?, bias })
    }

    fn projections(&mut self, sources: &[LinearSource<'_>]) -> Result<Vec<Linear<CpuBackend>>> {
        sources.iter().map(|source| self.linear(source)).collect()
    }
}
