//! Options that a host gives when it creates a cache, and what they mean for a model.

use crate::backend::KvGeometry;
use crate::error::Result;
use crate::model::Model;
use crate::tensor::Dtype;
use std::time::Duration;

const DEFAULT_BLOCK_TOKENS: u32 = 16;
const MAX_BLOCK_TOKENS: u32 = 256;
/// Address space to reserve. The system commits pages only as blocks come into use.
const DEFAULT_CACHE_BYTES: u64 = 1 << 30;
const DEFAULT_LEASE: Duration = Duration::from_secs(30);

/// Options of a cache. A field that is zero or None takes its default.
#[derive(Clone, Debug, Default)]
pub struct CacheOptions {
    /// Tokens per KV block.
    pub block_tokens: u32,
    /// Type of the KV values; by default that of the model's weights.
    pub dtype: Option<Dtype>,
    /// Size of the block pool in bytes.
    pub bytes: u64,
    /// Time after which a KV handle expires unless it is renewed.
    pub lease: Option<Duration>,
    /// Secret that peers must share to import handles. None makes a random one, so that only this process can import them.
    pub secret: Option<[u8; 32]>,
    /// Turns the prefix cache off.
    pub no_prefix_cache: bool,
    /// Time after which a peer that falls silent in the middle of a transfer counts as gone.
    pub peer_timeout: Option<Duration>,
    /// Refuses KV of another block size, dtype or number of shards instead of converting it.
    pub no_convert: bool,
    /// Shares one copy of the weights on a CUDA device among all processes that set this option.
    pub share_weights: bool,
    /// Number of shards of the tensor-parallel layout; 0 means 1. The CPU computes on such a layout as one device.
    pub shards: u32,
    /// Number of events about the prefix index that are kept for readers; 0: none are recorded.
    pub events_kept: usize,
}

impl CacheOptions {
    /// Layout of the KV of `model` under these options.
    pub(super) fn geometry(&self, model: &Model) -> Result<KvGeometry> {
        let block_tokens = if self.block_tokens == 0 { DEFAULT_BLOCK_TOKENS } else { self.block_tokens };
        if block_tokens > MAX_BLOCK_TOKENS {
            crate::bail!(InvalidArgument, "block_tokens {block_tokens} is over {MAX_BLOCK_TOKENS}");
        }
        let geometry = model.kv_geometry(block_tokens, self.dtype.unwrap_or(model.info().weight_dtype));
        let geometry = KvGeometry { shards: self.shards.max(1), ..geometry };
        geometry.validate()?;
        Ok(geometry)
    }

    /// Number of blocks of that layout in the pool.
    pub(super) fn n_blocks(&self, geometry: &KvGeometry) -> Result<usize> {
        let bytes = if self.bytes == 0 { DEFAULT_CACHE_BYTES } else { self.bytes };
        let (block_bytes, block_tokens) = (geometry.block_bytes(), geometry.block_tokens);
        if bytes < block_bytes as u64 {
            crate::bail!(
                InvalidArgument,
                "bytes_per_device {bytes} is less than one block of {block_bytes} bytes ({block_tokens} tokens)"
            );
        }
        Ok((bytes / block_bytes as u64).min(1 << 22) as usize)
    }

    /// Time after which a handle expires unless it is renewed.
    pub(super) fn lease(&self) -> Duration {
        self.lease.unwrap_or(DEFAULT_LEASE)
    }
}
