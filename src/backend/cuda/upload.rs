//! A CUDA device as the engine uses it, and how a model's weights get there: converted to the one type that the device
//! computes with, and those that take the same input stacked into one matrix.

use super::blas::Blas;
use super::depot::Depot;
use super::device::Device;
use super::engine_streams::EngineStreams;
use super::layout::Element;
use super::load::Loader;
use super::{CudaBackend, CudaMatrix, CudaProjections, CudaSlab, CudaVector};
use crate::backend::cpu::CpuVector;
use crate::backend::{
    BackendDevice, ComputeShare, KvGeometry, Linear, LinearSource, MatrixSource, ModelShape, Placement, Progress,
    TensorSource, WeightLoader, WeightsRequest,
};
use crate::error::{Result, Status};
use crate::tensor::Dtype;
use std::borrow::Cow;
use std::sync::Arc;

impl BackendDevice for Arc<Device> {
    type Backend = CudaBackend;

    fn ordinal(&self) -> i32 {
        Device::ordinal(self)
    }

    fn prepare(&self, geometry: &KvGeometry) -> Result<()> {
        CudaBackend::check(geometry)?;
        self.load_kernels()
    }

    fn pool(&self, geometry: KvGeometry, n_blocks: usize, shared: bool) -> Result<CudaSlab> {
        if shared { CudaSlab::shared(self, geometry, n_blocks) } else { CudaSlab::new(self, geometry, n_blocks) }
    }

    fn weight_bytes(&self, request: &WeightsRequest<'_>) -> u64 {
        weight_bytes(request, 4)
    }

    fn load<W>(
        &self,
        request: &WeightsRequest<'_>,
        progress: &mut Progress<'_>,
        build: impl Fn(&mut dyn WeightLoader<CudaBackend>) -> Result<W>,
    ) -> Result<W> {
        let into = |depot: Depot, progress: &mut Progress<'_>| {
            if !depot.is_filled() {
                (request.read_ahead)();
            }
            let mut each = |done, total| progress(done, total);
            let loader = Loader::watched(depot, self.weight_bytes(request), &mut each)?;
            let mut upload = Upload { loader, dtype: request.dtype };
            let weights = build(&mut upload)?;
            upload.loader.finish()?;
            Ok(weights)
        };
        if !request.shared {
            return into(Depot::Apart(self.clone()), progress);
        }
        match into(shared_depot(self, request, progress)?, progress) {
            // Two builds of one version may disagree on where tensors lie. That costs memory, not correctness.
            Err(error) if error.status == Status::Incompatible => {
                crate::log!(Warn, "cuda", "weights are not shared with other processes: {error}");
                into(Depot::Apart(self.clone()), progress)
            }
            loaded => loaded,
        }
    }

    fn backend(&self, model: &ModelShape, _: &Placement, kv: &CudaSlab) -> Result<CudaBackend> {
        CudaBackend::new(self, model.activations, model.heads, model.windows.iter().copied(), kv)
    }

    fn compute_share(&self, percent: u32, leaving: u32) -> Result<ComputeShare> {
        Ok(ComputeShare::new(EngineStreams::new(self, percent, leaving)?))
    }

    fn measures_prefill(&self) -> bool {
        true
    }

    fn product_path(&self, activations: Dtype) -> Result<&'static str> {
        Ok(if Blas::multiplies(self, Element::of(activations)?)? { "cublaslt" } else { "own kernels" })
    }
}

fn weight_bytes(request: &WeightsRequest<'_>, per_vector_element: u64) -> u64 {
    request.matrix_elements * request.dtype.size() as u64 + request.vector_elements * per_vector_element
}

/// Processes that load the same weights onto the same device in the same way meet here.
fn shared_depot(device: &Arc<Device>, request: &WeightsRequest<'_>, progress: &mut Progress<'_>) -> Result<Depot> {
    let bytes = weight_bytes(request, 4);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&request.identity).update(&device.uuid()?).update(&bytes.to_le_bytes());
    hasher.update(request.dtype.name().as_bytes()).update(env!("CARGO_PKG_VERSION").as_bytes());
    let name = format!("cleave-weights-{}", &hasher.finalize().to_hex()[..32]);
    // Room for the worst case: each bias also in the type of matrices, and zeros for stacked projections without one.
    let most = weight_bytes(request, 3 * (4 + 2));
    Depot::shared(device, &name, most, 2 * request.tensors, &mut || progress(0, bytes))
}

/// Copies weights to the device.
struct Upload<'a> {
    loader: Loader<'a>,
    /// Type of all matrices there.
    dtype: Dtype,
}

impl WeightLoader<CudaBackend> for Upload<'_> {
    fn matrix(&mut self, source: &MatrixSource<'_>) -> Result<CudaMatrix> {
        self.stacked_matrix(&[source]).map_err(|error| source.storage.blame(error))
    }

    fn vector(&mut self, source: &TensorSource<'_>) -> Result<CudaVector> {
        let values = CpuVector::new(source.bytes(), source.dtype).map_err(|error| source.blame(error))?;
        CudaVector::new(&mut self.loader, values.as_slice()).map_err(|error| source.blame(error))
    }

    fn linear(&mut self, source: &LinearSource<'_>) -> Result<Linear<CudaBackend>> {
        self.stacked(std::slice::from_ref(source))
    }

    fn projections(&mut self, sources: &[LinearSource<'_>]) -> Result<CudaProjections> {
        let outputs = sources.iter().map(|source| Ok(source.weight.shape()?.0)).collect::<Result<_>>()?;
        CudaProjections::new(self.stacked(sources)?, outputs)
    }
}

impl Upload<'_> {
    /// Stacks matrices with the same number of columns.
    fn stacked_matrix(&mut self, sources: &[&MatrixSource<'_>]) -> Result<CudaMatrix> {
        let (mut rows, mut cols) = (0, 0);
        for source in sources {
            let shape = source.shape()?;
            (rows, cols) = (rows + shape.0, shape.1);
        }
        let dtype = self.dtype;
        let parts = sources.iter().map(|source| converted(source, dtype));
        CudaMatrix::stacked(&mut self.loader, parts, rows, cols, dtype)
    }

    /// Stacks projections of one input: their matrices below each other, their biases one after the other.
    fn stacked(&mut self, sources: &[LinearSource<'_>]) -> Result<Linear<CudaBackend>> {
        let mut rows = 0;
        let mut bias = Vec::new();
        for source in sources {
            let outputs = source.weight.shape()?.0;
            if let Some(tensor) = &source.bias {
                bias.resize(rows, 0.0); // the projections before it had none
                bias.extend_from_slice(CpuVector::new(tensor.bytes(), tensor.dtype)?.as_slice());
            }
            rows += outputs;
        }
        let matrices: Vec<_> = sources.iter().map(|source| &source.weight).collect();
        let blame = |error| sources[0].weight.storage.blame(error);
        let weight = self.stacked_matrix(&matrices).map_err(blame)?;
        let bias = match bias.is_empty() {
            true => None,
            false => {
                bias.resize(rows, 0.0);
                Some(CudaVector::bias(&mut self.loader, &bias, self.dtype).map_err(blame)?)
            }
        };
        Ok(Linear { weight, bias })
    }
}

/// The matrix's bytes in another element type, rounded to the nearest.
fn converted<'a>(source: &'a MatrixSource<'_>, to: Dtype) -> Result<Cow<'a, [u8]>> {
    let bytes = source.bytes()?;
    let from = source.storage.dtype;
    if from == to {
        return Ok(bytes);
    }
    let values = CpuVector::new(&bytes, from)?;
    let values = values.as_slice().iter();
    Ok(Cow::Owned(match to {
        Dtype::F16 => values.flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::Bf16 => values.flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::F32 | Dtype::I8 => values.flat_map(|x| x.to_le_bytes()).collect(),
    }))
}
