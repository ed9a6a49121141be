//! Images and files as a host uses them: round trips, every refusal, and no partial imports.

#[path = "../src/kv/tests/model.rs"]
mod model;
#[path = "../src/kv/tests/store.rs"]
mod store;

use std::sync::Arc;
use std::time::Duration;

use cleave::backend::{BlockId, BlockStore, KvGeometry};
use cleave::error::{Result, Status};
use cleave::kv::{BlockTable, Cache, CacheConfig, CacheIdentity, Consumed, HashChain, KvId, Shards};
use cleave::sequence::{FinishReason, SamplingParams, Snapshot};
use cleave::tensor::Dtype;
use cleave::transport;
use model::{GEOMETRY, Seq, cache, config, identity};
use proptest::prelude::*;

fn exported(cache: &Cache, n: u32) -> KvId {
    let seq = Seq::computed(cache, n, 1, 3);
    cache.handles().export(seq.snapshot, seq.table, None).unwrap()
}

fn read(cache: &Cache, id: KvId) -> Vec<u8> {
    let mut image = vec![0; cache.images().len(id).unwrap() as usize];
    assert_eq!(cache.images().read(id, 0, &mut image).unwrap(), image.len());
    image
}

fn consume(cache: &Cache, id: KvId) -> Result<Seq> {
    match cache.handles().consume(id)? {
        Consumed::Ready(snapshot, table) => Ok(Seq { snapshot, table }),
        Consumed::Pending => panic!("{id} is pending"),
    }
}

/// Checks that only the prefix index holds blocks.
fn assert_idle(cache: &Cache) {
    cache.check().unwrap();
    let audit = cache.audit();
    assert_eq!((audit.by_requests, audit.by_exports, audit.by_transfers, audit.leaked), (0, 0, 0, 0));
}

#[track_caller]
fn refused<T>(result: Result<T>, status: Status, words: &[&str]) {
    let error = result.err().expect("refused");
    assert_eq!(error.status, status, "{error}");
    words.iter().for_each(|word| assert!(error.message.contains(word), "{word:?} in {error}"));
}

#[test]
fn an_image_carries_everything() {
    let (a, b) = (cache(16), cache(16));
    let mut seq = Seq::computed(&a, 11, 1, 77);
    let s = &mut seq.snapshot;
    s.params.stop_sequences = vec![vec![1, 2], vec![3, 4, 5]];
    s.params.stop_ids = vec![8, 9];
    s.params.logit_bias = vec![(4, f32::NEG_INFINITY), (5, 1.5)];
    s.params.ignore_eos = true;
    s.params.temperature = 0.7;
    s.finished = Some(FinishReason::Prefilled);
    s.prompts = vec![(0, 4), (6, 9)];
    s.host_data = b"trace 7".to_vec();
    let before = seq.snapshot.clone();
    let id = a.handles().export(seq.snapshot, seq.table, None).unwrap();
    let image = read(&a, id);
    assert_eq!(image.len() as u64, a.handles().info(id).unwrap().image_bytes);
    let here = b.images().import(&image).unwrap();
    let seq = consume(&b, here).unwrap();
    assert_eq!(seq.snapshot, before);
    seq.verify(b.store());
    assert!(a.handles().info(id).is_ok(), "reading does not consume");
    assert_eq!(b.stats().bytes_in, 3 * GEOMETRY.block_bytes() as u64);
    // The full blocks are in the importer's index, so a second import moves only the last one.
    let again = b.images().import(&image).unwrap();
    assert_eq!(b.stats().bytes_in, 4 * GEOMETRY.block_bytes() as u64);
    let again = consume(&b, again).unwrap();
    assert_eq!(again.table.blocks()[..2], seq.table.blocks()[..2]);
    again.verify(b.store());
}

#[test]
fn pieces_of_any_size_make_the_same_image() {
    let a = cache(16);
    let id = exported(&a, 14);
    let whole = read(&a, id);
    a.handles().renew(id, Duration::from_secs(60)).unwrap();
    for size in [1, 7, 31, 32, 33, 160, 500, 10_000] {
        let mut pieces = Vec::new();
        let mut piece = vec![0; size];
        while let n @ 1.. = a.images().read(id, pieces.len() as u64, &mut piece).unwrap() {
            pieces.extend_from_slice(&piece[..n]);
        }
        assert!(pieces == whole, "in pieces of {size}");
    }
    assert_eq!(a.images().read(id, u64::MAX, &mut [0; 4]).unwrap(), 0);
    assert_ne!(whole, read(&a, a.handles().duplicate(id).unwrap()), "another handle, another nonce");
}

#[test]
fn what_others_left_in_the_last_block_stays_here() {
    let (a, b) = (cache(4), cache(4));
    // The store is filled with 0xA5 and five tokens are computed, so three slots of the second block hold no token.
    let image = read(&a, exported(&a, 6));
    assert!(!image.windows(8).any(|window| window == [0xA5; 8]));
    let ticket = transport::ticket(&a, exported(&a, 6)).unwrap();
    let id = transport::import(&b, &ticket).unwrap();
    let table = consume(&b, id).unwrap().table;
    let mut block = vec![0; GEOMETRY.block_bytes()];
    b.store().read(table.blocks()[1], 0, &mut block).unwrap();
    assert!(!block.windows(8).any(|window| window == [0xA5; 8]));
}

#[test]
fn every_flipped_bit_and_every_truncation_is_refused() {
    let (a, b) = (cache(16), cache(16));
    let mut image = read(&a, exported(&a, 7));
    for bit in 0..image.len() * 8 {
        image[bit / 8] ^= 1 << (bit % 8);
        refused(b.images().import(&image), Status::Corrupt, &[]);
        image[bit / 8] ^= 1 << (bit % 8);
    }
    for len in 0..image.len() {
        refused(b.images().import(&image[..len]), Status::Corrupt, &[]);
    }
    image.push(0);
    refused(b.images().import(&image), Status::Corrupt, &["found"]);
    image.pop();
    assert_idle(&b);
    assert_eq!(b.audit().by_prefix_index, 0, "nothing of a refused image is kept");
    let id = b.images().import(&image).unwrap();
    consume(&b, id).unwrap().verify(b.store());
    // The same holds where the importer already has the blocks and copies nothing.
    let last = image.len() - 200;
    image[last] ^= 1;
    refused(b.images().import(&image), Status::Corrupt, &["block"]);
    let ticket = transport::ticket(&a, exported(&a, 7)).unwrap();
    for bit in 0..ticket.len() * 8 {
        let mut ticket = ticket.clone();
        ticket[bit / 8] ^= 1 << (bit % 8);
        refused(transport::import(&b, &ticket), Status::Corrupt, &[]);
    }
    (0..ticket.len()).for_each(|len| refused(transport::import(&b, &ticket[..len]), Status::Corrupt, &[]));
    assert_idle(&b);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_mutation_of_an_image_is_taken(edits in prop::collection::vec((any::<u16>(), any::<u8>(), 0u8..4), 1..6)) {
        let (a, b) = (cache(8), cache(8));
        let image = read(&a, exported(&a, 7));
        let mut bytes = image.clone();
        for (at, value, kind) in edits {
            let at = at as usize % (bytes.len() + 1);
            match kind {
                0 if at < bytes.len() => bytes[at] = value,
                1 => bytes.insert(at, value),
                2 => bytes.truncate(bytes.len() - (value as usize).min(bytes.len())),
                _ => bytes.extend_from_slice(&image[..value as usize]),
            }
        }
        prop_assert_eq!(b.images().import(&bytes).is_ok(), bytes == image);
        b.check().unwrap();
    }
}

#[test]
fn refusals_name_field_expected_and_found() {
    let a = cache(16);
    let id = exported(&a, 7);
    let image = read(&a, id);
    let ticket = transport::ticket(&a, id).unwrap();
    let with = |identity: CacheIdentity, geometry: KvGeometry, config: CacheConfig| {
        Cache::new(identity, Shards::on_one_device(Arc::new(store::MemoryStore::new(geometry, 8))).unwrap(), config)
            .unwrap()
    };
    let check = |cache: Arc<Cache>, status, words: &[&str]| {
        refused(cache.images().import(&image), status, words);
        refused(transport::import(&cache, &ticket), status, words);
        assert_idle(&cache);
    };
    let stranger = CacheConfig { secret: None, ..config() };
    check(with(identity(), GEOMETRY, stranger.clone()), Status::Permission, &["secret"]);
    // Authentication precedes compatibility checks, so a stranger learns nothing about the model.
    let other = CacheIdentity { fingerprint: [8; 32], ..identity() };
    check(with(other.clone(), GEOMETRY, stranger), Status::Permission, &[]);
    check(with(other, GEOMETRY, config()), Status::Incompatible, &["model fingerprint", "0808", "0707", "Llama"]);
    let other = CacheIdentity { tokenizer_digest: [8; 32], ..identity() };
    check(with(other, GEOMETRY, config()), Status::Incompatible, &["tokenizer digest", "0808", "0909"]);
    let strict = CacheConfig { no_convert: true, ..config() };
    for (geometry, words) in [
        (KvGeometry { dtype: Dtype::Bf16, ..GEOMETRY }, ["KV dtype", "expected bfloat16", "found float32"]),
        (KvGeometry { block_tokens: 8, ..GEOMETRY }, ["block tokens", "expected 8", "found 4"]),
    ] {
        check(with(identity(), geometry, strict.clone()), Status::Incompatible, &words);
    }
    for (geometry, words) in [
        (KvGeometry { layers: 3, ..GEOMETRY }, ["layers", "expected 3", "found 2"]),
        (KvGeometry { kv_heads: 2, ..GEOMETRY }, ["KV heads", "expected 2", "found 1"]),
        (KvGeometry { head_dim: 4, ..GEOMETRY }, ["head dimension", "expected 4", "found 2"]),
    ] {
        check(with(identity(), geometry, config()), Status::Incompatible, &words);
        check(with(identity(), geometry, strict.clone()), Status::Incompatible, &words);
    }
    check(cache(1), Status::OutOfMemory, &["needs 2 blocks, 1 available"]);
    assert!(a.handles().info(id).is_ok(), "no refusal ends the exporter's handle");
}

/// Creates a cache of another layout that can exchange KV with [`cache`].
fn laid_out(geometry: KvGeometry) -> Arc<Cache> {
    Cache::new(identity(), Shards::on_one_device(Arc::new(store::MemoryStore::new(geometry, 32))).unwrap(), config())
        .unwrap()
}

#[test]
fn other_block_sizes_are_converted_there_and_back() {
    let (a, c) = (cache(64), cache(64));
    for block_tokens in [1, 2, 3, 8, 64] {
        let b = laid_out(KvGeometry { block_tokens, ..GEOMETRY });
        let id = exported(&a, 15);
        let here = b.images().import(&read(&a, id)).unwrap();
        let ticket = transport::ticket(&a, id).unwrap();
        let again = transport::import(&b, &ticket).unwrap();
        assert!(a.handles().info(id).is_err(), "a ticket's import consumes");
        // 14 tokens are computed; the second import also reuses the full blocks of the first.
        let full = 14 / block_tokens as usize;
        let audit = b.audit();
        assert_eq!((audit.by_prefix_index, audit.leaked), (full, 0), "{block_tokens} tokens");
        assert_eq!(b.total_blocks() - b.stats().blocks_free, full + 2 * usize::from(14 % block_tokens > 0));
        for id in [here, again] {
            let ticket = transport::ticket(&b, id).unwrap();
            let home = if id == here {
                c.images().import(&read(&b, id)).unwrap()
            } else {
                transport::import(&c, &ticket).unwrap()
            };
            let seq = consume(&c, home).unwrap();
            assert!(!seq.snapshot.converted);
            seq.verify(c.store());
        }
        b.handles().release(here).unwrap();
        assert_idle(&b);
    }
}

#[test]
fn what_was_rounded_is_not_shared() {
    let (a, c) = (cache(32), cache(32));
    for dtype in [Dtype::F16, Dtype::Bf16, Dtype::I8] {
        let b = laid_out(KvGeometry { dtype, block_tokens: 2, ..GEOMETRY });
        let image = read(&a, exported(&a, 15));
        let ids = [b.images().import(&image).unwrap(), b.images().import(&image).unwrap()];
        assert_eq!((b.audit().by_prefix_index, b.audit().by_exports), (0, 14), "{dtype}");
        // The sequence stays marked as converted, even in a cache with the original layout.
        let other = laid_out(KvGeometry { dtype, ..GEOMETRY });
        for to in [&other, &c] {
            let id = to.images().import(&read(&b, ids[0])).unwrap();
            assert_eq!(to.audit().by_prefix_index, 0);
            assert!(consume(to, id).unwrap().snapshot.converted);
        }
        ids.into_iter().for_each(|id| b.handles().release(id).unwrap());
        assert_idle(&b);
    }
}

#[test]
fn a_layout_of_its_own_is_no_reason_to_write_what_is_here() {
    // The source has three tokens per block and this cache four. The index already holds the first two blocks here, so
    // the import starts in the middle of a source block.
    let (a, b) = (laid_out(KvGeometry { block_tokens: 3, ..GEOMETRY }), cache(32));
    let c = cache(32);
    let id = exported(&c, 15);
    let here = a.images().import(&read(&c, id)).unwrap();
    let mut prefix = Seq::computed(&b, 9, 0, 3);
    let before = b.stats().bytes_in;
    let landed = b.images().import(&read(&a, here)).unwrap();
    assert_eq!(b.stats().bytes_in - before, 3 * 3 * GEOMETRY.token_bytes() as u64, "blocks 2 to 4 of the source");
    let seq = consume(&b, landed).unwrap();
    assert_eq!(seq.table.blocks()[..2], prefix.table.blocks()[..2]);
    seq.verify(b.store());
    assert!(prefix.step(b.store(), 0));
    prefix.verify(b.store());
}

#[test]
fn a_length_dependent_rope_shares_nothing() {
    let a = cache(16);
    let image = read(&a, exported(&a, 9));
    let config = CacheConfig { share_up_to_tokens: 8, ..config() };
    let b =
        Cache::new(identity(), Shards::on_one_device(Arc::new(store::MemoryStore::new(GEOMETRY, 16))).unwrap(), config)
            .unwrap();
    let ids = [b.images().import(&image).unwrap(), b.images().import(&image).unwrap()];
    assert_eq!((b.audit().by_prefix_index, b.audit().by_exports), (0, 4));
    ids.into_iter().for_each(|id| consume(&b, id).unwrap().verify(b.store()));
}

#[test]
fn a_parked_sequence_survives_its_cache() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chat.kv");
    let a = cache(16);
    let id = exported(&a, 14);
    a.images().save(id, &path).unwrap();
    a.images().save(id, &path).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(metadata.len(), a.images().len(id).unwrap());
    refused(a.images().save(id, &directory.path().join("no/such")), Status::NotFound, &["no/such"]);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays");
    drop(a);
    let b = cache(16);
    let loaded = b.images().load(&path).unwrap();
    consume(&b, loaded).unwrap().verify(b.store());
    let image = std::fs::read(&path).unwrap();
    for len in [0, 10, 64, 300, image.len() - 1] {
        std::fs::write(&path, &image[..len]).unwrap();
        refused(b.images().load(&path), Status::Corrupt, &["chat.kv"]);
    }
    refused(b.images().load(directory.path()), Status::InvalidArgument, &["regular file"]);
    refused(b.images().load(&directory.path().join("none")), Status::NotFound, &["none"]);
    assert_idle(&b);
}

/// Each of these files would block a plain open or read forever, or would be taken from its other user.
#[test]
fn only_regular_files_are_opened_and_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let (fifo, socket) = (directory.path().join("fifo"), directory.path().join("socket"));
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let a = cache(16);
    let id = exported(&a, 6);
    for path in [&fifo, &socket, std::path::Path::new("/dev/null")] {
        refused(
            a.images().load(path),
            Status::InvalidArgument,
            &[&path.display().to_string(), "expected a regular file"],
        );
        refused(a.images().save(id, path), Status::InvalidArgument, &["expected a regular file"]);
        assert!(!std::fs::symlink_metadata(path).unwrap().is_file());
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn host_data_travels_with_the_sequence() {
    let (a, b) = (cache(16), cache(16));
    let id = exported(&a, 6);
    let data = |cache: &Cache, id: KvId| cache.handles().sequence(id).unwrap().host_data.clone();
    assert_eq!(data(&a, id), b"");
    let most = vec![7; cleave::sequence::MAX_HOST_DATA];
    refused(a.handles().set_host_data(id, &[7; 4097]), Status::InvalidArgument, &["at most 4096 bytes, found 4097"]);
    a.handles().set_host_data(id, &most).unwrap();
    let copy = a.handles().duplicate(id).unwrap();
    a.handles().set_host_data(id, b"short").unwrap();
    assert_eq!((data(&a, copy), data(&a, id)), (most.clone(), b"short".to_vec()));
    let image = read(&a, copy);
    assert_eq!(image.len() as u64, a.handles().info(copy).unwrap().image_bytes);
    refused(a.handles().set_host_data(copy, b""), Status::InvalidArgument, &["its image was read"]);
    let here = b.images().import(&image).unwrap();
    assert_eq!(data(&b, here), most);
    // Data that the host attaches after it has written a ticket does not change that ticket.
    let ticket = transport::ticket(&a, id).unwrap();
    assert_eq!(ticket.len() as u64, a.handles().info(id).unwrap().ticket_bytes);
    a.handles().set_host_data(id, b"later").unwrap();
    let there = transport::import(&b, &ticket).unwrap();
    assert_eq!(data(&b, there), b"short");
    refused(a.handles().sequence(id), Status::Expired, &[]);
    let own = transport::ticket(&b, there).unwrap();
    b.handles().set_host_data(there, b"later").unwrap();
    let moved = transport::import(&b, &own).unwrap();
    assert_eq!(consume(&b, moved).unwrap().snapshot.host_data, b"short");
}
