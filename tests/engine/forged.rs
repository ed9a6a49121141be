//! Handles, tickets and images that are authentic but wrong: their author knew the secret, but no engine on this model
//! can have produced them. Whatever they contain, only the request that continues from them fails.

use crate::common::*;
use cleave::engine::{CacheOptions, Engine, EventKind, ModelCache, Request, Role};
use cleave::error::Status;
use cleave::kv::{Consumed, KvId};
use cleave::sequence::{FinishReason, Snapshot};
use std::sync::Arc;

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
    let Consumed::Ready(mut snapshot, table) = author.kv().consume(KvId(kv)).unwrap() else { panic!("pending") };
    forge(&mut snapshot);
    let kv = author.kv().export(snapshot, table, None).expect("the format alone has nothing against it");
    let here = match way {
        Way::Handle => kv,
        Way::Image => {
            let mut image = vec![0; author.kv().info(kv).unwrap().image_bytes as usize];
            author.kv().read_image(kv, 0, &mut image).unwrap();
            victim.import(None, &image, 0).unwrap()
        }
        Way::Ticket | Way::DeadTicket => {
            let ticket = cleave::transport::ticket(author.kv(), kv).unwrap();
            if matches!(way, Way::DeadTicket) {
                author.kv().release(kv).unwrap();
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
            victim.kv().release(kv).unwrap();
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
