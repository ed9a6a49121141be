//! Requests that wait for an import. However they end, they end exactly once, the imported handle ends with them, and
//! the exporter keeps its own handle.

use crate::common::*;
use cleave::engine::{Engine, EngineOptions, EventKind, ModelCache, Request, Role};
use cleave::error::Status;
use cleave::kv::{Consumed, KvId};
use cleave::sequence::{FinishReason, Snapshot};
use std::sync::Arc;
use std::time::Duration;

/// Two caches with the same secret, and a handle in the first whose prompt appears to be still in progress. An import
/// of it stays in flight until `go`.
struct Pair {
    from: Arc<ModelCache>,
    to: Arc<ModelCache>,
    host: Host,
    kv: u64,
    ticket: Vec<u8>,
    land: Option<Box<dyn FnOnce()>>,
}

fn pair() -> Pair {
    let make = || {
        let options = cleave::engine::CacheOptions { secret: Some([3; 32]), bytes: 1 << 20, ..Default::default() };
        cache(options)
    };
    let (from, to) = (make(), make());
    let mut host = Host::new();
    let prefill = host.engine(&from, role(Role::Prefill));
    let done = host.run(&prefill, request(&prompt(40, 2), 12)).end.unwrap().kv;
    let Consumed::Ready(snapshot, table) = from.kv().handles().consume(KvId(done)).unwrap() else { panic!("pending") };
    let begin = Snapshot { tokens: snapshot.tokens[..40].to_vec(), last_logprob: 0.0, ..snapshot.clone() };
    let streaming = from.kv().handles().begin_streaming_export(begin, &table).unwrap();
    let kv = streaming.id().0;
    let ticket = cleave::transport::ticket(from.kv(), KvId(kv)).unwrap();
    let land = move || _ = streaming.finish(snapshot, table).unwrap();
    Pair { from, to, host, kv, ticket, land: Some(Box::new(land)) }
}

impl Pair {
    fn go(&mut self) {
        self.land.take().expect("once")();
    }

    fn import(&self) -> u64 {
        self.to.import(Some(&self.host.queue), &self.ticket, 5).unwrap().0
    }

    /// Checks that the import reported KV_READY, that nothing is left in the second cache, and that the first still has
    /// its handle.
    fn settled(mut self, what: &str) {
        self.go();
        while !self.host.others.iter().any(|e| e.kind == EventKind::KvReady) {
            assert!(self.host.poll(Duration::from_secs(60)) > 0, "{what}: no KV_READY");
        }
        let info = self.from.kv().handles().info(KvId(self.kv));
        assert!(info.is_ok(), "{what}: the exporter's handle is gone: {:?}", info.unwrap_err());
        assert_quiescent(&self.to);
        while self.host.poll(Duration::from_millis(20)) > 0 {}
        assert_eq!(self.host.others.iter().filter(|e| e.kind == EventKind::KvReady).count(), 1, "{what}");
    }
}

fn engine(pair: &Pair) -> Engine {
    pair.host.engine(&pair.to, role(Role::Decode))
}

fn ends(host: &mut Host, id: u64, status: Status, what: &str) {
    let outcome = host.finish(id);
    assert_eq!((outcome.reason(), outcome.end.unwrap().status), (FinishReason::Error, Some(status)), "{what}");
    assert!(outcome.tokens.is_empty(), "{what}");
}

#[test]
fn a_cancelled_one_ends_at_once() {
    let mut pair = pair();
    let engine = engine(&pair);
    let id = pair.host.submit(&engine, continuation(pair.import()));
    engine.cancel(id).unwrap();
    ends(&mut pair.host, id, Status::Cancelled, "cancel");
    pair.settled("cancel");
}

#[test]
fn an_overdue_one_ends_at_once() {
    let mut pair = pair();
    let engine = engine(&pair);
    let deadline = Some(Duration::from_millis(20));
    let id = pair.host.submit(&engine, Request { deadline, ..continuation(pair.import()) });
    ends(&mut pair.host, id, Status::Timeout, "deadline");
    pair.settled("deadline");
}

#[test]
fn destroying_the_engine_ends_it() {
    let mut pair = pair();
    let engine = engine(&pair);
    let id = pair.host.submit(&engine, continuation(pair.import()));
    drop(engine);
    ends(&mut pair.host, id, Status::Shutdown, "destroy");
    pair.settled("destroy");
}

#[test]
fn closing_the_cache_ends_it() {
    let mut pair = pair();
    let engine = engine(&pair);
    let id = pair.host.submit(&engine, continuation(pair.import()));
    let to = pair.to.clone();
    let closing = std::thread::spawn(move || to.close());
    ends(&mut pair.host, id, Status::Shutdown, "close");
    pair.settled("close");
    closing.join().unwrap();
}

#[test]
fn an_exported_one_is_handed_over_when_it_lands() {
    let mut pair = pair();
    let engine = engine(&pair);
    let id = pair.host.submit(&engine, continuation(pair.import()));
    engine.export(id).unwrap();
    pair.go();
    let outcome = pair.host.finish(id);
    assert_eq!((outcome.reason(), outcome.tokens.len()), (FinishReason::Exported, 0));
    let rest = pair.host.run(&engine, continuation(outcome.end.unwrap().kv));
    assert_eq!(rest.indices, (1..12).collect::<Vec<_>>());
}

#[test]
fn what_a_landed_sequence_cannot_run_ends_it_and_frees_it() {
    let mut pair = pair();
    let engine = engine(&pair);
    let bad = Request { prompt: prompt(1 << 12, 1), ..continuation(pair.import()) };
    let id = pair.host.submit(&engine, bad);
    pair.go();
    ends(&mut pair.host, id, Status::InvalidArgument, "too long");
    assert_quiescent(&pair.to);
}

#[test]
fn a_flood_of_imports_all_report() {
    let mut pair = pair();
    let mut host = Host::new();
    let engine = host.engine(&pair.to, EngineOptions { max_sequences: 2, ..role(Role::Mixed) });
    // One ticket is imported many times. The first import gets the sequence; the others learn that it is gone.
    let imports: Vec<u64> = (0..20).map(|i| pair.to.import(Some(&host.queue), &pair.ticket, i).unwrap().0).collect();
    let ids: Vec<u64> = imports.iter().map(|&kv| host.submit(&engine, continuation(kv))).collect();
    pair.go();
    let outcomes: Vec<_> = ids.iter().map(|&id| host.finish(id)).collect();
    assert_eq!(outcomes.iter().filter(|o| o.reason() == FinishReason::Length).count(), 1);
    assert_eq!(outcomes.iter().filter(|o| o.end.unwrap().status == Some(Status::Expired)).count(), 19);
    while host.others.len() < 20 {
        assert!(host.poll(Duration::from_secs(60)) > 0);
    }
    assert_quiescent(&pair.to);
    assert_eq!(engine.metrics().handoffs, 1);
}

#[test]
fn a_handle_on_its_way_is_used_once() {
    let mut pair = pair();
    let engine = engine(&pair);
    let kv = pair.import();
    let id = pair.host.submit(&engine, continuation(kv));
    let refused = engine.submit(vec![continuation(kv)]).refused.expect("taken by the first request");
    assert_eq!(refused.status, Status::Expired, "{refused}");
    pair.go();
    assert_eq!(pair.host.finish(id).reason(), FinishReason::Length);
}

/// Releases every handle that a request has ended with so far.
fn release_results(host: &Host, caches: [&Arc<ModelCache>; 2]) {
    for end in host.outcomes.values().filter_map(|outcome| outcome.end) {
        // The other cache does not know it.
        caches.iter().for_each(|cache| _ = cache.kv().handles().release(KvId(end.kv)));
    }
}

/// Tickets and images move between two caches and are cancelled, late, exported, submitted twice or released, while
/// engines come and go. Each request gets one FINISHED, each import one KV_READY, and every block is returned.
#[test]
fn random_interference_with_imports() {
    let make = || {
        let options = cleave::engine::CacheOptions { secret: Some([3; 32]), bytes: 1 << 20, ..Default::default() };
        cache(options)
    };
    let (from, to) = (make(), make());
    let mut host = Host::with_capacity(1 << 12);
    let mut state = 99u64;
    let mut random = move |n: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % n
    };
    let prefill = host.engine(&from, role(Role::Prefill));
    let (mut ids, mut imports) = (Vec::new(), 0);
    let mut handles = Vec::new();
    for round in 0..8 {
        let decode = host.engine(&to, EngineOptions { max_sequences: 3, ..role(Role::Decode) });
        for i in 0..25 {
            let first = host.run(&prefill, request(&prompt(1 + random(90) as usize, i), 2 + random(20) as u32));
            let handle = KvId(first.end.unwrap().kv);
            handles.push((&from, handle));
            let data = match random(3) {
                0 => {
                    let mut image = vec![0; from.kv().handles().info(handle).unwrap().image_bytes as usize];
                    from.kv().images().read(handle, 0, &mut image).unwrap();
                    image
                }
                _ => cleave::transport::ticket(from.kv(), handle).unwrap(),
            };
            if random(6) == 0 {
                from.kv().handles().release(handle).unwrap();
            }
            let Ok(kv) = to.import(Some(&host.queue), &data, i) else { continue };
            handles.push((&to, kv));
            imports += 1;
            let deadline = (random(4) == 0).then(|| Duration::from_micros(random(2000)));
            let job = Request { deadline, keep_kv: random(3) == 0, ..continuation(kv.0) };
            ids.extend(decode.submit(vec![job.clone()]).ids);
            match random(6) {
                0 => assert!(decode.submit(vec![job]).refused.is_some(), "used already"),
                1 => drop(ids.last().map(|&id| decode.cancel(id))),
                2 => drop(ids.last().map(|&id| decode.export(id))),
                3 => to.kv().handles().release(kv).unwrap(),
                _ => {}
            }
            host.poll(Duration::ZERO);
        }
        if round % 2 == 0 {
            decode.drain(Some(Duration::from_secs(60))).unwrap();
        }
        // An import that was refused or never submitted would otherwise be held until its lease ends.
        handles.drain(..).for_each(|(cache, kv)| cache.kv().handles().release(kv).unwrap());
        release_results(&host, [&from, &to]);
    }
    let ready = |host: &Host| host.others.iter().filter(|e| e.kind == EventKind::KvReady).count();
    while ready(&host) < imports {
        assert!(host.poll(Duration::from_secs(60)) > 0, "{} of {imports} KV_READY", ready(&host));
    }
    while host.poll(Duration::from_millis(50)) > 0 {}
    assert_eq!(ready(&host), imports);
    for id in &ids {
        assert!(host.outcomes.get(id).is_some_and(|o| o.end.is_some()), "request {id:#x} never ended");
    }
    release_results(&host, [&from, &to]);
    assert_quiescent(&to);
    assert_quiescent(&from);
}
