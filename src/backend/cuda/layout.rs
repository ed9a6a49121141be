//! Rust twins of the structs in kernels/include/layout.cuh, and names of element types.

use super::stream::Argument;
use crate::backend::KvGeometry;
use crate::bail;
use crate::error::Result;
use crate::tensor::Dtype;

/// Layout of KV in blocks; the struct KvLayout of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KvLayout {
    block_bytes: u64,
    stripe_bytes: u32,
    scales_offset: u32,
    block_tokens: u32,
    head_dim: u32,
    layers: u32,
    kv_heads: u32,
    heads_of_shard: u32,
}

// SAFETY: plain data, laid out as the kernels have it.
unsafe impl Argument for KvLayout {}

impl KvLayout {
    /// The layout of a pool on a device.
    pub fn of(geometry: &KvGeometry) -> Result<KvLayout> {
        if !geometry.block_bytes().is_multiple_of(16) {
            bail!(Unsupported, "KV of {geometry:?} on a CUDA device: expected blocks of a multiple of 16 bytes");
        }
        Self::of_single(geometry)
    }

    /// The layout of single blocks, whose size needs no alignment.
    pub fn of_single(geometry: &KvGeometry) -> Result<KvLayout> {
        let Ok(stripe_bytes) = u32::try_from(geometry.stripe_bytes()) else {
            bail!(Unsupported, "KV of {geometry:?}: a head's part of a block is over 4 GiB");
        };
        Ok(KvLayout {
            block_bytes: geometry.block_bytes() as u64,
            stripe_bytes,
            scales_offset: geometry.scales_offset() as u32,
            block_tokens: geometry.block_tokens,
            head_dim: geometry.head_dim,
            layers: geometry.layers,
            kv_heads: geometry.kv_heads,
            heads_of_shard: geometry.kv_heads / geometry.shards,
        })
    }
}

/// Element types of weights and activations that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    pub fn of(dtype: Dtype) -> Result<Element> {
        match dtype {
            Dtype::F32 => Ok(Element::F32),
            Dtype::F16 => Ok(Element::F16),
            Dtype::Bf16 => Ok(Element::Bf16),
            Dtype::I8 => bail!(Unsupported, "weights of {dtype}: expected float32, float16 or bfloat16"),
        }
    }

    pub fn size(self) -> usize {
        if self == Element::F32 { 4 } else { 2 }
    }
}

/// A kernel's name for an element type, from the parts before and after the type.
macro_rules! named {
    ($element:expr, $before:literal) => {
        named!($element, $before, "")
    };
    ($element:expr, $before:literal, $after:literal) => {
        match $element {
            $crate::backend::cuda::layout::Element::F32 => concat!($before, "float", $after),
            $crate::backend::cuda::layout::Element::F16 => concat!($before, "f16", $after),
            $crate::backend::cuda::layout::Element::Bf16 => concat!($before, "bf16", $after),
        }
    };
}
pub(super) use named;
