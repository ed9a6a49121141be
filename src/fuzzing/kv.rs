//! Targets for KV images, tickets and addresses. They are read by a small cache whose secret the fuzzer knows.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{LITTLE, Target};
use crate::backend::KvGeometry;
use crate::backend::cpu::KvSlab;
use crate::error::Result;
use crate::kv::format::{Endpoint, ProcessId, UnixName};
use crate::kv::{Cache, CacheConfig, CacheIdentity, LayerKind, Shards};
use crate::sequence::{FinishReason, SamplingParams, Snapshot};
use crate::tensor::Dtype;

/// Target for KV images.
pub const IMAGE: Target = Target {
    name: "kv_image",
    read: |data| {
        let _alone = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = cache().images().import(data).and_then(|id| cache().handles().release(id));
        assert_eq!(cache().check(), Ok(()), "after {taken:?}");
        assert_eq!(cache().available_blocks(), cache().total_blocks(), "blocks are held after {taken:?}");
        taken
    },
    seeds: || sequences().map(image).collect(),
    reseal: |data| cache().tickets().reseal(data),
    words: &[b"CLVKVIMG", b"CLVKVTKT", &[0xff; 4], &[0; 8], &[0, 0, 0xc0, 0x7f]],
    memory: LITTLE,
    cost: 1,
};

/// Target for KV tickets.
pub const TICKET: Target = Target {
    name: "kv_ticket",
    read: |data| cache().tickets().open(data)?.check_chain().map(|_| ()),
    seeds: || vec![ticket()],
    reseal: |data| cache().tickets().reseal(data),
    words: &[b"CLVKVIMG", b"CLVKVTKT", &[0xff; 2], &[0xff; 4], &[1, 0, 20, 0]],
    memory: LITTLE,
    cost: 1,
};

/// Target for addresses of caches.
pub const ADDRESS: Target = Target {
    name: "cache_address",
    read: |data| cache().tickets().open_address(data).map(|_| ()),
    seeds: || vec![ticket_cache().tickets().encode_address()],
    reseal: |data| cache().tickets().reseal(data),
    words: &[b"CLVKVADR", b"CLVKVTKT", &[0xff; 2], &[0xff; 4], &[3, 0, 8, 0]],
    memory: LITTLE,
    cost: 1,
};

const BLOCKS: usize = 16;

/// Lock held by the thread that uses blocks of the cache, because other threads would count these blocks as lost.
static BUSY: Mutex<()> = Mutex::new(());

/// The cache that reads every input of this process.
fn cache() -> &'static Arc<Cache> {
    static CACHE: OnceLock<Arc<Cache>> = OnceLock::new();
    CACHE.get_or_init(|| {
        let geometry =
            KvGeometry { layers: 2, kv_heads: 1, head_dim: 2, block_tokens: 4, dtype: Dtype::F16, shards: 1 };
        let identity = CacheIdentity { fingerprint: [1; 32], tokenizer_digest: [2; 32], name: "fuzz".into() };
        let config = CacheConfig {
            secret: Some([3; 32]),
            layer_kinds: vec![LayerKind::Full, LayerKind::Window(8)],
            ..CacheConfig::default()
        };
        made(
            KvSlab::new(geometry, BLOCKS)
                .and_then(|slab| Shards::on_one_device(Arc::new(slab)))
                .and_then(|shards| Cache::new(identity, shards, config)),
        )
    })
}

#[expect(clippy::panic, reason = "a fuzzer without its seeds finds nothing, and must say so")]
fn made<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("preparing to fuzz: {error}"))
}

fn snapshot(tokens: u32, computed: u32) -> Snapshot {
    Snapshot {
        tokens: (0..tokens).collect(),
        computed,
        prompts: vec![(0, tokens)],
        last_logprob: -0.5,
        last_top: Vec::new(),
        cached_tokens: 0,
        params: SamplingParams::default(),
        cache_salt: 0,
        finished: None,
        host_data: Vec::new(),
        converted: false,
    }
}

/// Sequences for the seeds: the smallest one, one with every variable-length field, and one with several blocks.
fn sequences() -> impl Iterator<Item = Snapshot> {
    let mut full = snapshot(9, 8);
    full.prompts = vec![(0, 3), (5, 9)];
    full.last_top = vec![(8, -0.5), (7, -1.0)];
    full.host_data = b"trace 7".to_vec();
    full.finished = Some(FinishReason::Prefilled);
    full.params = SamplingParams {
        logprobs: Some(2),
        stop_ids: vec![5, 6],
        stop_sequences: vec![vec![1, 2], vec![3, 4, 5]],
        logit_bias: vec![(7, 1.5)],
        ..SamplingParams::default()
    };
    [snapshot(1, 0), full, snapshot(40, 39)].into_iter()
}

fn exported<T>(snapshot: Snapshot, write: impl FnOnce(crate::kv::KvId) -> Result<T>) -> T {
    let _alone = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
    let mut table = cache().table();
    assert!(table.reserve(0, snapshot.computed), "preparing to fuzz: no blocks");
    let id = made(cache().handles().export(snapshot, table, None));
    let written = made(write(id));
    made(cache().handles().release(id));
    written
}

fn image(snapshot: Snapshot) -> Vec<u8> {
    exported(snapshot, |id| {
        let mut image = vec![0; cache().images().len(id)? as usize];
        cache().images().read(id, 0, &mut image)?;
        Ok(image)
    })
}

fn ticket() -> Vec<u8> {
    exported(snapshot(9, 8), |id| crate::transport::ticket(ticket_cache(), id))
}

/// The cache, with endpoints of every kind set.
fn ticket_cache() -> &'static Arc<Cache> {
    let tcp = |address: &str, encrypted| Endpoint::Tcp { address: made(parse(address)), encrypted };
    cache().tickets().set_endpoints(&[
        Endpoint::Process(ProcessId { pid: 1, nonce: [4; 16] }),
        Endpoint::Unix(UnixName { boot: [5; 16], name: b"cleave-fuzz".to_vec() }),
        tcp("127.0.0.1:7000", false),
        tcp("[2001:db8::1]:7000", true),
    ]);
    cache()
}

fn parse(address: &str) -> Result<std::net::SocketAddr> {
    address.parse().map_err(|e| crate::error!(InvalidArgument, "{e}"))
}
