//! Handles, tickets and images that are authentic but wrong: their author knew the secret, but no engine on this model
//! can have produced them. Whatever they contain, only the request that continues from them fails.

use crate::common::*;
use crate::model_support;
use cleave::engine::{CacheOptions, Engine, EventKind, ModelCache, Request, Role};
use cleave::error::Status;
use cleave::kv::{Consumed, KvId};
use cleave::model::Model;
use cleave::sequence::{FinishReason, Snapshot};
use cleave::transport::Reason;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// A change to a sequence, and the status with which it must be refused.
type Forgery = (&'static str, Status, fn(&mut Snapshot));

fn vocab() -> u32 {
    tiny().info().vocab_size
}

const FORGERIES: [Forgery; 15] = [
    ("pending token", Status::Corrupt, |s| *s.tokens.last_mut().unwrap() = vocab()),
    ("prompt token", Status::Corrupt, |s| s.tokens[3] = vocab()),
    ("token of the last block", Status::Corrupt, |s| s.tokens[38] = u32::MAX),
    ("alternatives", Status::Corrupt, |s| s.last_top = vec![(vocab(), -1.0)]),
    ("empty prompt ranges", Status::Corrupt, |s| s.prompts.extend([(40, 40), (41, 41), (41, 41)])),
    ("cached tokens", Status::Corrupt, |s| s.cached_tokens = 1 << 30),
    ("logit bias", Status::InvalidArgument, |s| s.params.logit_bias = vec![(vocab(), 1.0)]),
    ("many biases", Status::InvalidArgument, |s| s.params.logit_bias = vec![(1, 0.5); vocab() as usize + 1]),
    ("stop ids", Status::InvalidArgument, |s| s.params.stop_ids = vec![u32::MAX]),
    ("stop sequences", Status::InvalidArgument, |s| s.params.stop_sequences = vec![vec![1, vocab()]]),
    ("logprobs", Status::InvalidArgument, |s| s.params.logprobs = Some(cleave::sequence::MAX_LOGPROBS + 1)),
    ("temperature", Status::InvalidArgument, |s| s.params.temperature = f32::INFINITY),
    ("repetition penalty", Status::InvalidArgument, |s| s.params.repetition_penalty = 0.0),
    ("minimum over maximum", Status::InvalidArgument, |s| s.params.min_new_tokens = u32::MAX),
    ("length over the context", Status::InvalidArgument, |s| {
        s.tokens.resize(tiny().info().max_context_tokens as usize + 1, 1);
    }),
];

fn secret_cache() -> Arc<ModelCache> {
    cache(CacheOptions { secret: Some([5; 32]), bytes: 1 << 20, ..CacheOptions::default() })
}

/// Route by which a forged sequence reaches the engine.
#[derive(Clone, Copy, Debug)]
enum Way {
    Handle,
    Image,
    Ticket,
    /// A ticket whose handle is gone by the time of the import, so that only its tokens arrive.
    DeadTicket,
}

/// Creates a handle in `victim` for a sequence that `forge` has changed and a cache with the same secret has signed.
fn forged(forge: fn(&mut Snapshot), way: Way, victim: &Arc<ModelCache>) -> (KvId, Arc<ModelCache>) {
    let author = if matches!(way, Way::Handle) { victim.clone() } else { secret_cache() };
    let mut host = Host::new();
    let prefill = host.engine(&author, role(Role::Prefill));
    let kv = host.run(&prefill, request(&prompt(40, 2), 12)).end.unwrap().kv;
    let Consumed::Ready(mut snapshot, table) = author.kv().handles().consume(KvId(kv)).unwrap() else {
        panic!("pending")
    };
    forge(&mut snapshot);
    let kv = author.kv().handles().export(snapshot, table, None).expect("the format alone has nothing against it");
    let here = match way {
        Way::Handle => kv,
        Way::Image => {
            let mut image = vec![0; author.kv().handles().info(kv).unwrap().image_bytes as usize];
            author.kv().images().read(kv, 0, &mut image).unwrap();
            victim.import(None, &image, 0).unwrap()
        }
        Way::Ticket | Way::DeadTicket => {
            let ticket = cleave::transport::ticket(author.kv(), kv).unwrap();
            if matches!(way, Way::DeadTicket) {
                author.kv().handles().release(kv).unwrap();
            }
            victim.import(None, &ticket, 0).unwrap()
        }
    };
    (here, author)
}

/// Checks that the request was refused immediately, or ended with the status if its KV was still in transfer. It
/// produced no token.
fn fails(host: &mut Host, engine: &Engine, request: Request, status: Status, what: &str) {
    let submitted = engine.submit(vec![request]);
    match submitted.refused {
        Some(error) => assert_eq!(error.status, status, "{what}: {error}"),
        None => {
            let outcome = host.finish(submitted.ids[0]);
            let end = outcome.end.unwrap();
            assert_eq!((outcome.reason(), end.status), (FinishReason::Error, Some(status)), "{what}");
            assert!(outcome.tokens.is_empty(), "{what}");
        }
    }
}

#[test]
fn a_forged_sequence_fails_its_own_request_only() {
    let victim = secret_cache();
    // With a small queue, the neighbour lives until it is polled to its end.
    let mut host = Host::with_capacity(64);
    let engine = host.engine(&victim, role(Role::Mixed));
    let neighbour = host.squeeze(&engine, request(&prompt(20, 1), 300));
    host.tokens(neighbour, 2);
    for way in [Way::Handle, Way::Image, Way::Ticket] {
        for (what, status, forge) in FORGERIES {
            let (kv, _author) = forged(forge, way, &victim);
            fails(&mut host, &engine, continuation(kv.0), status, &format!("{what} by {way:?}"));
            victim.kv().handles().release(kv).unwrap();
        }
    }
    let whole = host.finish(neighbour);
    assert_eq!((whole.reason(), whole.tokens.len()), (FinishReason::Length, 300));
    assert!(host.others.iter().all(|event| event.kind != EventKind::EngineFailed));
    drop(engine);
    assert_quiescent(&victim);
}

/// A ticket whose KV does not arrive still provides its tokens, which are not trusted either.
#[test]
fn nor_is_one_recomputed() {
    let victim = secret_cache();
    let mut host = Host::new();
    let engine = host.engine(&victim, role(Role::Mixed));
    let recompute = |forge: fn(&mut Snapshot)| {
        let (kv, _author) = forged(forge, Way::DeadTicket, &victim);
        Request { recompute: true, ..continuation(kv.0) }
    };
    assert_eq!(host.run(&engine, recompute(|_| ())).tokens.len(), 11, "a sound one is");
    fails(&mut host, &engine, recompute(|s| s.tokens[3] = vocab()), Status::Corrupt, "recompute");
    assert_eq!(host.run(&engine, request(&prompt(20, 1), 5)).tokens.len(), 5);
    assert!(host.others.is_empty(), "{:?}", host.others);
}

/// The request's own parameters replace the handle's, valid or not.
#[test]
fn forged_parameters_do_no_harm_where_they_are_replaced() {
    let victim = secret_cache();
    let mut host = Host::new();
    let engine = host.engine(&victim, role(Role::Mixed));
    let (kv, _) = forged(|s| s.params.logit_bias = vec![(vocab(), 1.0)], Way::Image, &victim);
    let job = Request { kv: kv.0, override_sampling: true, ..request(&[], 5) };
    assert_eq!(host.run(&engine, job).tokens.len(), 4);
}

/// Size of the embedding of [`large_vocabulary`]: rows, and bytes of a row.
const EMBEDDING: (usize, usize) = (4096, 256);

/// Whether a fingerprint of 16 samples of 16 KiB, evenly spread over the embedding, would read this row of it.
fn is_sampled(row: usize) -> bool {
    const SAMPLE: usize = 16 << 10;
    let (rows, size) = EMBEDDING;
    let last = rows * size - SAMPLE;
    (0..16).map(|i| last * i / 15).any(|begin| row * size < begin + SAMPLE && begin < (row + 1) * size)
}

/// A copy of the shipped model with a vocabulary of 4096 tokens: the rows of the embedding repeat. With `changed`, every row
/// that no sample would read has other values.
fn large_vocabulary(changed: bool) -> TempDir {
    let (rows, size) = EMBEDDING;
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(&tiny_dir()).join(file), dir.path().join(file)).unwrap();
    }
    model_support::edit_config(dir.path(), |config| config["vocab_size"] = rows.into());
    model_support::edit_tensors(&dir.path().join("model.safetensors"), |name, tensor, bytes| {
        if name != "model.embed_tokens.weight" {
            return;
        }
        tensor["shape"][0] = rows.into();
        *bytes = bytes.iter().copied().cycle().take(rows * size).collect();
        for (_, row) in bytes.chunks_mut(size).enumerate().filter(|(row, _)| changed && !is_sampled(*row)) {
            // The signs of every other element, which is of two bytes.
            row.iter_mut().skip(1).step_by(4).for_each(|byte| *byte ^= 0x80);
        }
    });
    dir
}

/// Two models that a fingerprint of samples would take for one: neither pairing nor an import may do so.
#[test]
fn kv_of_weights_that_differ_in_some_rows_is_refused() {
    assert_eq!((0..EMBEDDING.0).filter(|row| !is_sampled(*row)).count(), 3060);
    let prompt: Vec<u32> = (100..140).collect();
    assert!(prompt.iter().all(|token| !is_sampled(*token as usize)));
    let dirs = [false, true].map(large_vocabulary);
    let models = dirs.each_ref().map(|dir| Model::load(dir.path().to_str().unwrap()).unwrap());
    let make = |model: &Arc<Model>| {
        let options = CacheOptions { secret: Some([5; 32]), bytes: 1 << 20, ..CacheOptions::default() };
        ModelCache::create(model, &[], options).unwrap()
    };
    let mut host = Host::new();
    let [ours, theirs] = models.each_ref().map(|model| {
        let engine = host.engine(&make(model), role(Role::Mixed));
        host.run(&engine, request(&prompt, 12))
    });
    assert_ne!(ours.tokens, theirs.tokens, "the difference must matter");

    let [from, to] = models.each_ref().map(make);
    let prefill = host.engine(&from, role(Role::Prefill));
    let handle = host.run(&prefill, request(&prompt, 12)).end.unwrap().kv;
    for (one, other) in [(&from, &to), (&to, &from)] {
        let report = one.node().pair(&other.node().address(), None);
        assert_eq!((report.transport, report.reason), (None, Reason::Weights), "{}", report.detail);
        assert_eq!(report.error.unwrap().status, Status::Incompatible);
    }
    let mut image = vec![0; from.kv().images().len(KvId(handle)).unwrap() as usize];
    from.kv().images().read(KvId(handle), 0, &mut image).unwrap();
    for data in [from.node().ticket(KvId(handle)).unwrap(), image] {
        let refused = to.import(None, &data, 0).unwrap_err();
        assert_eq!(refused.status, Status::Incompatible, "{refused}");
        assert!(refused.message.contains("model fingerprint"), "{refused}");
    }
    // The importer's prefix cache holds none of its blocks, and the exporter still has its handle.
    assert_eq!(to.kv().audit().by_prefix_index, 0);
    let there = host.engine(&to, role(Role::Mixed));
    let got = host.run(&there, request(&prompt, 12));
    assert_eq!((got.tokens, got.logprobs), (theirs.tokens, theirs.logprobs));
    let here = host.engine(&from, role(Role::Mixed));
    let rest = host.run(&here, continuation(handle));
    assert_eq!(rest.tokens, ours.tokens[ours.tokens.len() - rest.tokens.len()..]);
    drop((prefill, there, here));
    assert_quiescent(&from);
    assert_quiescent(&to);
}
