//! Engines: one step thread each, over a cache that they share.

mod event;
mod metrics;
mod queue;
mod request;

pub use event::{Event, EventKind};
pub use metrics::Metrics;
pub use queue::{Queue, Reservation, SpaceWaker};
pub use request::{Request, SamplingFields};

use crate::error::{Error, Result};
use std::sync::Arc;
use std::time::Duration;

/// What an engine is for. The numbers are `CLEAVE_ROLE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    Mixed = 0,
    Prefill = 1,
    Decode = 2,
}

/// Zero means default.
#[derive(Clone, Debug, Default)]
pub struct CacheOptions {
    pub block_tokens: u32,
    pub dtype: Option<crate::tensor::Dtype>,
    pub bytes: u64,
    pub lease: Option<Duration>,
    pub secret: Option<[u8; 32]>,
    pub no_prefix_cache: bool,
}

/// A KV cache for one model on one device, with what its engines share: weights, block pool, handles.
pub struct ModelCache {}

/// What is known of a handle.
#[derive(Clone, Copy, Debug, Default)]
pub struct KvInfo {
    pub n_tokens: u32,
    pub n_blocks: u32,
    pub computed: u32,
    pub ticket_bytes: u64,
    pub image_bytes: u64,
    pub lease_left: Duration,
    /// Still arriving.
    pub importing: bool,
}

/// Blocks by owner; see `cleave_cache_audit`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Audit {
    pub by_requests: u32,
    pub by_transfers: u32,
    pub by_exports: u32,
    pub by_prefix_index: u32,
    pub leaked: u32,
    pub total: u32,
    pub free: u32,
}

impl ModelCache {
    pub fn create(
        _model: &Arc<crate::model::Model>,
        _devices: &[i32],
        _options: CacheOptions,
    ) -> Result<Arc<ModelCache>> {
        crate::bail!(Unsupported, "to come")
    }
    pub fn kv_info(&self, _kv: u64) -> Result<KvInfo> {
        Ok(KvInfo::default())
    }
    pub fn fingerprint(&self) -> [u8; 32] {
        [0; 32]
    }
    pub fn ticket(&self, _kv: u64) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
    /// Bytes of the image from `offset`; 0 at its end.
    pub fn read_image(&self, _kv: u64, _offset: u64, _out: &mut [u8]) -> Result<usize> {
        Ok(0)
    }
    /// Ticket or image. A KV_READY event follows on `queue`, if one is given.
    pub fn import(&self, _queue: Option<&Arc<Queue>>, _data: &[u8], _user_tag: u64) -> Result<u64> {
        Ok(0)
    }
    pub fn save(&self, _kv: u64, _path: &str) -> Result<()> {
        Ok(())
    }
    pub fn load(&self, _path: &str) -> Result<u64> {
        Ok(0)
    }
    pub fn duplicate(&self, _kv: u64) -> Result<u64> {
        Ok(0)
    }
    pub fn renew(&self, _kv: u64, _lease: Duration) -> Result<()> {
        Ok(())
    }
    pub fn release(&self, _kv: u64) -> Result<()> {
        Ok(())
    }
    pub fn audit(&self) -> Audit {
        Audit::default()
    }
    /// Ends every handle and refuses new engines; engines that still run keep the memory until they end.
    pub fn close(&self) {}
}

/// Zero means default.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    pub role: Option<Role>,
    /// Sequences that run at once.
    pub max_sequences: usize,
    /// Accepted requests that wait beyond those.
    pub max_waiting: usize,
    /// Token budget of a step.
    pub max_batch_tokens: usize,
    pub threads: usize,
    /// CPUs to run on; empty: where the system puts them.
    pub cpus: Vec<usize>,
}

pub struct Engine {}

/// Outcome of a batch submit: the ids of the accepted prefix, and why the next one was refused.
pub struct Submitted {
    pub ids: Vec<u64>,
    pub refused: Option<Error>,
}

impl Engine {
    pub fn create(_cache: &Arc<ModelCache>, _queue: &Arc<Queue>, _options: EngineOptions) -> Result<Engine> {
        crate::bail!(Unsupported, "to come")
    }
    pub fn submit(&self, _requests: Vec<Request>) -> Submitted {
        Submitted { ids: Vec::new(), refused: None }
    }
    pub fn cancel(&self, _id: u64) -> Result<()> {
        Ok(())
    }
    pub fn export(&self, _id: u64) -> Result<()> {
        Ok(())
    }
    pub fn set_role(&self, _role: Role) -> Result<()> {
        Ok(())
    }
    /// Refuses new requests and waits until all accepted ones have ended. TIMEOUT leaves it draining.
    pub fn drain(&self, _timeout: Option<Duration>) -> Result<()> {
        Ok(())
    }
    pub fn metrics(&self) -> Metrics {
        Metrics::default()
    }
    /// Ends everything still open with SHUTDOWN and joins the step thread. Drop does the same.
    pub fn shutdown(&self) {}
}
