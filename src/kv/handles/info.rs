//! Description of a handle.

use std::time::Duration;

use super::shared::CacheShared;
use super::table::Body;
use crate::bail;
use crate::error::Result;
use crate::kv::format::{self, KvId};
use crate::sync::Instant;

/// Description of a handle: its sequence, its sizes and the state of its KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvInfo {
    /// Tokens of the sequence.
    pub n_tokens: u32,
    /// Tokens whose KV the handle holds.
    pub computed: u32,
    /// Blocks with that KV; 0 while it is being imported or computed.
    pub n_blocks: u32,
    /// Size of the handle's image in bytes; 0 while its KV is being imported or computed.
    pub image_bytes: u64,
    /// Size of the handle's ticket in bytes; 0 while its KV is being imported.
    pub ticket_bytes: u64,
    /// Time until the lease ends. The cache's whole lease while the KV is being imported or computed.
    pub lease_left: Duration,
    /// The KV is being imported and has not all arrived.
    pub importing: bool,
    /// The prompt's KV is still being computed.
    pub streaming: bool,
}

/// Where a handle's KV is.
enum Kv {
    Importing,
    /// So many tokens are computed.
    Streaming(u32),
    Here {
        deadline: Instant,
    },
}

/// Describes a handle.
pub(super) fn info(shared: &CacheShared, id: KvId) -> Result<KvInfo> {
    let (snapshot, kv) = shared.with(|state| {
        let slot = state.find(id)?;
        Ok(match state.handles.body(slot) {
            Body::Importing(import) => (import.sequence.clone(), Kv::Importing),
            Body::StreamingExport(progress) => {
                let computed = state.pool.table(progress.table).map_or(0, |table| table.computed);
                (progress.prompt.clone(), Kv::Streaming(computed))
            }
            Body::Ready(export) => (export.snapshot.clone(), Kv::Here { deadline: export.deadline }),
            Body::Failed(failed) => return Err(failed.error.clone()),
            Body::Vacant => bail!(Internal, "{id}: live, but its slot is empty"),
        })
    })?;
    let ticket_bytes =
        || format::ticket_len(&shared.identity, &shared.layout, &snapshot, &shared.endpoints.get()) as u64;
    let unknown = KvInfo {
        n_tokens: snapshot.tokens.len() as u32,
        computed: 0,
        n_blocks: 0,
        image_bytes: 0,
        ticket_bytes: 0,
        lease_left: shared.config.lease,
        importing: false,
        streaming: false,
    };
    Ok(match kv {
        Kv::Importing => KvInfo { importing: true, ..unknown },
        Kv::Streaming(computed) => KvInfo { streaming: true, computed, ticket_bytes: ticket_bytes(), ..unknown },
        Kv::Here { deadline } => {
            let n_blocks = snapshot.computed.div_ceil(shared.geometry.block_tokens);
            let head = format::head_len(&shared.identity, &shared.layout, &snapshot) as u64;
            KvInfo {
                computed: snapshot.computed,
                n_blocks,
                image_bytes: head + u64::from(n_blocks) * format::record_len(&shared.geometry) as u64,
                ticket_bytes: ticket_bytes(),
                lease_left: deadline.saturating_duration_since(Instant::now()),
                ..unknown
            }
        }
    })
}
