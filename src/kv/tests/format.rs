use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::error::Status;
use crate::kv::format::{self, Keys, LayerKind, Layout, Origin, Records, encode_head};
use crate::kv::format::{Endpoint, ProcessId};

/// The worked example of docs/kv-image-format.md.
fn example() -> Vec<u8> {
    let geometry = KvGeometry { layers: 1, kv_heads: 1, head_dim: 2, block_tokens: 2, dtype: Dtype::F32, shards: 1 };
    let layout = Layout::new(geometry, &[LayerKind::Window(4096)]).unwrap();
    let identity = CacheIdentity { fingerprint: [0x11; 32], tokenizer_digest: [0x22; 32], name: "tiny".into() };
    let params = SamplingParams { seed: 5, max_new_tokens: 7, stop_ids: vec![2], ..SamplingParams::default() };
    let snapshot = Snapshot {
        tokens: vec![100, 101, 102, 103],
        computed: 3,
        prompts: vec![(0, 3)],
        last_logprob: -1.5,
        last_top: vec![(103, -1.5)],
        cached_tokens: 2,
        params,
        cache_salt: 0,
        converted: false,
        finished: None,
        host_data: b"trace 7".to_vec(),
    };
    let origin = Origin { epoch: [0x33; 16], handle: 0x1_0000_0100_0000, lease_ms: 30_000 };
    let keys = Keys::new(&[0x44; 32]);
    let mut bytes = encode_head("cleave 0.1.0", &identity, &layout, &snapshot, &origin, &keys);
    let store = store::MemoryStore::new(geometry, 2);
    for block in 0..2 {
        let values: Vec<u8> = (0..8).flat_map(|i| ((block * 8 + i) as f32).to_le_bytes()).collect();
        store.write(block, 0, &values).unwrap();
    }
    let key = keys.block_key(&keys.image_nonce(&origin.epoch, origin.handle));
    let records = Records { store: &store, key, computed: snapshot.computed };
    for block in 0..2 {
        let mut record = vec![0; format::record_len(&geometry)];
        records.copy(block, block as BlockId, 0, &mut record).unwrap();
        bytes.extend(record);
    }
    bytes
}

fn hexdump(bytes: &[u8]) -> String {
    let line = |(i, chunk): (usize, &[u8])| {
        let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:04x}  {}\n", i * 16, hex.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

#[test]
fn the_documented_example_is_what_is_written() {
    let doc = include_str!("../../../docs/kv-image-format.md");
    let example = hexdump(&example());
    if let Ok(path) = std::env::var("CLEAVE_EXAMPLE_OUT") {
        std::fs::write(path, &example).unwrap();
    }
    assert!(doc.contains(&example), "docs/kv-image-format.md does not contain:\n{example}");
}

/// The same image with its sections changed, sealed again by somebody who knows the secret.
fn resealed(image: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let envelope = format::Envelope::peek(image).unwrap();
    let mut sections = image[format::ENVELOPE..envelope.head_len - format::MAC].to_vec();
    change(&mut sections);
    let body = &image[envelope.head_len..];
    let mut sealed = format::seal(envelope.kind, &sections, body.len() as u64, &Keys::new(&[1; 32]));
    sealed.extend_from_slice(body);
    sealed
}

fn image(cache: &Cache) -> Vec<u8> {
    let seq = Seq::computed(cache, 7, 1, 0);
    let id = cache.handles().export(seq.snapshot, seq.table, Some(Duration::from_secs(9))).unwrap();
    let mut image = vec![0; cache.images().len(id).unwrap() as usize];
    assert_eq!(cache.images().read(id, 0, &mut image).unwrap(), image.len());
    image
}

#[test]
fn unknown_sections_are_skipped_unless_critical() {
    let cache = cache(8);
    let image = image(&cache);
    let with = |flags: u8| resealed(&image, |s| s.splice(0..0, [99, 0, flags, 0, 3, 0, 0, 0, 1, 2, 3]).for_each(drop));
    let id = cache.images().import(&with(0)).unwrap();
    consume(&cache, id).unwrap().verify(cache.store());
    let refused = cache.images().import(&with(1)).unwrap_err();
    assert_eq!(refused.status, Status::Incompatible);
    assert!(refused.message.contains("section 99"), "{refused}");
}

#[test]
fn whoever_knows_the_secret_still_cannot_break_the_reader() {
    let cache = cache(8);
    let image = image(&cache);
    let n = format::Envelope::peek(&image).unwrap().head_len - format::ENVELOPE - format::MAC;
    let mut accepted = 0;
    for at in 0..n {
        for value in [0, 1, 0x7f, 0xff] {
            let forged = resealed(&image, |s| s[at] = value);
            accepted += usize::from(cache.images().import(&forged).is_ok_and(|id| cache.handles().release(id).is_ok()));
        }
        let cut = resealed(&image, |s| s.truncate(at));
        assert!(cache.images().import(&cut).is_err(), "sections cut at {at}");
    }
    assert!(accepted > 0, "text and sampling parameters may be anything");
    let twice = resealed(&image, |s| s.extend_from_within(..));
    assert_eq!(cache.images().import(&twice).unwrap_err().status, Status::Corrupt);
    sound(&cache);
}

#[test]
fn a_chain_that_is_not_that_of_the_tokens_is_refused() {
    let cache = cache(8);
    let image = image(&cache);
    let chain = HashChain::of(0, 4, &[0, 1, 2, 3]).head().0;
    let forged = resealed(&image, |sections| {
        let at = sections.windows(32).position(|window| window == chain).unwrap();
        sections[at] ^= 1;
    });
    let refused = cache.images().import(&forged).unwrap_err();
    assert_eq!(refused.status, Status::Corrupt);
    assert!(refused.message.contains("hash chain"), "{refused}");
}

#[test]
fn an_absurd_layout_is_refused_before_anything_is_made_for_it() {
    let cache = cache(8);
    let image = image(&cache);
    let layout = cache.layout().encode();
    let with = |field: usize, value: u32| {
        let forged = resealed(&image, |sections| {
            let at = sections.windows(layout.len()).position(|window| window == layout).unwrap();
            sections[at + 4 * field..][..4].copy_from_slice(&value.to_le_bytes());
        });
        cache.images().import(&forged).unwrap_err()
    };
    // Layers, block tokens, groups, shards; kind, size, KV heads, head dimension, dtype, 0 of the one group.
    for (field, value, status, text) in [
        (1, 0, Status::Incompatible, "block tokens: expected at least 1, found 0"),
        (1, 4097, Status::Incompatible, "block tokens: expected at most 4096, found 4097"),
        (1, u32::MAX, Status::Incompatible, "block tokens"),
        // These would be fine, but they are not what the rest of the image says.
        (1, 4096, Status::Corrupt, "hash chain"),
        (8, Dtype::I8 as u32, Status::Corrupt, "record length: expected 128, found 160"),
        (8, 9, Status::Incompatible, "KV dtype: expected one that this library knows, found code 9"),
        (0, u32::MAX, Status::Corrupt, "layout: groups of the layers: needs 4294967295 bytes"),
        (2, u32::MAX, Status::Incompatible, "cache groups: expected 1 to 255"),
        (3, 2, Status::Incompatible, "tensor-parallel shards: expected a divisor of 1 KV heads, found 2"),
        (3, 0, Status::Incompatible, "tensor-parallel shards: expected at least 1, found 0"),
    ] {
        let error = with(field, value);
        assert_eq!(error.status, status, "{error}");
        assert!(error.message.contains(text), "{text:?} in {error}");
    }
    sound(&cache);
}

#[test]
fn another_wire_version_is_incompatible_whatever_else_it_is() {
    let cache = cache(8);
    for (versions, found) in [((1, 1), "found 1"), ((3, 4), "found 3 to 4")] {
        let mut image = image(&cache);
        (image[8], image[10]) = versions;
        assert_eq!(cache.images().import(&image).unwrap_err().status, Status::Corrupt);
        let head_len = format::Envelope::peek(&image).unwrap().head_len;
        let sum = blake3::Hasher::new().update(&image[..32]).update(&image[64..head_len]).finalize();
        image[32..64].copy_from_slice(sum.as_bytes());
        let refused = cache.images().import(&image).unwrap_err();
        assert_eq!(refused.status, Status::Incompatible);
        let text = format!("KV image: wire version: this library reads version 2, {found}");
        assert!(refused.message.ends_with(&text), "{refused}");
    }
}

/// Layers of other kinds are another model's, whatever the fingerprint says.
#[test]
fn cache_groups_have_to_be_the_same() {
    let with = |kinds: [LayerKind; 2]| {
        let config = CacheConfig { layer_kinds: kinds.to_vec(), ..model::config() };
        Cache::new(
            model::identity(),
            Shards::on_one_device(Arc::new(store::MemoryStore::new(model::GEOMETRY, 8))).unwrap(),
            config,
        )
        .unwrap()
    };
    let (full, window) = (LayerKind::Full, LayerKind::Window(4096));
    let exporter = with([window, full]);
    let image = image(&exporter);
    let taken = with([window, full]).images().import(&image);
    assert!(taken.is_ok(), "{taken:?}");
    let refused = with([window, window]).images().import(&image).unwrap_err();
    assert_eq!(refused.status, Status::Incompatible);
    let text = "layer 1: expected a sliding window of 4096 tokens, found full attention";
    assert!(refused.message.contains(text), "{refused}");
    let later = resealed(&image, |sections| {
        let at = sections.len() - 4;
        assert_eq!(sections[at..], [0; 4]);
        sections[at] = 1;
    });
    let refused = exporter.images().import(&later).unwrap_err();
    assert!(refused.message.contains("blocks: cache group 1: first block: expected 0, found 1"), "{refused}");
    let recurrent = CacheConfig { layer_kinds: vec![full, LayerKind::Recurrent(64)], ..model::config() };
    let store = Arc::new(store::MemoryStore::new(model::GEOMETRY, 8));
    assert_eq!(
        Cache::new(model::identity(), Shards::on_one_device(store).unwrap(), recurrent).err().unwrap().status,
        Status::Unsupported
    );
}

#[test]
fn tickets_have_the_length_that_info_says() {
    let cache = cache(8);
    let seq = Seq::computed(&cache, 7, 1, 0);
    let id = cache.handles().export(seq.snapshot, seq.table, None).unwrap();
    cache.tickets().set_endpoints(&[Endpoint::Process(ProcessId { pid: 1, nonce: [0; 16] })]);
    let ticket = cache.tickets().encode(id).unwrap();
    assert_eq!(ticket.len() as u64, cache.handles().info(id).unwrap().ticket_bytes);
    let elsewhere = crate::transport::import(&cache, &ticket).unwrap_err();
    assert_eq!(elsewhere.status, Status::Peer);
    assert!(cache.handles().info(id).is_ok());
}

/// Somebody else truncates a file while it is being read.
#[test]
fn a_file_that_becomes_shorter_is_refused() {
    let cache = cache(8);
    let image = image(&cache);
    for len in 0..image.len() {
        let refused = cache.images().load_from(&image[..len], image.len() as u64).unwrap_err();
        assert_eq!(refused.status, Status::Corrupt, "{len}: {refused}");
    }
    let loaded = cache.images().load_from(&image[..], image.len() as u64).unwrap();
    consume(&cache, loaded).unwrap().verify(cache.store());
    sound(&cache);
}

#[test]
fn host_data_that_is_too_long_is_refused() {
    let cache = cache(8);
    let image = image(&cache);
    let with = |n: usize| {
        let mut section = vec![10, 0, 0, 0];
        section.extend((n as u32).to_le_bytes());
        section.resize(8 + n, 9);
        cache.images().import(&resealed(&image, |sections| sections.extend_from_slice(&section)))
    };
    let taken = with(4096).unwrap();
    assert_eq!(cache.handles().sequence(taken).unwrap().host_data, [9; 4096]);
    let refused = with(4097).unwrap_err();
    assert_eq!(refused.status, Status::Corrupt);
    assert!(refused.message.contains("host data: expected at most 4096 bytes, found 4097"), "{refused}");
}
